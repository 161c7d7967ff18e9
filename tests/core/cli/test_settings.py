"""`clipgen settings`, and docs/settings.md, which is made by it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.recipes import Recipe, named
from clipgen_core.settings.catalogue import settings_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def output(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["settings", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_stage_is_readable_at_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = output("vqgan", "--recipe", "long").splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if line.strip().startswith("train.steps ")]
    assert line.split()[:4] == ["train.steps", "1800", "Optimizer", "steps."]
    assert not any("top_k" in line for line in lines)


def test_all_stages_are_listed_without_a_name() -> None:
    listed = output()
    for stage in Recipe.model_fields:
        assert f"\n{stage}: " in f"\n{listed}"


def test_json_has_every_setting_whole() -> None:
    records = {record["name"]: record for record in json.loads(output("--json", "--recipe", "quick"))}
    assert list(records) == [setting.name for setting in settings_of(named("quick"))]
    steps = records["vqgan.train.steps"]
    assert steps["value"] == named("quick").vqgan.train.steps and steps["default"] is None
    assert records["transformer.sampling.temperature"]["default"] == 0.9
    assert records["evaluation.shown"]["value"] == list(named("quick").evaluation.shown)


def test_the_document_is_up_to_date() -> None:
    command = "python -m clipgen_core.cli settings --markdown > docs/settings.md"
    assert output("--markdown") == DOCUMENT.read_text(), f"docs/settings.md is outdated: run `{command}`"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vqgn"], "there is no stage 'vqgn': did you mean 'vqgan'? choose one of clip, images"),
        (["qqq"], "there is no stage 'qqq': choose one of clip, images"),
        (["--recipe", "x"], "there is no recipe 'x': choose one of demo"),
    ],
)
def test_an_unknown_name_is_one_sentence(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["settings", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
