"""A page that generates pictures in the browser (Gradio). Knows the generator's call, not how it works.

Requests are sampled together. While one is, its unfinished pictures are shown.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from clipgen_core.data.images import shown_by_id
from clipgen_core.data.pixels import with_parameters
from clipgen_core.data.tables import find_table
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.serving.models import Models
from clipgen_core.serving.monitoring import PICTURES, ROUTE, observed
from clipgen_core.serving.sampling import Sampling, unique
from clipgen_core.serving.subjects import Edit, FromPicture, FromText, Subject
from clipgen_core.settings.sampling import MAX_PROMPT_LENGTH, SamplingConfig
from clipgen_core.training.checkpoint import Checkpoint

MAX_PICTURES = 8
HISTORY = 24  # pictures
AT_ONCE = 16  # users whose pictures are sampled together
NEAREST = 8
HOUR = 3600
TITLE = "clip-gen"
STYLE = """
.grid-wrap { min-height: 0 !important; padding-top: 40px !important; }
.grid-container { grid: auto-flow auto / repeat(auto-fill, minmax(64px, 1fr)) !important; }
#made .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.caption-label { font-size: 11px !important; padding: 0 4px !important; }
"""  # a gallery is as high as its pictures, which are below its label
PAINT = ("#ff8000", 0.6)
EXAMPLES = ["a red heart", "a smiling face", "a green apple", "a blue car"]

Handler = Callable[..., Iterator[tuple[Any, ...]]]


def serve(models: Sequence[str], *, host: str, port: int, waiting: int) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: Sources for `TextToImage.from_pretrained`, the default model first.
        host: The address to listen at.
        port: The port to listen at.
        waiting: Requests that may wait in the queue; more are refused.

    Raises:
        ClipgenError: The first model cannot be loaded, or the address or port cannot be used.
    """
    page = build(models).queue(max_size=waiting, default_concurrency_limit=AT_ONCE)
    theme = gr.themes.Soft(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            theme=theme,
            css=STYLE,
            show_error=True,
            max_file_size="20mb",
            run_history=False,
            ssr_mode=False,
            footer_links=["api"],
            app_kwargs={"routes": [ROUTE]},
        )
    except OSError as error:
        raise ClipgenError(
            f"the page cannot listen at {host}:{port} ({error}): choose another --port"
        ) from error


def build(models: Sequence[str]) -> gr.Blocks:
    """Build the page and load its models once, the first one last."""
    offered = Models(models)
    sampling = offered.load(offered.find(None)).parts.sampling
    with gr.Blocks(title=TITLE, delete_cache=(HOUR, HOUR), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nPictures from a model that was trained without captions.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                prompt, generate, picture, vary, drawn, edit = _subjects()
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                settings = _settings(list(offered.served), sampling)
            with gr.Column(scale=2):
                shown = _galleries()
        past = gr.State([])
        common: dict[str, Any] = {
            "outputs": [*shown, past],
            "concurrency_id": "sampling",
            "show_progress": "minimal",
        }
        from_text = _handler(offered, FromText, [prompt])
        events: list[Any] = [
            generate.click(from_text, [prompt, *settings, past], api_name="generate", **common),
            prompt.submit(from_text, [prompt, *settings, past], api_visibility="private", **common),
            vary.click(
                _handler(offered, FromPicture, [picture]),
                [picture, *settings, past],
                api_name="vary",
                **common,
            ),
            edit.click(_handler(offered, Edit, drawn), [*drawn, *settings, past], api_name="edit", **common),
        ]
        stop.click(None, cancels=events)
    return page


def _subjects() -> tuple[gr.Textbox, gr.Button, gr.Image, gr.Button, list[Any], gr.Button]:
    """A prompt, a picture, or a picture to paint on with a prompt, each with its button."""
    with gr.Tab("From a text"):
        prompt = gr.Textbox(
            label="Prompt", placeholder=EXAMPLES[0], max_length=MAX_PROMPT_LENGTH, elem_id="prompt"
        )
        gr.Examples(EXAMPLES, prompt)
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
    with gr.Tab("From a picture"):
        picture = gr.Image(label="Picture", type="pil", image_mode="RGB", elem_id="picture")
        vary = gr.Button("Make variations", variant="primary", elem_id="vary")
    with gr.Tab("Edit a picture"):
        drawn = [
            gr.ImageMask(
                label="Paint over what is to change",
                type="pil",
                format="png",
                brush=gr.Brush(colors=[PAINT], default_color=PAINT, color_mode="fixed"),
                elem_id="drawn",
            ),
            gr.Textbox(
                label="Prompt",
                placeholder="What the whole picture should show; empty: what it shows now",
                max_length=MAX_PROMPT_LENGTH,
                elem_id="wanted",
            ),
        ]
        edit = gr.Button("Edit", variant="primary", elem_id="edit")
    return prompt, generate, picture, vary, drawn, edit


def _settings(models: Sequence[str], sampling: SamplingConfig) -> list[Any]:
    """The inputs between subject and history of `_handler`, with the model's defaults."""
    with gr.Accordion("Settings", open=True):
        return [
            gr.Dropdown(list(models), value=models[0], label="Model"),
            gr.Slider(1, MAX_PICTURES, 4, step=1, label="Pictures"),
            gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed"),
            gr.Slider(1, 6, sampling.guidance_scale, step=0.1, label="Guidance"),
            gr.Slider(0.1, 1.5, sampling.temperature, step=0.05, label="Temperature"),
        ]


def _galleries() -> list[Any]:
    """What is shown: the pictures, the status, the nearest training pictures, the history."""
    return [
        gr.Gallery(
            label="Pictures, the best first",
            format="png",
            height="auto",
            object_fit="contain",
            elem_id="made",
        ),
        gr.Markdown(elem_id="said"),
        gr.Gallery(label="Nearest training pictures", format="png", height="auto", elem_id="near"),
        gr.Gallery(label="History", format="png", height="auto", elem_id="history"),
    ]


def _handler(offered: Models, subject_of: Callable[..., Subject], inputs: Sequence[Any]) -> Handler:
    """The handler of a button, whose first inputs make the subject of the request."""

    def handle(*given: Any) -> Iterator[tuple[Any, ...]]:
        """Yield what the page shows: previews while codes are sampled, then pictures, scores, neighbours and
        history."""
        model, n, seed, guidance, temperature, past = given[len(inputs) :]
        parameters: dict[str, Any] = {"n": int(n), "seed": int(seed)}
        parameters |= {"guidance_scale": guidance, "temperature": temperature}
        try:
            subject = subject_of(*given[: len(inputs)])
            with observed(subject.kind):
                served = offered.find(model)
                generator, origin = offered.load(served), offered.origin(served)
                with Sampling(generator, subject, parameters) as sampling:
                    for images, progress in sampling.previews():
                        yield images, f"{progress:.0%} of the codes sampled", gr.skip(), gr.skip(), gr.skip()
        except ClipgenError as error:
            raise gr.Error(str(error)) from error
        row = sampling.generated
        PICTURES.labels(subject.kind).inc(len(row))
        for one in row:
            score = round(one.clip_score, 4)
            with_parameters(
                one.image, {**subject.recorded, **parameters, "model": origin, "clip_score": score}
            )
        captioned = [(one.image, f"{one.clip_score:.3f}") for one in row]
        past = ([(one.image, f"{subject.label}, seed {int(seed)}") for one in row[:1]] + past)[:HISTORY]
        notes = (f"Note: {one}." for one in subject.notes(generator))
        said = " ".join(["The CLIP score is below each picture.", *notes])
        yield captioned, said, _neighbours(generator, row[0]), past, past

    return handle


def _neighbours(generator: TextToImage, generated: Generated) -> list[tuple[Image.Image, str]]:
    """The training images nearest to a generated one, if the images table is available."""
    codes = Checkpoint(generator.parts.transformer).codes
    table = find_table(codes.images) if codes.images else None
    if table is None or generator.embeddings is None:
        return []
    cosines = dict(generator.search(generator.embed_images([generated.image])[0], NEAREST))
    images = shown_by_id(table, cosines)
    return [(unique(images[id]), f"{cosine:.3f}") for id, cosine in cosines.items() if id in images]
