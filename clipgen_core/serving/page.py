"""A page to generate pictures in the browser (Gradio). Knows the generator's call, not what is inside.

Requests wait in one queue, in order; the page watches its pictures appear row by row, while they are sampled.
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

from clipgen_core.data.images import pictures_by_id
from clipgen_core.data.pixels import with_parameters
from clipgen_core.data.tables import find_table
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import MAX_PROMPT_LENGTH, Generated
from clipgen_core.registry.champions import CANDIDATE, CHAMPION_ALIAS, MODEL
from clipgen_core.serving.monitoring import PICTURES, ROUTE, observed
from clipgen_core.storage import Storage, last_root
from clipgen_core.tracking import describe
from clipgen_core.training.checkpoint import Checkpoint

MOST_PICTURES = 8
KEPT = 24  # pictures of the history
MODELS_AT_ONCE = 2  # in memory
NEAREST = 8
HOUR = 3600
TITLE = "clip-gen"
STYLE = """
.grid-wrap { min-height: 0 !important; padding-top: 40px !important; }
.grid-container { grid: auto-flow auto / repeat(auto-fill, minmax(64px, 1fr)) !important; }
#made .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.caption-label { font-size: 11px !important; padding: 0 4px !important; }
"""  # a gallery is as high as its pictures, which stand below its label
EXAMPLES = ["a red heart", "a smiling face", "a green apple", "a blue car"]

Handler = Callable[..., Iterator[tuple[Any, ...]]]


def offered(root: str | None) -> list[str]:
    """The registry's champion and candidate and the last local run, as far as there are any.

    Raises:
        ClipgenError: there is none.
    """
    found = []
    for alias in (CHAMPION_ALIAS, CANDIDATE):
        try:
            describe(f"models:/{MODEL}@{alias}")
            found.append(f"models:/{MODEL}@{alias}")
        except ClipgenError:
            continue
    try:
        found.append(Storage(root or last_root("transformer")).current("transformer", "the page").path)
    except ClipgenError:
        if not found:
            raise ClipgenError("there is no model to show: run `make demo`, or name one with -m") from None
    return found


def serve(models: Sequence[str], *, host: str, port: int, waiting: int) -> None:
    """Serve the page until it is interrupted.

    Args:
        waiting: requests that may wait; more are refused.
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
        raise ClipgenError(f"the page cannot listen at {host}:{port} ({error}): choose --port") from error


def build(models: Sequence[str]) -> gr.Blocks:
    """The page, with the first model loaded."""
    load = lru_cache(MODELS_AT_ONCE)(TextToImage.from_pretrained)
    sampling = load(models[0]).parts.sampling
    with gr.Blocks(title=TITLE, delete_cache=(HOUR, HOUR), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nPictures from a model that never saw a caption.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                with gr.Tab("From a text"):
                    prompt = gr.Textbox(
                        label="Prompt",
                        placeholder=EXAMPLES[0],
                        max_length=MAX_PROMPT_LENGTH,
                        elem_id="prompt",
                    )
                    gr.Examples(EXAMPLES, prompt)
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                with gr.Tab("From a picture"):
                    picture = gr.Image(label="Picture", type="pil", image_mode="RGB", elem_id="picture")
                    vary = gr.Button("Make variations", variant="primary", elem_id="vary")
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                with gr.Accordion("Settings", open=True):
                    settings = [
                        gr.Dropdown(list(models), value=models[0], label="Model"),
                        gr.Slider(1, MOST_PICTURES, 4, step=1, label="Pictures"),
                        gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed"),
                        gr.Slider(1, 6, sampling.guidance_scale, step=0.1, label="Guidance"),
                        gr.Slider(0.1, 1.5, sampling.temperature, step=0.05, label="Temperature"),
                    ]
            with gr.Column(scale=2):
                made = gr.Gallery(
                    label="Pictures, the best first",
                    format="png",
                    height="auto",
                    object_fit="contain",
                    elem_id="made",
                )
                said = gr.Markdown(elem_id="said")
                near = gr.Gallery(
                    label="Nearest training pictures", format="png", height="auto", elem_id="near"
                )
                history = gr.Gallery(label="History", format="png", height="auto", elem_id="history")
        kept = gr.State([])
        shown = [made, said, near, history, kept]
        from_text, from_picture = _handler(load, of_picture=False), _handler(load, of_picture=True)
        common: dict[str, Any] = {"outputs": shown, "concurrency_id": "sampling", "show_progress": "minimal"}
        events: list[Any] = [
            generate.click(from_text, [prompt, *settings, kept], api_name="generate", **common),
            prompt.submit(from_text, [prompt, *settings, kept], api_visibility="private", **common),
            vary.click(from_picture, [picture, *settings, kept], api_name="vary", **common),
        ]
        stop.click(None, cancels=events)
    return page


def _handler(load: Callable[[str], TextToImage], of_picture: bool) -> Handler:
    def handle(
        given: Any, model: str, n: float, seed: float, guidance: float, temperature: float, kept: list[Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield what the page shows: rows as they are sampled, then pictures, scores, neighbours, history."""
        if not given:
            raise gr.Error("Choose a picture first." if of_picture else "Say what the picture should show.")
        parameters: dict[str, Any] = {"n": int(n), "seed": int(seed)}
        parameters |= {"guidance_scale": guidance, "temperature": temperature}
        kind = "picture" if of_picture else "text"
        try:
            with observed(kind):
                generator = load(model)
                with Sampling(generator, given, of_picture, parameters) as sampling:
                    for images, progress in sampling.previews():
                        yield images, f"{progress:.0%} of the codes sampled", gr.skip(), gr.skip(), gr.skip()
        except ClipgenError as error:
            raise gr.Error(str(error)) from error
        row = sampling.made
        PICTURES.labels(kind).inc(len(row))
        asked: dict[str, Any] = {"picture": True} if of_picture else {"prompt": given}
        for one in row:
            score = round(one.clip_score, 4)
            with_parameters(one.image, {**asked, **parameters, "model": model, "clip_score": score})
        captioned = [(one.image, f"{one.clip_score:.3f}") for one in row]
        label = "variation" if of_picture else given[:40]
        kept = ([(one.image, f"{label}, seed {int(seed)}") for one in row[:1]] + kept)[:KEPT]
        yield captioned, "CLIP score on each picture.", _neighbours(generator, row[0]), kept, kept

    return handle


@dataclass
class Sampling:
    """One request, sampled in a thread of its own so that the page can watch; leaving it early ends it."""

    generator: TextToImage
    given: Any
    of_picture: bool
    parameters: dict[str, Any]

    def __enter__(self) -> "Sampling":
        self._codes: queue.Queue[torch.Tensor | None] = queue.Queue()
        self._left = threading.Event()
        self._failed: BaseException | None = None
        self.made: list[Generated] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()

    def previews(self) -> Iterator[tuple[list[Image.Image], float]]:
        """Pictures as far as they are sampled, after each row of codes, and the share that is done."""
        side = self.generator.vqgan.config.grid
        while (codes := self._codes.get()) is not None:
            if codes.shape[1] % side == 0:
                shown = self.generator.decode_partly(codes[: self.parameters["n"]])
                yield [_own(image) for image in shown], codes.shape[1] / side**2
        if self._failed:
            raise self._failed

    def _sample(self) -> None:
        call = self.generator.variations if self.of_picture else self.generator.generate_scored
        try:
            (self.made,) = call([self.given], on_step=self._step, **self.parameters)
        except BaseException as error:
            self._failed = error
        self._codes.put(None)

    def _step(self, codes: torch.Tensor) -> None:
        if self._left.is_set():
            raise ClipgenError("stopped")
        self._codes.put(codes)


def _neighbours(generator: TextToImage, made: Generated) -> list[tuple[Image.Image, str]]:
    """The training pictures nearest to a made one, where the pictures are at hand."""
    codes = Checkpoint(generator.parts.transformer).codes
    table = find_table(codes.images) if codes.images else None
    if table is None or generator.embeddings is None:
        return []
    found = dict(generator.search(generator.embed_images([made.image])[0], NEAREST))
    pictures = pictures_by_id(table, found)
    return [(_own(pictures[id]), f"{cosine:.3f}") for id, cosine in found.items() if id in pictures]


def _own(image: Image.Image) -> Image.Image:
    """The picture, as a file of its own: Gradio names files by their content and would write one that another
    user is just reading."""
    return with_parameters(image, {"shown": uuid.uuid4().hex})
