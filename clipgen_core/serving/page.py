"""A page that generates pictures in the browser (Gradio). Knows the generator's call, not how it works.

Requests wait in one queue, in order. While a request is sampled, its pictures appear row by row.
"""

import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from clipgen_core.data.images import images_by_id
from clipgen_core.data.pixels import with_parameters
from clipgen_core.data.tables import find_table
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated, not_read
from clipgen_core.registry.champions import CANDIDATE, CHAMPION_ALIAS, MODEL
from clipgen_core.serving.monitoring import PICTURES, ROUTE, observed
from clipgen_core.settings.sampling import MAX_PROMPT_LENGTH, SamplingConfig
from clipgen_core.storage import Storage, last_root
from clipgen_core.tracking import describe
from clipgen_core.training.checkpoint import Checkpoint

MAX_PICTURES = 8
HISTORY = 24  # pictures
LOADED_MODELS = 2
NEAREST = 8
HOUR = 3600
TITLE = "clip-gen"
STYLE = """
.grid-wrap { min-height: 0 !important; padding-top: 40px !important; }
.grid-container { grid: auto-flow auto / repeat(auto-fill, minmax(64px, 1fr)) !important; }
#made .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.caption-label { font-size: 11px !important; padding: 0 4px !important; }
"""  # a gallery is as high as its pictures, which are below its label
EXAMPLES = ["a red heart", "a smiling face", "a green apple", "a blue car"]

Handler = Callable[..., Iterator[tuple[Any, ...]]]


def available_models(root: str | None) -> list[str]:
    """The registry's champion and candidate and the newest local checkpoint, as far as they are available.

    Args:
        root: The root that holds the checkpoint; that of the last training by default.

    Returns:
        Sources for `TextToImage.from_pretrained`, at least one.

    Raises:
        ClipgenError: No model is available.
    """
    models = []
    for alias in (CHAMPION_ALIAS, CANDIDATE):
        try:
            describe(f"models:/{MODEL}@{alias}")
            models.append(f"models:/{MODEL}@{alias}")
        except ClipgenError:
            continue
    try:
        models.append(Storage(root or last_root("transformer")).current("transformer", "the page").path)
    except ClipgenError:
        if not models:
            raise ClipgenError("no model is available: run `make demo`, or name one with -m") from None
    return models


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
    page = build(models).queue(max_size=waiting, default_concurrency_limit=1)
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
    """Build the page and load its first model."""
    load = lru_cache(LOADED_MODELS)(TextToImage.from_pretrained)
    sampling = load(models[0]).parts.sampling
    with gr.Blocks(title=TITLE, delete_cache=(HOUR, HOUR), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nPictures from a model that was trained without captions.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                prompt, generate, picture, vary = _subjects()
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                settings = _settings(models, sampling)
            with gr.Column(scale=2):
                shown = _galleries()
        past = gr.State([])
        from_text, from_picture = _handler(load, of_picture=False), _handler(load, of_picture=True)
        common: dict[str, Any] = {
            "outputs": [*shown, past],
            "concurrency_id": "sampling",
            "show_progress": "minimal",
        }
        events: list[Any] = [
            generate.click(from_text, [prompt, *settings, past], api_name="generate", **common),
            prompt.submit(from_text, [prompt, *settings, past], api_visibility="private", **common),
            vary.click(from_picture, [picture, *settings, past], api_name="vary", **common),
        ]
        stop.click(None, cancels=events)
    return page


def _subjects() -> tuple[gr.Textbox, gr.Button, gr.Image, gr.Button]:
    """A prompt or a picture, each with its button."""
    with gr.Tab("From a text"):
        prompt = gr.Textbox(
            label="Prompt", placeholder=EXAMPLES[0], max_length=MAX_PROMPT_LENGTH, elem_id="prompt"
        )
        gr.Examples(EXAMPLES, prompt)
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
    with gr.Tab("From a picture"):
        picture = gr.Image(label="Picture", type="pil", image_mode="RGB", elem_id="picture")
        vary = gr.Button("Make variations", variant="primary", elem_id="vary")
    return prompt, generate, picture, vary


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


def _handler(load: Callable[[str], TextToImage], of_picture: bool) -> Handler:
    def handle(
        subject: Any, model: str, n: float, seed: float, guidance: float, temperature: float, past: list[Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield what the page shows: previews while codes are sampled, then pictures, scores, neighbours and
        history. The subject is a prompt or a picture."""
        if not subject:
            raise gr.Error("Choose a picture first." if of_picture else "Enter a prompt first.")
        parameters: dict[str, Any] = {"n": int(n), "seed": int(seed)}
        parameters |= {"guidance_scale": guidance, "temperature": temperature}
        kind = "picture" if of_picture else "text"
        try:
            with observed(kind):
                generator = load(model)
                with Sampling(generator, subject, of_picture, parameters) as sampling:
                    for images, progress in sampling.previews():
                        yield images, f"{progress:.0%} of the codes sampled", gr.skip(), gr.skip(), gr.skip()
        except ClipgenError as error:
            raise gr.Error(str(error)) from error
        row = sampling.generated
        PICTURES.labels(kind).inc(len(row))
        request: dict[str, Any] = {"picture": True} if of_picture else {"prompt": subject}
        for one in row:
            score = round(one.clip_score, 4)
            with_parameters(one.image, {**request, **parameters, "model": model, "clip_score": score})
        captioned = [(one.image, f"{one.clip_score:.3f}") for one in row]
        label = "variation" if of_picture else subject[:40]
        past = ([(one.image, f"{label}, seed {int(seed)}") for one in row[:1]] + past)[:HISTORY]
        unread = [] if of_picture else not_read([subject], generator.dropped_tokens([subject]))
        said = " ".join(["The CLIP score is below each picture.", *(f"Note: {one}." for one in unread)])
        yield captioned, said, _neighbours(generator, row[0]), past, past

    return handle


@dataclass
class Sampling:
    """One request, sampled in a thread of its own so that the page can show previews.

    Leaving the `with` early stops the sampling.

    Attributes:
        generator: The generator.
        subject: The prompt, or the picture to vary.
        of_picture: Whether the subject is a picture.
        parameters: Keyword arguments of the generator's call, `n` among them.
        generated: The result, the best first, when all previews have been taken.
    """

    generator: TextToImage
    subject: Any
    of_picture: bool
    parameters: dict[str, Any]

    def __enter__(self) -> "Sampling":
        self._codes: queue.Queue[torch.Tensor | None] = queue.Queue()
        self._stop_requested = threading.Event()
        self._error: BaseException | None = None
        self.generated: list[Generated] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_requested.set()
        self._thread.join()

    def previews(self) -> Iterator[tuple[list[Image.Image], float]]:
        """Yield the unfinished pictures each time a row of codes more is known, and the share of them."""
        side, rows = self.generator.vqgan.config.grid, 0
        while (codes := self._codes.get()) is not None:
            known = int((codes[0] >= 0).sum())
            if known // side > rows:
                rows = known // side
                shown = self.generator.decode_partly(codes[: self.parameters["n"]])
                yield [_unique(image) for image in shown], known / side**2
        if self._error:
            raise self._error

    def _sample(self) -> None:
        call = self.generator.variations if self.of_picture else self.generator.generate_scored
        try:
            (self.generated,) = call([self.subject], on_step=self._step, **self.parameters)
        except BaseException as error:
            self._error = error
        self._codes.put(None)

    def _step(self, codes: torch.Tensor) -> None:
        if self._stop_requested.is_set():
            raise ClipgenError("stopped")
        self._codes.put(codes)


def _neighbours(generator: TextToImage, generated: Generated) -> list[tuple[Image.Image, str]]:
    """The training images nearest to a generated one, if the images table is available."""
    codes = Checkpoint(generator.parts.transformer).codes
    table = find_table(codes.images) if codes.images else None
    if table is None or generator.embeddings is None:
        return []
    cosines = dict(generator.search(generator.embed_images([generated.image])[0], NEAREST))
    images = images_by_id(table, cosines)
    return [(_unique(images[id]), f"{cosine:.3f}") for id, cosine in cosines.items() if id in images]


def _unique(image: Image.Image) -> Image.Image:
    """The image with unique content: Gradio names files by their content, and would write a file while
    another user reads it."""
    return with_parameters(image, {"shown": uuid.uuid4().hex})
