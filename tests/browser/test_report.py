"""The evaluation report in a real browser."""

from pathlib import Path

import pytest
from PIL import Image

from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.browser.conftest import Watched


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, checkpoint: str, pipeline: Storage
) -> Path:
    config = evaluation.Config(scored=10, candidates=1, images_shown=2, reconstructions=4)
    result = evaluation.run(
        config,
        transformer=checkpoint,
        images=pipeline.images,
        prompts=str(pictures / "prompts.csv"),
        out=Storage(str(tmp_path_factory.mktemp("report"))),
        tracker=NullTracker(),
        champion=checkpoint,
    )
    return Path(result.report)


@pytest.mark.slow
def test_the_report_opens_without_errors_in_both_schemes(
    report: Path, themed: Watched, tmp_path: Path
) -> None:
    page = themed.page
    page.goto(report.as_uri())
    assert page.title().startswith("text-to-image model: evaluation of 20")
    broken = "() => [...document.images].filter(image => !image.naturalWidth).length"
    assert page.evaluate("document.images.length") > 30 and page.evaluate(broken) == 0
    assert page.locator(".gauge").count() >= 1 and page.locator("tr.ours").count() >= 3
    assert page.locator("h3:text('Against the champion')").count() == 1
    page.locator(".gallery summary").first.click()
    enlarged = page.locator(".gallery details[open]").first
    image, nearest = (enlarged.locator(f"{one} img").bounding_box() for one in ("summary", ".large"))
    assert image and nearest and image["width"] == nearest["width"] >= 200
    assert nearest["x"] > image["x"] + image["width"] and abs(nearest["y"] - image["y"]) < 2
    wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert not wide
    page.set_viewport_size({"width": 390, "height": 800})
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    below = enlarged.locator(".large img").bounding_box()
    assert below and below["x"] + below["width"] <= 390
    page.screenshot(path=tmp_path / "report.png")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    corner = Image.open(tmp_path / "report.png").convert("L").getpixel((2, 2))
    assert isinstance(corner, int) and (corner < 60 if dark else corner > 220)
    assert themed.problems == []
