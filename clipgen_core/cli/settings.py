"""`clipgen settings`: every setting with its value in a recipe and its meaning; also docs/settings.md."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from clipgen_core.cli.options import AsJson, Command, app, console
from clipgen_core.errors import ClipgenError
from clipgen_core.recipes import DEFAULT, RECIPES, Recipe, named
from clipgen_core.settings.catalogue import Setting, meaning, settings_of, suggestion

SHOWN = 24  # characters of a value; `--json` has all of it
PREFACE = """# Settings

Every setting of every stage. This file is generated: `python -m clipgen_core.cli settings --markdown`.

Ways to set one:

- on the command line: `clipgen train-stage vqgan --root ROOT --recipe demo --set train.steps=10`
- in Dagster's launchpad or a run config: `vqgan_checkpoint: {config: {train: {steps: 10}}}`
- in Python: `named("demo").override({"vqgan.train.steps": 10})`, from `clipgen_core.recipes`

A setting without a default has a value in every recipe. `clipgen settings vqgan --recipe long` shows the
values of one recipe.
"""


@app.command(cls=Command)
def settings(
    stage: Annotated[str | None, typer.Argument(help="Show this stage only.")] = None,
    recipe: Annotated[str, typer.Option(help="Whose values to show: {recipes}.")] = DEFAULT,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
) -> None:
    """List all settings: their names, their values in a recipe, and what they mean."""
    stages = stages_called(stage)
    chosen = named(recipe)
    if as_markdown:
        typer.echo("\n".join([PREFACE, *(line for one in stages for line in markdown(one))]))
    elif as_json:
        records = [as_record(setting) for one in stages for setting in settings_in(chosen, one)]
        typer.echo(json.dumps(records, indent=2))
    else:
        for one in stages:
            console.print(sheet(recipe, one), "", soft_wrap=False)
        console.print("Set one by `clipgen train-stage STAGE --set NAME=VALUE`, or in a run config.")


def stages_called(stage: str | None) -> list[str]:
    """One stage by name, or all of them.

    Raises:
        ClipgenError: There is no stage of that name.
    """
    stages = list(Recipe.model_fields)
    if stage is None:
        return stages
    if stage not in stages:
        guess = suggestion(stage, stages)
        raise ClipgenError(f"there is no stage {stage!r}{guess or ':'} choose one of {', '.join(stages)}")
    return [stage]


def settings_in(recipe: Recipe, stage: str, prefix: bool = True) -> list[Setting]:
    """A stage's settings with their values in a recipe.

    Args:
        recipe: The values.
        stage: The stage's name.
        prefix: Whether names start with the stage.

    Returns:
        Names, values and descriptions.
    """
    return list(settings_of(getattr(recipe, stage), f"{stage}." if prefix else ""))


def as_record(setting: Setting) -> dict[str, Any]:
    """A setting as JSON has it; the default is null where every recipe has a value of its own."""
    default = None if setting.field.is_required() else setting.field.default
    return {
        "name": setting.name,
        "value": setting.value,
        "default": default,
        "meaning": setting.meaning,
    }


def sheet(recipe: str, stage: str) -> Table:
    """A stage's settings with their values in a recipe, as a table for a terminal.

    Args:
        recipe: The recipe whose values are shown.
        stage: A field of `Recipe`.

    Returns:
        A table with one row a setting.
    """
    table = Table(
        Column("setting", no_wrap=True),
        Column(recipe, overflow="fold", max_width=SHOWN),
        Column("meaning", ratio=1),
        box=None,
        title=f"{stage}: {meaning(Recipe.model_fields[stage])}",
        title_justify="left",
        title_style="bold",
        expand=True,
    )
    for setting in settings_in(named(recipe), stage, prefix=False):
        table.add_row(setting.name, text_of(setting.value), setting.meaning)
    return table


def text_of(value: Any) -> str:
    """A value as `--set` takes it, shortened if it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def markdown(stage: str) -> Iterator[str]:
    """A stage's section of docs/settings.md: the settings, then the values that recipes give them."""
    yield f"## {stage}\n\n{meaning(Recipe.model_fields[stage])}\n"
    yield "| setting | default | meaning |\n|---|---|---|"
    rows = list(zip(*(settings_in(one, stage, prefix=False) for one in RECIPES.values()), strict=True))
    for setting, *_ in rows:
        default = "" if setting.field.is_required() else f"`{text_of(setting.field.default)}`"
        yield f"| `{setting.name}` | {default} | {setting.meaning} |"
    if chosen := [row for row in rows if any(map(differs, row))]:
        yield f"\nIn the recipes:\n\n| setting | {' | '.join(RECIPES)} |\n|---|{'---|' * len(RECIPES)}"
        for row in chosen:
            yield f"| `{row[0].name}` | {' | '.join(text_of(setting.value) for setting in row)} |"
    yield ""


def differs(setting: Setting) -> bool:
    """Whether a recipe sets it to something else than its default."""
    return setting.field.is_required() or setting.value != setting.field.default
