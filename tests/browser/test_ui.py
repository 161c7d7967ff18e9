"""The page in a real browser, served by `clipgen ui` as a process of its own."""

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from benchmarks.servers import serving
from clipgen_core.data.pixels import fit_square
from clipgen_core.generation.generator import TextToImage
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.browser.conftest import Watched, watch
from tests.conftest import COLOURS, SHAPES, SIZE, tiny_transformer_config

pytestmark = pytest.mark.slow
USERS = 16


@pytest.fixture(scope="module")
def url(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("ui", checkpoint, tmp_path_factory.mktemp("ui")) as address:
        yield address


def png_at(tab: Watched, selector: str) -> Image.Image:
    source = tab.page.locator(selector).first.get_attribute("src")
    assert source
    return Image.open(io.BytesIO(tab.page.request.get(source).body()))


def test_a_prompt_becomes_pictures_with_scores_neighbours_and_a_history(
    url: str, tab: Watched, checkpoint: str, tmp_path: Path
) -> None:
    page = tab.page
    page.goto(url)
    page.locator("#prompt textarea").fill("a red disc")
    page.locator("#seed input").fill("5")
    page.locator("#generate").click()
    page.wait_for_function("document.querySelector('#said').innerText.includes('CLIP score')", timeout=60_000)
    page.wait_for_function("document.querySelectorAll('#near img').length === 8", timeout=30_000)
    assert page.locator("#made img").count() >= 4 and page.locator("#history img").count() >= 1
    made = png_at(tab, "#made img")
    asked: dict[str, Any] = json.loads(made.info["parameters"])
    assert asked["prompt"] == "a red disc" and asked["seed"] == 5 and asked["model"] == Path(checkpoint).name
    settings = {name: asked[name] for name in ("n", "seed", "guidance_scale", "temperature")}
    expected = TextToImage.from_pretrained(checkpoint).generate(["a red disc"], **settings)[0][0]
    assert made.convert("RGB").tobytes() == expected.tobytes()
    page.screenshot(path=tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").size == (1280, 900)
    assert tab.problems == []


def test_a_picture_becomes_variations(url: str, tab: Watched, pictures: Path) -> None:
    page = tab.page
    page.goto(url)
    page.get_by_role("tab", name="From a picture").click()
    page.locator("#picture input[type=file]").set_input_files(
        str(pictures / "pictures" / "disc" / "red 32.png")
    )
    page.wait_for_selector("#picture img", timeout=30_000)
    page.locator("#vary").click()
    page.wait_for_function("document.querySelector('#said').innerText.includes('CLIP score')", timeout=60_000)
    assert json.loads(png_at(tab, "#made img").info["parameters"])["picture"] is True
    assert tab.problems == []


def test_a_part_of_a_picture_is_painted_over_and_generated_anew(
    any_order: str, tab: Watched, pictures: Path, tmp_path: Path
) -> None:
    page, red = tab.page, tmp_path / "red.png"
    with Image.open(pictures / "pictures" / "disc" / "red 32.png") as image:
        image.resize((320, 320), Image.Resampling.NEAREST).save(red)
    with serving("ui", any_order, tmp_path) as url:
        page.goto(url)
        page.get_by_role("tab", name="Edit a picture").click()
        page.locator("#edit").click()
        page.wait_for_selector("text=Choose a picture first.", timeout=30_000)
        page.locator("#drawn input[type=file]").first.set_input_files(str(red))
        canvas = page.locator("#drawn canvas").first
        canvas.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)
        box = canvas.bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 5, y, steps=4)
        page.mouse.up()
        page.locator("#wanted textarea").fill("a blue disc")
        page.locator("#edit").click()
        page.wait_for_function(
            "document.querySelector('#said').innerText.includes('CLIP score')", timeout=60_000
        )
        made = png_at(tab, "#made img")
        page.screenshot(path=tmp_path / "edit.png")
    assert json.loads(made.info["parameters"])["prompt"] == "a blue disc"
    kept = np.asarray(made.convert("RGB")) == np.asarray(fit_square(Image.open(red), SIZE))
    assert kept[:4].all() and kept[:, :4].all()  # far from the paint
    assert not kept[12:20, 12:20].all()  # under it
    assert tab.problems == []


def test_an_empty_prompt_is_said_on_the_page(url: str, tab: Watched) -> None:
    tab.page.goto(url)
    tab.page.locator("#generate").click()
    tab.page.wait_for_selector("text=Enter a prompt first.", timeout=30_000)
    assert tab.page.locator("#made img").count() == 0


def test_stop_ends_what_is_being_sampled(pipeline: Storage, browser: Browser, tmp_path: Path) -> None:
    """By a model that is slow enough to be stopped: untrained, and wide."""
    config = tiny_transformer_config(1)
    wide = config.model.model_copy(update={"width": 768, "layers": 12, "heads": 12})
    slow = transformer.run(
        config.model_copy(update={"model": wide}),
        tokens=pipeline.current("tokens", "tests").path,
        out=Storage(str(tmp_path / "root")),
        tracker=NullTracker(),
    ).checkpoint
    with serving("ui", slow, tmp_path) as url:
        for tab in watch(browser, "light"):
            page = tab.page
            page.goto(url)
            page.locator("#prompt textarea").fill("a red disc")
            page.locator("#generate").click()
            page.wait_for_function(
                "document.querySelector('#said').innerText.includes('sampled')", timeout=60_000
            )
            page.locator("#stop").click()
            metrics = f"{url}/metrics"
            until = time.monotonic() + 30
            stopped = 'clipgen_requests_total{ended="stopped",kind="text"} 1.0'
            while stopped not in page.request.get(metrics).text() and time.monotonic() < until:
                time.sleep(0.2)
            assert stopped in page.request.get(metrics).text()
            assert "sampled" in page.locator("#said").inner_text()
            page.locator("#generate").click()
            page.wait_for_function(
                "document.querySelector('#said').innerText.includes('CLIP score')", timeout=60_000
            )
            said = page.request.get(metrics).text()
            assert 'clipgen_requests_total{ended="made",kind="text"} 1.0' in said
            assert 'clipgen_pictures_total{kind="text"} 4.0' in said
            assert "clipgen_requests_working 0.0" in said
            assert 'clipgen_request_seconds_count{kind="text"} 1.0' in said


@pytest.mark.parametrize(
    "given", [{"n": 100}, {"model": "/etc"}, {"prompt": "x" * 1001}, {"temperature": 0}, {"seed": -1}]
)
def test_requests_past_the_pages_limits_are_refused(url: str, checkpoint: str, given: dict[str, Any]) -> None:
    asked = {
        "prompt": "a disc",
        "model": Path(checkpoint).name,
        "n": 1,
        "seed": 0,
        "guidance": 2,
        "temperature": 0.9,
    }
    asked |= given
    client = gradio_client.Client(url, verbose=False, download_files=False)
    with pytest.raises(Exception, match=r"(?i)(minimum|maximum|not in the list|characters|less|greater)"):
        client.predict(*asked.values(), api_name="/generate")


def test_sixteen_users_at_once_each_get_their_own_pictures(url: str, checkpoint: str, tmp_path: Path) -> None:
    prompts = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS][:USERS]
    clients = [gradio_client.Client(url, verbose=False, download_files=tmp_path) for _ in prompts]

    def ask(number: int) -> bytes:
        gallery = clients[number].predict(
            prompts[number], Path(checkpoint).name, 1, number, 2.0, 0.9, api_name="/generate"
        )[0]
        picture: bytes = Image.open(gallery[0]["image"]).convert("RGB").tobytes()
        return picture

    with ThreadPoolExecutor(USERS) as threads:
        got = list(threads.map(ask, range(USERS)))
    generator = TextToImage.from_pretrained(checkpoint)
    for number, prompt in enumerate(prompts):
        settings = {"seed": number, "guidance_scale": 2.0, "temperature": 0.9}
        expected = generator.generate([prompt], **settings)[0][0]
        assert got[number] == expected.tobytes(), prompt
