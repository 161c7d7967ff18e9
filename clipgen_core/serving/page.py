"""A page that generates pictures in the browser (Gradio): its layout, and what its elements are linked to.

Knows the page's parts; knows nothing of how pictures are generated.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if not os.environ.get("GRADIO_TEMP_DIR"):  # read when Gradio is imported; the usual one may be another user's
    SCRATCH = tempfile.TemporaryDirectory(prefix="clipgen-ui-")
    os.environ["GRADIO_TEMP_DIR"] = SCRATCH.name

import gradio as gr
import uvicorn
from fastapi import FastAPI

from clipgen_core import logs
from clipgen_core.serving.answers import RANGES, Answers, Past
from clipgen_core.serving.browse import Browse, root_behind
from clipgen_core.serving.examples import examples_of
from clipgen_core.serving.models import Models, require_available
from clipgen_core.serving.monitoring import ROUTE
from clipgen_core.serving.pictures import FILES, pictures
from clipgen_core.serving.server import ignore_stops, is_local, listening, url_of
from clipgen_core.settings.sampling import MAX_PROMPT_LENGTH, SamplingConfig

AT_ONCE = 16  # users whose pictures are sampled together
EXAMPLES = 4
HOUR = 3600
GRACE = 5  # seconds that an open connection may take when the page ends
TITLE = "clip-gen"
PAINT = ("#ff8000", 0.6)
SCRIPT = (FILES / "page.js").read_text()


@dataclass(frozen=True)
class Inputs:
    """What a visitor fills in: three kinds of request, and the settings of all of them, in their order."""

    prompt: gr.Textbox
    picture: gr.Image
    painted: gr.ImageMask
    change: gr.Textbox
    settings: dict[str, Any]


def serve(models: Sequence[str], *, host: str, port: int, root_path: str, waiting: int) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: Sources for `TextToImage.from_pretrained`, the default model first.
        host: The address to listen at.
        port: The port to listen at; 0 for a free one.
        root_path: Where a proxy offers the page, as a path or a URL; empty without one.
        waiting: Requests that may wait in the queue; more are refused.

    Raises:
        ClipgenError: The first model cannot be loaded, or the address or port cannot be used.
    """
    require_available(models)
    with listening(host, port) as listener, tempfile.TemporaryDirectory(prefix="clipgen-ui-") as scratch:
        if not os.environ.get("GRADIO_TEMP_DIR"):  # the usual one may be another user's
            os.environ["GRADIO_TEMP_DIR"] = scratch
        config = uvicorn.Config(
            app(models, root_path=root_path, waiting=waiting),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE,
        )
        if not is_local(listener):
            logs.line("anyone who reaches this address can use the page")
        logs.line(f"the page is at {url_of(listener)}")
        ignore_stops()
        uvicorn.Server(config).run([listener])
    logs.line("stopped")


def app(models: Sequence[str], *, root_path: str, waiting: int) -> FastAPI:
    """The page as an application of ASGI; see `serve`.

    Args:
        models: The models, the default first.
        root_path: Where a proxy offers the page.
        waiting: Requests that may wait.

    Returns:
        The application.
    """
    page = build(models).queue(max_size=waiting, default_concurrency_limit=AT_ONCE)
    return gr.mount_gradio_app(
        FastAPI(routes=[ROUTE], openapi_url=None),
        page,
        "/",
        root_path=root_path or None,
        theme=_theme(),
        css=(FILES / "page.css").read_text(),
        js=SCRIPT,
        show_error=False,  # of errors that are not for visitors, which may show paths
        max_file_size="20mb",
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
    )


def build(models: Sequence[str]) -> gr.Blocks:
    """Build the page and load its models once, the first one last."""
    offered = Models(models)
    first = offered.find(None)
    generator, root = offered.load(first), root_behind(offered, first)
    answers = Answers(offered)
    with gr.Blocks(title=TITLE, delete_cache=(HOUR, HOUR), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nPictures from a model that was trained without captions.")
        with gr.Row(elem_id="layout"):
            with gr.Column(min_width=0, elem_id="form"):
                with gr.Tabs(elem_id="subjects") as tabs:
                    inputs, buttons = _subjects(examples_of(root, EXAMPLES))
                    browsing = _training_images(visible=root is not None)
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                inputs.settings.update(_settings(list(offered.served), generator.parts.sampling))
            with gr.Column(min_width=0, elem_id="results"):
                said, made = _status(), pictures("Pictures", "made")
            with gr.Column(min_width=0, elem_id="more"):
                near, history = pictures("Nearest", "near"), pictures("History", "history", "select")
                past = gr.State([])
        shown = [made, said, near, history, past]
        _link(page, answers, inputs, buttons, shown, stop)
        _link_history(inputs, tabs, history, past)
        _link_browse(Browse(offered), browsing, inputs.settings["model"], [made, said], near)
    return page


def _theme() -> gr.Theme:
    """Colours with a contrast of 4.5 at least, in both modes."""
    theme = gr.themes.Default(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    filled = {"button_primary_text_color": "white", "button_primary_text_color_dark": "white"}
    for name in ("background_fill", "background_fill_dark", "border_color", "border_color_dark"):
        filled[f"button_primary_{name}"] = "*primary_700"
    for name in ("background_fill_hover", "background_fill_hover_dark"):
        filled[f"button_primary_{name}"] = "*primary_800"
    return theme.set(**filled, color_accent="*primary_700", body_text_color_subdued="*neutral_500")


def _subjects(examples: Sequence[str]) -> tuple[Inputs, list[gr.Button]]:
    """A prompt, a picture, or a picture to paint on with a prompt, each with its button."""
    with gr.Tab("Text", id="text"):
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="What the pictures should show",
            max_length=MAX_PROMPT_LENGTH,
            elem_id="prompt",
        )
        if examples:
            gr.Examples(list(examples), prompt)
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
    with gr.Tab("Picture", id="picture"):
        picture = gr.Image(label="Picture", elem_id="picture", sources=["upload", "clipboard"])
        picture.preprocess = _file  # type: ignore[assignment]  # else Gradio decodes, and shows paths
        vary = gr.Button("Make variations", variant="primary", elem_id="vary")
    with gr.Tab("Edit", id="edit"):
        gr.Markdown("Paint over what is to change.")
        painted = gr.ImageMask(
            label="Picture",
            show_label=False,  # it would lie under the tools
            format="png",
            brush=gr.Brush(colors=[PAINT], default_color=PAINT, color_mode="fixed"),
            elem_id="drawn",
        )
        painted.convert_and_format_image = _file  # type: ignore[assignment]
        change = gr.Textbox(
            label="Prompt",
            placeholder="What the whole picture should show; empty: what it shows now",
            max_length=MAX_PROMPT_LENGTH,
            elem_id="wanted",
        )
        edit = gr.Button("Edit", variant="primary", elem_id="edit")
    return Inputs(prompt, picture, painted, change, {}), [generate, vary, edit]


def _training_images(visible: bool) -> list[Any]:
    """What is looked for among the training images, the buttons, and the list of rejects."""
    with gr.Tab("Browse", id="browse", elem_id="browse", visible=visible):
        query = gr.Textbox(label="Search", placeholder="What they show; empty: any", elem_id="query")
        where = gr.Textbox(
            label="Filter in SQL", placeholder="width >= 256 AND format = 'JPEG'", elem_id="where"
        )
        search = gr.Button("Search", variant="primary", elem_id="search")
        with gr.Row():
            similar = gr.Button("Near-duplicates", size="sm", elem_id="similar")
            rejected = gr.Button("Rejects", size="sm", elem_id="rejects")
        listed = gr.HTML(None, html_template=(FILES / "rejects.html").read_text(), elem_id="rejected")
    return [query, where, search, similar, rejected, listed]


def _file(sent: Any, **_: Any) -> bytes | None:
    """The bytes of a file that was sent, which is in memory or in the temporary folder."""
    if sent is None or isinstance(sent, bytes):
        return sent
    return Path(sent.path).read_bytes() if sent.path else None


def _settings(models: Sequence[str], sampling: SamplingConfig) -> dict[str, Any]:
    """The settings of a request, with the model's defaults, by the names of `Chosen`."""
    others: list[Any] = [("no other model", ""), *models]
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        model = gr.Dropdown(list(models), value=models[0], label="Model")
        compare_with = gr.Dropdown(others, value="", label="Compare with", visible=len(models) > 1)
        return {
            "model": model,
            "n": _slider("n", 4, 1),
            "seed": gr.Number(0, precision=0, label="Seed", elem_id="seed"),
            "guidance_scale": _slider("guidance_scale", sampling.guidance_scale, 0.1),
            "temperature": _slider("temperature", sampling.temperature, 0.05),
            "compare_with": compare_with,
        }


def _slider(name: str, value: float, step: float) -> gr.Slider:
    label, least, most = RANGES[name]
    slider = gr.Slider(least, most, value, step=step, label=label)
    slider.preprocess = lambda sent: sent  # type: ignore[assignment]  # `Chosen` says what is wrong
    return slider


def _status() -> gr.HTML:
    """A line that screen readers read out when it changes."""
    return gr.HTML(
        "Your pictures will appear here.",
        label="Status",
        html_template="{{value}}",
        js_on_load="element.setAttribute('role', 'status')",
        elem_id="said",
    )


def _link(
    page: gr.Blocks,
    answers: Answers,
    inputs: Inputs,
    buttons: Sequence[gr.Button],
    shown: Sequence[Any],
    stop: gr.Button,
) -> None:
    """Let the buttons generate, and the address say what was generated from a prompt."""
    _, said, *_, past = shown
    generate, vary, edit = buttons
    answered: dict[str, Any] = {
        "inputs_kwargs": inputs.settings | {"past": past},
        "outputs": list(shown),
        "concurrency_id": "sampling",
        "show_progress": "hidden",  # the status line says more; Gradio would write "Error" after a stop
    }
    asked: list[tuple[Any, Any, list[Any], Any]] = [
        (generate.click, answers.generate, [inputs.prompt], "public"),
        (inputs.prompt.submit, answers.generate, [inputs.prompt], "private"),
        (vary.click, answers.vary, [inputs.picture], "public"),
        (edit.click, answers.edit, [inputs.painted, inputs.change], "public"),
    ]
    events: list[Any] = []
    linked = [inputs.prompt, *inputs.settings.values()]
    for on, answer, given, visible in asked:
        on(None, js="() => clipgen.begin()", outputs=said, show_progress="hidden")
        event = on(answer, given, api_visibility=visible, **answered)
        event.failure(None, said, said, js="(said) => clipgen.failed(said)", show_progress="hidden")
        if answer == answers.generate:
            event.success(None, linked, js="(...given) => clipgen.link(given)")
        else:
            event.success(None, js="() => clipgen.unlink()")
        events.append(event)
    # Gradio ends a handler only while it waits between two of its answers, and what waits in the queue
    stop.click(answers.stop, outputs=said, cancels=events, api_visibility="private", queue=False)
    page.load(None, linked, linked, js="(...given) => clipgen.linked(given)").then(
        None, js="() => clipgen.run()"
    )


def _link_history(inputs: Inputs, tabs: gr.Tabs, history: gr.HTML, past: gr.State) -> None:
    """Let a click on a picture of the history bring back what it was generated from."""

    def bring_back(past: Past, event: gr.EventData) -> list[Any]:
        one = past[event.index]
        return [gr.Tabs(selected=one["kind"]), one["prompt"], one["prompt"], *one["settings"]]

    fields = [tabs, inputs.prompt, inputs.change, *inputs.settings.values()]
    history.select(bring_back, past, fields, api_visibility="private", queue=False, show_progress="hidden")


def _link_browse(
    browse: Browse, browsing: list[Any], model: gr.Dropdown, found: list[gr.HTML], near: gr.HTML
) -> None:
    """Let the buttons of the tab for training images show them where generated pictures are shown."""
    query, where, search, similar, rejected, listed = browsing
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    asked: list[tuple[Any, Any, list[Any], Any]] = [
        on(browse.search, [query, where, model], found, **quick)
        for on in (search.click, query.submit, where.submit)
    ]
    for event in [*asked, similar.click(browse.duplicates, model, found, **quick)]:
        event.success(None, js="() => [[]]", outputs=near)  # it is of a picture that is no longer shown
    rejected.click(browse.rejects, model, listed, **quick)
