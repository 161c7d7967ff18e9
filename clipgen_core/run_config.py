"""What a run of the pipeline is going to do, read from its run config.

Knows the shape of Dagster's run configs, the names of the assets and of their jobs; does not import Dagster,
which finds the same mistakes when the run starts, but does not say which name was meant.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from clipgen_core.assets import ASSETS, OWN, WITHOUT_STAGE
from clipgen_core.config_files import from_environment
from clipgen_core.errors import ClipgenError
from clipgen_core.recipes import DEFAULT, RECIPES, Recipe, named
from clipgen_core.settings.catalogue import (
    allowed,
    flatten,
    overridden_or_problems,
    settings_of,
    suggestion,
    wrong_kind,
)
from clipgen_core.storage import DEFAULT_ROOT
from clipgen_core.tracking import LOCAL_FOLDER, default_uri

TRAINED = "trained"  # the CLIP that clip_checkpoint left under the root
SECTIONS = ("execution", "loggers", "ops", "resources")


@dataclass(frozen=True)
class Run:
    """What a run is going to do.

    Attributes:
        assets: Names of the assets that it materialises.
        recipe: All settings, as the run config overrides them.
        resources: The values of each resource.
        own: What the config of each asset has besides the settings of its stage.
        overrides: Number of settings that are not the recipe's.
        problems: One sentence for each mistake in the run config.
        unclear: Names of the assets whose configs have mistakes; their settings may be meant otherwise.
        misspelt: Those of them whose names the run config seems to misspell.
    """

    assets: frozenset[str]
    recipe: Recipe
    resources: Mapping[str, Mapping[str, Any]]
    own: Mapping[str, Mapping[str, Any]]
    overrides: int
    problems: tuple[str, ...]
    unclear: frozenset[str]
    misspelt: frozenset[str]

    @property
    def root(self) -> str:
        return str(self.resources["storage"]["root"])

    @property
    def mlflow_uri(self) -> str:
        mlflow = self.resources["mlflow"]
        return str(mlflow["tracking_uri"] or default_uri(mlflow["local_folder"]))

    def on_ray(self) -> list[str]:
        """Names of the assets that work on a Ray cluster."""
        return [name for name in ASSETS if name in self.assets and self.works_on_ray(name)]

    def works_on_ray(self, name: str) -> bool:
        """Whether the workers of an asset run on a Ray cluster."""
        compute = getattr(getattr(self.recipe, ASSETS[name].stage), "compute", None)
        return self.own[name].get("workers_on") == "ray" or (compute is not None and compute.where == "ray")


def job_of(config: Mapping[str, Any]) -> str:
    """The job that a run config is for: clip_training if it configures that job's asset, else clip_gen."""
    return "clip_training" if "clip_checkpoint" in (config.get("ops") or {}) else "clip_gen"


def read_run(
    config: Mapping[str, Any], assets: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Run:
    """What a run is going to do. Mistakes in the run config do not end the reading.

    Args:
        config: The run config.
        assets: Names of the assets that the run materialises.
        environment: Environment variables, which give the defaults of the resources.

    Returns:
        The run, with one sentence for each mistake.
    """
    reader = _Reader(config, environment)
    resources = reader.resources()
    recipe = reader.recipe(str(resources["recipe"]["name"]))
    own: dict[str, dict[str, Any]] = {name: {} for name in ASSETS}
    overrides = 0
    misspelt = reader.misspelt(assets)
    unclear = set(misspelt)
    for name, values in reader.configs("ops", assets):
        before = len(reader.problems)
        if name in ASSETS:
            own[name], settings = reader.of_asset(name, values)
            recipe, found = overridden_or_problems(recipe, settings)
            reader.problems += [f"{name}: {one}" for one in found]
            overrides += len(settings)
        elif name in WITHOUT_STAGE:
            reader.own(f"ops.{name}.config", values, WITHOUT_STAGE[name])
        unclear |= {name} if len(reader.problems) > before else set()
    return Run(
        frozenset(assets),
        recipe,
        resources,
        own,
        overrides,
        tuple(reader.problems),
        frozenset(unclear),
        frozenset(misspelt),
    )


class _Reader:
    """Reads a run config part by part.

    Attributes:
        problems: One sentence for each mistake so far.
    """

    def __init__(self, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.config, self.environment = config, environment
        self.problems: list[str] = []
        for name in config:
            if name not in SECTIONS:
                self.unknown("the run config", name, SECTIONS)

    def resources(self) -> dict[str, dict[str, Any]]:
        """The values of each resource; the defaults are those of pipelines/defs/resources.py."""
        resources: dict[str, dict[str, Any]] = {
            "storage": {"root": self.environment.get("CLIPGEN_ROOT") or DEFAULT_ROOT},
            "images": {
                "source": self.environment.get("CLIPGEN_SOURCE", ""),
                "clip": self.environment.get("CLIPGEN_CLIP") or TRAINED,
            },
            "recipe": {"name": self.environment.get("CLIPGEN_RECIPE") or DEFAULT},
            "mlflow": {"tracking_uri": None, "local_folder": LOCAL_FOLDER, "model": "clip-gen"},
        }
        for name, values in self.configs("resources", tuple(resources)):
            for field, value in values.items():
                if field not in resources[name]:
                    self.unknown(f"resources.{name}.config", field, tuple(resources[name]))
                elif value is not None:
                    resources[name][field] = value
        return resources

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name, or the default one if there is none."""
        if name in RECIPES:
            return named(name)
        self.unknown("the list of recipes", name, tuple(RECIPES))
        return named(DEFAULT)

    def of_asset(self, name: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split the config of an asset.

        Args:
            name: The asset.
            values: Its config.

        Returns:
            What the asset takes itself, and the settings of its stage as `Recipe.override` takes them.
        """
        asset, where = ASSETS[name], f"ops.{name}.config"
        known = {one.name: one for one in settings_of(getattr(named(DEFAULT), asset.stage))}
        given = {one: value for one, value in values.items() if one in asset.own}
        settings: dict[str, Any] = {}
        for one, value in flatten({one: value for one, value in values.items() if one not in given}).items():
            if one not in known:
                self.unknown(where, one, (*known, *asset.own))
            elif kind := wrong_kind(value, known[one].field.annotation):
                what = f"the text {value!r}" if isinstance(value, str) else json.dumps(value)
                self.problems.append(f"{where}.{one} is {what}: write {kind}")
            elif value is not None or type(None) in get_args(known[one].field.annotation):
                settings[f"{asset.stage}.{one}"] = value
        return self.own(where, given, asset.own), settings

    def own(self, where: str, values: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
        """What an asset takes besides the settings of a stage, as far as it is allowed.

        Args:
            where: How a message names its config.
            values: The config.
            known: The names that it takes.

        Returns:
            The values that Dagster accepts.
        """
        accepted = {}
        for name, value in values.items():
            if name not in known:
                self.unknown(where, name, known)
                continue
            try:
                accepted[name] = TypeAdapter(OWN[name]).validate_python(value, strict=True)
            except ValidationError as error:
                self.problems.append(f"{where}.{name} is {value!r}: {allowed(error.errors()[0]['msg'])}")
        return accepted

    def configs(self, section: str, known: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The configs in a section.

        Args:
            section: `ops` or `resources`.
            known: The names that the section may have.

        Yields:
            A name, and its config.
        """
        members = self.mapping(self.config, section, section)
        for name in members:
            where = f"{section}.{name}"
            if name not in known:
                self.unknown(section, name, known)
                continue
            member = self.mapping(members, name, where)
            for one in member.keys() - {"config"}:
                self.problems.append(f"{where} has {one!r}: put it under {where}.config")
            try:
                config = self.mapping(member, "config", f"{where}.config")
                yield name, from_environment(config, self.environment)
            except ClipgenError as error:
                self.problems.append(f"{where}.config: {error}")

    def misspelt(self, known: Sequence[str]) -> set[str]:
        """Of the names that the config may have ops for, those that others are similar to."""
        unknown = set(map(str, self.config.get("ops") or ())) - {*known, *ASSETS, *WITHOUT_STAGE}
        return {name for one in unknown for name in difflib.get_close_matches(one, known, n=1)}

    def mapping(self, values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
        """A member of a mapping that is one itself; an empty one if it is null, or no mapping.

        Args:
            values: The mapping.
            name: The member.
            where: How a message names it.

        Returns:
            The member.
        """
        member = values.get(name)
        if member is not None and not isinstance(member, dict):
            self.problems.append(f"{where} is {member!r}: write a mapping")
        return member if isinstance(member, dict) else {}

    def unknown(self, where: str, name: str, known: Sequence[str]) -> None:
        """Note a name that does not exist.

        Args:
            where: What holds it.
            name: The name.
            known: The names that exist there.
        """
        members = [one for one in known if one.startswith(f"{name}.")]
        hint = f": set one of the group, such as {members[0]!r}" if members else suggestion(name, known)
        takes = f": it has {', '.join(known[:12])}" if known else ": it takes no settings, so take it out"
        self.problems.append(f"{where} has no {name!r}{hint or takes}")
