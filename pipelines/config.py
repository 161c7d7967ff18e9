"""What can be set on an asset, in the launchpad or in a run config.

The config of an asset has the settings of its stage as fields, nested as they are in the recipe:
`train: {batch_size: 64}`. The fields are made from the settings' own classes, so their names and descriptions
are those of `clipgen settings`. A setting that is not given keeps the recipe's value.
"""

import enum
import functools
import json
import types
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from clipgen_core.assets import OWN
from clipgen_core.recipes import DEFAULT, named
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import MAY_CHANGE, meaning, settings_of
from pipelines.deployment import defaults

AssetConfig = TypeVar("AssetConfig", bound="StageConfig")


class StageConfig(dg.Config):
    """The config of an asset that runs a stage; `of_stage` adds the stage's settings."""

    stage: ClassVar[str]

    def overrides(self) -> dict[str, Any]:
        """The given settings by dotted name, the stage first, as `Recipe.override` takes them.

        The deployment gives those that the run config does not. Null counts as not given, except for settings
        for which null is a value.
        """
        given = dict(_flat(defaults(self.stage), self.stage))
        given |= _flat(self.model_dump(mode="json", exclude_unset=True), self.stage)
        overrides = {}
        for setting in settings_of(named(DEFAULT)):
            nullable = type(None) in get_args(setting.field.annotation)
            if setting.name in given and (nullable or given[setting.name] is not None):
                overrides[setting.name] = given[setting.name]
        return overrides


class TrainingConfig(StageConfig):
    """The config of an asset that trains a model, and where the training runs."""

    processes: int = Field(default=1, ge=1, description="Training processes, one per GPU.")
    workers_on: Literal["here", "ray"] = Field(
        default="here",
        description="`here`: this machine (torchrun). `ray`: the cluster that RAY_ADDRESS names.",
    )
    gpu: bool | None = Field(
        default=None,
        description="Whether each worker on Ray gets a GPU: true also waits for one that the cluster has "
        "yet to start. Null: if the cluster has a GPU when the training begins.",
    )
    restarts: int = Field(default=3, ge=0, description="How often lost workers on Ray are replaced.")
    min_processes: int | None = Field(
        default=None,
        ge=1,
        description="The fewest workers on Ray with which the training begins, or goes on after some were "
        "lost, while the cluster has no more. The batch size must be divisible by each number. Null: "
        "`processes`.",
    )
    accelerator: str | None = Field(
        default=None, description="The type of GPU that workers on Ray get, as Ray names it: `H100`, `A100`."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK",
        description="Whether workers on Ray share nodes: on as few as possible (`PACK`), on many (`SPREAD`), "
        "or strictly so.",
    )


def of_stage(stage: str) -> Callable[[type[AssetConfig]], type[AssetConfig]]:
    """Add the settings of a stage to the config class of an asset.

    >>> @of_stage("tokens")
    ... class TokenShardsConfig(StageConfig):
    ...     pass

    Args:
        stage: A field of `Recipe`. A setting that the class declares itself keeps that declaration.

    Returns:
        A decorator that returns a subclass of the same name.
    """

    def add(config: type[AssetConfig]) -> type[AssetConfig]:
        fields = _fields(getattr(named(DEFAULT), stage))
        added = {name: field for name, field in fields.items() if name not in config.model_fields}
        for name, value in defaults(stage).items():
            if name in config.model_fields and name in OWN:
                field = copy(config.model_fields[name])
                field.default = value
                added[name] = (field.annotation, field)
        made = create_model(
            config.__name__,
            __base__=config,
            __module__=config.__module__,
            __doc__=config.__doc__,
            **added,
        )
        made.stage = stage
        return made

    return add


def _fields(default: Frozen, may_change: bool = False) -> dict[str, Any]:
    """The fields of a config class for Dagster, as `create_model` takes them.

    The fields have no default as far as Dagster sees, so a setting that was not given can be told from null.

    Args:
        default: A stage's config, or a part of it, in the default recipe.
        may_change: Whether a training goes on with other values of all of them.
    """
    fields: dict[str, Any] = {}
    for name, field in type(default).model_fields.items():
        value, marked = getattr(default, name), may_change or MAY_CHANGE in field.metadata
        description = meaning(field, marked)
        if isinstance(value, Frozen):
            group = create_model(type(value).__name__, __base__=dg.Config, **_fields(value, marked))
            fields[name] = (group, Field(default_factory=group, description=description))
        else:
            description = f"{description} In the recipe {DEFAULT}: {json.dumps(value)}."
            given = Field(default_factory=_not_given, description=description)
            fields[name] = (_launchable(field.annotation) | None, given)
    return fields


def _not_given() -> None:
    return None


def _launchable(kind: Any) -> Any:
    """The type that Dagster can check for the type of a setting: enums for literals, lists for tuples."""
    if get_origin(kind) is Literal:
        return _enum(get_args(kind))
    if get_origin(kind) is tuple:
        return types.GenericAlias(list, get_args(kind)[0])
    if type(None) in get_args(kind):
        return _launchable(next(one for one in get_args(kind) if one is not type(None)))
    return kind


@functools.cache  # Dagster allows a name for one type only
def _enum(values: tuple[str, ...]) -> Any:
    return enum.Enum(" | ".join(values), {value: value for value in values}, type=str)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Nested values as pairs of a dotted name and a value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value
