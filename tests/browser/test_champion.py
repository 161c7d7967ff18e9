"""The page follows MLflow's registry: after a promotion and a roll-back it shows pictures of the champion."""

import json
from pathlib import Path

import pytest

from benchmarks.servers import serving
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.judging.checks import Verdict
from clipgen_core.registry.champions import Registry
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from clipgen_core.training.checkpoint import Checkpoint
from tests.browser.conftest import Watched, finish, png_at
from tests.core.registry.test_champions import Judged

pytestmark = pytest.mark.slow
CHAMPION = "models:/clip-gen@champion"


def pass_checks(registry: Registry, version: str, judged_against: str | None) -> None:
    judged = Judged([Verdict("enough_prompts", True, {}, "")])
    registry.mark(version, judged, judge=None, judged_against=judged_against, run_id="1")


def test_the_page_follows_a_promotion_and_a_roll_back(
    checkpoint: str, any_order: str, tab: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_client(uri)
    client.create_registered_model("clip-gen")
    for number, trained in enumerate((checkpoint, any_order)):
        copy_parts(read_parts(trained), tmp_path / str(number) / "artifacts" / "generator")
        images = Checkpoint(trained).codes.images
        client.create_model_version("clip-gen", f"file://{tmp_path}/{number}", tags={"images": images})
    (tmp_path / "root" / "reports").mkdir(parents=True)
    registry = Registry(client, Storage(str(tmp_path / "root")))
    pass_checks(registry, "1", None)
    registry.promote()
    with serving("ui", CHAMPION, tmp_path) as url:
        assert shown_after(0, tab, url) == "models:/clip-gen/1"
        assert tab.page.get_by_role("tab", name="Browse").is_visible()
        tab.page.wait_for_function("document.querySelectorAll('#near img').length > 0")
        pass_checks(registry, "2", "1")
        registry.promote()
        assert shown_after(31, tab, url) == "models:/clip-gen/2"
        registry.rollback()
        assert shown_after(31, tab, url) == "models:/clip-gen/1"
    assert tab.problems == []


def shown_after(seconds: float, tab: Watched, url: str) -> str:
    """The version that generates a picture some seconds later, by the parameters in its file."""
    tab.page.wait_for_timeout(1000 * seconds)
    tab.page.goto(url)
    tab.page.locator("#prompt textarea").fill("a red disc")
    finish(tab.page, "#generate")
    model: str = json.loads(png_at(tab.page, "#made img").info["parameters"])["model"]
    return model
