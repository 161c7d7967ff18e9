"""The page in a real browser, served by `clipgen ui` as a process of its own."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, TimeoutError

from benchmarks.page import pixels
from benchmarks.servers import serving
from clipgen_core.data.pixels import fit_square
from clipgen_core.generation.generator import TextToImage
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.browser.conftest import FINISHED, Watched, decoded, finish, png_at, watch
from tests.browser.proxy import proxied
from tests.conftest import COLOURS, SHAPES, SIZE, tiny_transformer_config

pytestmark = pytest.mark.slow
USERS = 16
STOPPED = "document.querySelector('#said')?.innerText === 'Stopped.'"


def click_until(page: Page, done: str) -> None:
    """Generate. Gradio ignores a click while the request before it is being ended."""
    for _ in range(12):
        page.locator("#generate").click()
        with suppress(TimeoutError):
            page.wait_for_function(done, timeout=10_000)
            return
    raise AssertionError(f"not true after 12 clicks: {done}")


def test_a_prompt_becomes_pictures_with_scores_neighbours_and_a_history(
    url: str, tab: Watched, checkpoint: str
) -> None:
    page = tab.page
    page.goto(url)
    page.locator("#prompt textarea").fill("a red disc")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("5")
    finish(page, "#generate")
    assert page.locator("#near img").count() == 8
    assert page.locator("#made img").count() == 4 and page.locator("#history img").count() == 1
    assert page.locator("#made img").first.get_attribute("alt") == "a red disc, picture 1 of 4"
    made = png_at(page, "#made img")
    asked: dict[str, Any] = json.loads(made.info["parameters"])
    assert (
        asked["prompt"] == "a red disc"
        and asked["seed"] == 5
        and asked["model"] == "/".join(Path(checkpoint).parts[-2:])
    )
    settings = {name: asked[name] for name in ("n", "seed", "guidance_scale", "temperature")}
    expected = TextToImage.from_pretrained(checkpoint).generate(["a red disc"], **settings)[0][0]
    assert made.convert("RGB").tobytes() == expected.tobytes()
    with page.expect_download() as saved:
        page.get_by_text("Download all").click()
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert archive.namelist() == [f"a-red-disc-seed-5-{number}.png" for number in range(1, 5)]
        assert archive.read("a-red-disc-seed-5-1.png") == decoded(
            page.locator("#made a[download]").first.get_attribute("href")
        )
    assert tab.problems == []


def test_a_picture_is_enlarged_and_closed_by_keys(url: str, tab: Watched) -> None:
    page = tab.page
    page.goto(f"{url}?prompt=a red disc")
    page.wait_for_function(FINISHED)
    page.locator("#made .picture").first.focus()
    page.keyboard.press("Enter")
    large = page.locator("#enlarged img")
    assert large.bounding_box()["width"] > 600  # type: ignore[index]
    assert large.get_attribute("alt") == "a red disc, picture 1 of 4"
    page.keyboard.press("Escape")
    large.wait_for(state="detached")
    assert page.evaluate("document.activeElement.className") == "picture"


def test_the_address_names_a_request_and_the_history_brings_one_back(url: str, tab: Watched) -> None:
    page = tab.page
    page.goto(f"{url}?prompt=a blue cross&seed=7&n=2")
    page.wait_for_function(FINISHED)
    asked = json.loads(png_at(page, "#made img").info["parameters"])
    assert (asked["prompt"], asked["seed"], asked["n"]) == ("a blue cross", 7, 2)
    page.locator("#prompt textarea").fill("a gold square")
    page.locator("#generate").click()
    page.wait_for_function("document.querySelectorAll('#history img').length === 2")
    page.wait_for_url(lambda address: "prompt=a+gold+square" in address and "seed=7" in address)
    page.get_by_alt_text("a blue cross, seed 7: use these settings again").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a blue cross'")
    assert tab.problems == []


def test_a_seed_that_cannot_be_used_is_a_sentence(url: str, tab: Watched) -> None:
    page = tab.page
    page.goto(url)
    page.locator("#prompt textarea").fill("a red disc")
    page.get_by_role("button", name="Settings").click()
    for seed, sentence in [("", "Seed is empty: enter a number."), ("1e30", "Seed is 1e+30: enter")]:
        page.get_by_label("Seed").fill(seed)
        click_until(page, f"document.querySelector('#said').innerText.startsWith('{sentence}')")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("guidance_scale=x", "Guidance is empty: enter a number."),
        ("guidance_scale=99", "Guidance is 99: enter a number from 1 to 6."),
        ("n=2.5", "Pictures is 2.5: enter an integer from 1 to 8."),
        ("seed=abc", "Seed is empty: enter a number."),
    ],
)
def test_a_setting_of_an_address_that_cannot_be_used_is_a_sentence(
    url: str, tab: Watched, given: str, sentence: str
) -> None:
    tab.page.goto(f"{url}?prompt=a red disc&{given}")
    tab.page.wait_for_function(f"document.querySelector('#said')?.innerText.includes('{sentence}')")


def test_the_training_images_are_searched_and_filtered(url: str, tab: Watched) -> None:
    page = tab.page
    page.goto(url)
    page.get_by_role("tab", name="Browse").click()
    page.get_by_label("Filter in SQL").fill("folder = 'disc'")
    page.locator("#search").click()
    page.wait_for_function("document.querySelector('#said').innerText === '24 of 24 training images.'")
    page.get_by_label("Search", exact=True).fill("a red square")
    page.locator("#search").click()
    page.wait_for_function("document.querySelector('#said').innerText.includes('nearest to the text')")
    shown = page.locator("#made img")
    assert 0 < shown.count() <= 24 and not page.locator("#stop").is_visible()
    named = [shown.nth(i).get_attribute("alt") for i in range(shown.count())]
    assert all(name and name.endswith(".png") and "/" not in name for name in named)
    page.locator("#similar").click()
    page.get_by_text("near-duplicates were not looked for").first.wait_for()
    page.locator("#rejects").click()
    page.get_by_text("Rejected files: none.").wait_for()


def test_a_picture_becomes_variations(url: str, tab: Watched, pictures: Path) -> None:
    page = tab.page
    page.goto(url)
    page.get_by_role("tab", name="Picture").click()
    page.locator("#picture input[type=file]").set_input_files(
        str(pictures / "pictures" / "disc" / "red 32.png")
    )
    page.wait_for_selector("#picture img")
    finish(page, "#vary")
    assert "?" not in page.url  # which says what was generated from a text
    assert json.loads(png_at(page, "#made img").info["parameters"])["picture"] is True
    assert tab.problems == []


@pytest.mark.parametrize("name", ["noise.png", "huge.png"])
def test_an_upload_that_cannot_be_used_is_a_sentence(
    url: str, tab: Watched, name: str, tmp_path: Path
) -> None:
    """The huge one has 144 million pixels in few bytes."""
    page, file = tab.page, tmp_path / name
    file.write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    if name == "huge.png":
        Image.new("1", (12_000, 12_000)).save(file)
    page.goto(url)
    page.get_by_role("tab", name="Picture").click()
    page.locator("#picture input[type=file]").set_input_files(str(file))
    page.wait_for_selector("#picture img")
    page.locator("#vary").click()
    said = page.get_by_text("the picture cannot be used").first
    said.wait_for()
    assert "/" not in said.inner_text() and "send another file" in said.inner_text()


def test_the_page_works_behind_proxies_and_beside_another_users_files(
    checkpoint: str, tab: Watched, pictures: Path, tmp_path: Path
) -> None:
    """One offers it below a path; one for calls to elsewhere does not answer; and Gradio's usual folder for
    uploads cannot be written to."""
    page, taken = tab.page, tmp_path / "gradio"
    taken.write_text("of another user")
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    started = serving(
        "ui",
        checkpoint,
        tmp_path,
        "--root-path",
        "/shop",
        TMPDIR=str(tmp_path),
        GRADIO_TEMP_DIR="",
        **nowhere,
    )
    with started as upstream, proxied(upstream, "/shop") as url:
        page.goto(url)
        page.get_by_role("tab", name="Picture").click()
        page.locator("#picture input[type=file]").set_input_files(
            str(pictures / "pictures" / "disc" / "red 32.png")
        )
        page.wait_for_selector("#picture img")
        finish(page, "#vary")
        assert page.locator("#made img").count() == 4
    assert len(tab.problems) <= 1  # Gradio's page asks for /manifest.json, which is not below the path


def test_a_part_of_a_picture_is_painted_over_and_generated_anew(
    any_order: str, tab: Watched, pictures: Path, tmp_path: Path
) -> None:
    page, red = tab.page, tmp_path / "red.png"
    with Image.open(pictures / "pictures" / "disc" / "red 32.png") as image:
        image.resize((320, 320), Image.Resampling.NEAREST).save(red)
    with serving("ui", any_order, tmp_path) as url:
        page.goto(url)
        page.get_by_role("tab", name="Edit").click()
        page.locator("#edit").click()
        page.wait_for_selector("text=Choose a picture first.")
        page.locator("#drawn input[type=file]").first.set_input_files(str(red))
        canvas = page.locator("#drawn canvas").first
        canvas.wait_for()
        page.wait_for_timeout(1000)
        box = canvas.bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 5, y, steps=4)
        page.mouse.up()
        page.locator("#wanted textarea").fill("a blue disc")
        finish(page, "#edit")
        made = png_at(page, "#made img")
    assert json.loads(made.info["parameters"])["prompt"] == "a blue disc"
    kept = np.asarray(made.convert("RGB")) == np.asarray(fit_square(Image.open(red), SIZE))
    assert kept[:4].all() and kept[:, :4].all()  # far from the paint
    assert not kept[12:20, 12:20].all()  # under it
    assert tab.problems == []


def test_an_empty_prompt_is_said_on_the_page(url: str, tab: Watched) -> None:
    tab.page.goto(url)
    tab.page.locator("#generate").click()
    tab.page.wait_for_selector("text=Enter a prompt first.")
    assert tab.page.locator("#made img").count() == 0


def test_stop_ends_what_is_being_sampled(pipeline: Storage, browser: Browser, tmp_path: Path) -> None:
    """By a model that is slow enough to be stopped: untrained, wide, and of many candidates."""
    config = tiny_transformer_config(1)
    wide = config.model.model_copy(update={"width": 768, "layers": 12, "heads": 12})
    many = config.sampling.model_copy(update={"candidates": 32})
    slow = transformer.run(
        config.model_copy(update={"model": wide, "sampling": many}),
        tokens=pipeline.current("tokens", "tests").path,
        out=Storage(str(tmp_path / "root")),
        tracker=NullTracker(),
    ).checkpoint
    with serving("ui", slow, tmp_path) as url:
        for tab in watch(browser, "light"):
            page = tab.page
            page.goto(url)
            page.locator("#prompt textarea").fill("a red disc")
            for _ in range(8):  # on a busy machine, the browser may be slower than the model
                click_until(page, "document.querySelector('#said').innerText.includes('sampled')")
                page.locator("#stop").click()
                page.wait_for_function(f"({STOPPED}) || ({FINISHED})")
                if count(page, url, 'requests_total{ended="stopped",kind="text"}'):
                    break
            assert count(page, url, 'requests_total{ended="stopped",kind="text"}') == 1
            assert page.locator("#said").inner_text() == "Stopped."
            before = count(page, url, 'requests_total{ended="made",kind="text"}')
            click_until(page, "document.querySelector('#said').innerText.includes('sampled')")
            page.wait_for_function(FINISHED)
            assert count(page, url, 'requests_total{ended="made",kind="text"}') == before + 1
            assert count(page, url, 'pictures_total{kind="text"}') == 4 * (before + 1)
            assert count(page, url, 'request_seconds_count{kind="text"}') == before + 1
            assert count(page, url, "requests_working") == 0


def count(page: Page, url: str, metric: str) -> float:
    """A metric of the page's; 0 where nothing was counted yet."""
    lines = page.request.get(f"{url}/metrics").text().splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.startswith(f"clipgen_{metric} ")]
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize(
    "given", [{"n": 100}, {"model": "/etc"}, {"prompt": "x" * 1001}, {"temperature": 0}, {"seed": -1}]
)
def test_requests_past_the_pages_limits_are_refused(url: str, given: dict[str, Any]) -> None:
    asked = {"prompt": "a disc", "n": 1, "seed": 0} | given
    client = gradio_client.Client(url, verbose=False, download_files=False)
    with pytest.raises(Exception, match=r"(?i)(not in the list|characters|enter an? )"):
        client.predict(**asked, api_name="/generate")


def test_sixteen_users_at_once_each_get_their_own_pictures(url: str, checkpoint: str) -> None:
    prompts = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS][:USERS]
    clients = [gradio_client.Client(url, verbose=False, download_files=False) for _ in prompts]

    def ask(number: int) -> bytes:
        answer = clients[number].predict(
            prompts[number], n=1, seed=number, guidance_scale=2.0, temperature=0.9, api_name="/generate"
        )
        return pixels(answer)

    with ThreadPoolExecutor(USERS) as threads:
        got = list(threads.map(ask, range(USERS)))
    generator = TextToImage.from_pretrained(checkpoint)
    for number, prompt in enumerate(prompts):
        settings = {"seed": number, "guidance_scale": 2.0, "temperature": 0.9}
        expected = generator.generate([prompt], **settings)[0][0]
        assert got[number] == expected.tobytes(), prompt
