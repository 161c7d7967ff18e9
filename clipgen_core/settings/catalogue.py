"""Every setting of a config by its dotted name, and new values for some of them.

Knows how configs nest and what their fields say of themselves; knows no stage and no recipe.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen

Config = TypeVar("Config", bound=Frozen)
LISTED = 3  # overrides that an error names at most
MAY_CHANGE = "may change"  # marks, by Annotated, settings that do not change what a training computes


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, its value in a config, and what it means.

    may_change: whether a training goes on with another value of it.
    """

    name: str
    value: Any
    field: FieldInfo
    may_change: bool = False

    @property
    def meaning(self) -> str:
        return meaning(self.field, self.may_change)


def meaning(field: FieldInfo, may_change: bool = False) -> str:
    """What a setting means, on one line.

    Args:
        field: Its field, which has a docstring.
        may_change: Whether a training goes on with another value of it.

    Returns:
        One or more sentences.
    """
    text = " ".join((field.description or "").split())
    return f"{text} Changing it begins no new training." if may_change else text


def settings_of(config: Frozen, prefix: str = "", may_change: bool = False) -> Iterator[Setting]:
    """All settings of a config, those of nested configs included, in the order of their declaration.

    Args:
        config: A stage's config, or a whole recipe.
        prefix: What every name starts with, such as `vqgan.`.
        may_change: Whether the group that they belong to is marked MAY_CHANGE.

    Yields:
        One record per setting that holds a value; configs that only group settings are not listed.
    """
    for name, field in type(config).model_fields.items():
        value, marked = getattr(config, name), may_change or MAY_CHANGE in field.metadata
        if isinstance(value, Frozen):
            yield from settings_of(value, f"{prefix}{name}.", marked)
        else:
            yield Setting(f"{prefix}{name}", value, field, marked)


def identity(config: Frozen) -> dict[str, Any]:
    """The settings by which a training is found again: all but those that are marked MAY_CHANGE.

    Returns:
        Values by dotted name.
    """
    return {setting.name: setting.value for setting in settings_of(config) if not setting.may_change}


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of a config with other values for some of its settings, validated as a whole.

    Args:
        config: The config that keeps all other values.
        overrides: The new values by dotted name, such as `{"vqgan.train.steps": 10}`.

    Returns:
        A config of the same class.

    Raises:
        ClipgenError: There is no setting of that name, or its value is not allowed.
    """
    overridden, problems = overridden_or_problems(config, overrides)
    if problems:
        raise ClipgenError(problems[0])
    return overridden


def overridden_or_problems(config: Config, overrides: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """As `override`, for callers that show all problems at once.

    Args:
        config: The config that keeps all other values.
        overrides: The new values by dotted name.

    Returns:
        The config with the values that are allowed; and one sentence for each problem.
    """
    names = [setting.name for setting in settings_of(config)]
    unknown = [_unknown(name, names) for name in overrides if name not in names]
    known = {name: value for name, value in overrides.items() if name in names}
    try:
        return _validated(config, known), unknown
    except ClipgenError as error:  # settings that do not fit each other
        given = _likely(known, str(error))
        return _with_allowed(config, known), [*unknown, f"{error} (given: {given})"]
    except ValidationError as error:
        refused = [_not_allowed(problem, known) for problem in error.errors()]
        return _with_allowed(config, known), unknown + refused


def _validated(config: Config, overrides: Mapping[str, Any]) -> Config:
    return type(config).model_validate(nested(overrides, config.model_dump()))


def _with_allowed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with each value that fits those before it; tried twice, for some fit only later ones."""
    for name, value in [*overrides.items()] * 2:
        with suppress(ClipgenError, ValidationError):
            config = _validated(config, {name: value})
    return config


def _likely(overrides: Mapping[str, Any], fault: str) -> str:
    """The overrides that a fault is about, as far as it names them; otherwise the first ones."""
    named = [name for name in overrides if re.search(rf"\b{name.rpartition('.')[2]}\b", fault)]
    chosen = named or list(overrides)
    more = [f"{len(chosen) - LISTED} more"] if len(chosen) > LISTED else []
    return ", ".join([f"{name}={overrides[name]!r}" for name in chosen[:LISTED]] + more)


def _not_allowed(problem: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    name = ".".join(part for part in problem["loc"] if isinstance(part, str))
    return f"the setting {name!r} is {overrides.get(name, problem['input'])!r}: {allowed(problem['msg'])}"


def allowed(message: str) -> str:
    """Pydantic's message on what a value should be, as the end of a sentence."""
    return re.sub("^[A-Z][a-z]+ should", "it should", message)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined by dots.

    Args:
        values: Nested to any depth.
        prefix: Before each key.

    Returns:
        One mapping.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def nested(flat: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """The other direction of `flatten`.

    Args:
        flat: Values by dotted name.
        into: Nested values, which get those of `flat` in their places; none if None.

    Returns:
        Nested mappings.
    """
    values = {} if into is None else into
    for name, value in flat.items():
        *groups, last = name.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = value
    return values


def wrong_kind(value: Any, annotation: Any) -> str:
    """Find values that Dagster refuses, though Pydantic converts them.

    Args:
        value: A value.
        annotation: The type of its setting.

    Returns:
        What to write instead; an empty string if the value is of the kind, or the setting is no number.
    """
    kinds = {one for one in (get_args(annotation) or (annotation,)) if one is not type(None)}
    if value is None or (kinds == {bool} and isinstance(value, bool)):
        return ""
    if kinds == {bool}:
        return "true or false"
    if kinds == {int} and isinstance(value, str | bool | float):
        return "a whole number, such as 20"
    return "a number, such as 1.0e-4" if kinds == {float} and isinstance(value, str | bool) else ""


def suggestion(name: str, names: Iterable[str]) -> str:
    """Suggest the most similar of some names; one that ends alike comes first.

    Args:
        name: What was given.
        names: What exists.

    Returns:
        `: did you mean 'NAME'?`, or an empty string if nothing is similar.
    """
    known = list(names)
    last = name.rpartition(".")[2]
    alike = [one for one in known if one.rpartition(".")[2] == last]
    similar = difflib.get_close_matches(name, alike, n=1, cutoff=0.4) or difflib.get_close_matches(
        name, known, n=1
    )
    return f": did you mean {similar[0]!r}?" if similar else ""


def _unknown(name: str, names: list[str]) -> str:
    members = [one for one in names if one.startswith(f"{name}.")]
    if members:
        return f"{name!r} is a group of settings: set one of them, such as {members[0]!r}"
    stage = name.partition(".")[0]
    known = any(one.startswith(f"{stage}.") for one in names)
    command = f"`clipgen settings {stage}`" if known else "`clipgen settings`"
    guess = suggestion(name, names)
    return f"there is no setting {name!r}{guess or ':'} {command} lists all"
