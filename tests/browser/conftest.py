"""Chromium for the tests of pages, from the system's packages (`apt-get install chromium`)."""

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Request, sync_playwright

from benchmarks.servers import serving

FINISHED = "document.querySelector('#said')?.innerText.includes('CLIP score')"
QUIET = [  # no call to anywhere but the page
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass
class Watched:
    """A tab, and everything that went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def failed(self, asked: Request) -> None:
        """Note a failed request, unless the page itself gave it up: a preview that a newer one replaced."""
        if asked.failure != "net::ERR_ABORTED":
            self.problems.append(f"{asked.url}: {asked.failure}")


@pytest.fixture(scope="module")  # its event loop must not outlive the tests of pages
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Watched]:
    yield from watch(browser, request.param)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Watched]:
    yield from watch(browser, "light")


def watch(browser: Browser, scheme: str) -> Iterator[Watched]:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})  # type: ignore[arg-type]
    page.set_default_timeout(120_000)  # of milliseconds: the machine may be busy
    seen = Watched(page)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("console", lambda said: seen.problems.append(said.text) if said.type == "error" else None)
    page.on("requestfailed", seen.failed)
    yield seen
    page.close()


@pytest.fixture(scope="session")
def url(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("ui", checkpoint, tmp_path_factory.mktemp("ui")) as address:
        yield address


def decoded(source: str | None) -> bytes:
    assert source
    return base64.b64decode(source.partition(";base64,")[2])


def png_at(page: Page, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(decoded(page.locator(selector).first.get_attribute("src"))))


def finish(page: Page, button: str) -> None:
    page.locator(button).click()
    page.wait_for_function(FINISHED)
