"""Run configs as files: how several are merged, and the one that holds for every run of a deployment.

CLIPGEN_CONFIG names a run config whose values are the defaults of all runs, also of those that a sensor or a
schedule starts. What it says of an asset also holds for the other asset of the same stage.

Knows files, and which assets share a stage; knows nothing of what the values mean.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipgen_core import filesystem
from clipgen_core.assets import ASSETS
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for

VARIABLE = "CLIPGEN_CONFIG"


def read_files(files: Sequence[str]) -> dict[str, Any]:
    """Read run configs and merge them, as `dagster job execute -c FIRST -c SECOND` does: the last value wins.

    Raises:
        ClipgenError: A file does not exist, or holds no mapping in YAML.
    """
    with needed_for("reading a run config"):
        import yaml
    merged: dict[str, Any] = {}
    for file in files:
        if not filesystem.exists(file):
            raise ClipgenError(f"run config {file} does not exist: check the path")
        try:
            read = yaml.safe_load(filesystem.read_bytes(file)) or {}
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise ClipgenError(f"run config {file} is no YAML ({_place(error)}): repair it") from error
        if not isinstance(read, dict):
            raise ClipgenError(f"run config {file} holds no mapping: see infra/run_configs for examples")
        merged = _merged(merged, read)
    return merged


def deployed(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The run config that CLIPGEN_CONFIG names; empty if it names none.

    Raises:
        ClipgenError: There is no such file, or it holds no mapping in YAML.
    """
    file = environment.get(VARIABLE)
    if not file:
        return {}
    try:
        config: dict[str, Any] = from_environment(read_files([file]), environment)
    except ClipgenError as error:
        raise ClipgenError(f"{VARIABLE}: {error}") from error
    ops = config.get("ops")
    if isinstance(ops, dict):
        config["ops"] = ops | {name: merged for name in ASSETS if (merged := _of_stage(name, ops))}
    return config


def with_deployed(
    config: Mapping[str, Any], assets: Sequence[str], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """A run config with what CLIPGEN_CONFIG says of its assets and of the resources.

    Args:
        config: The run config, whose values win.
        assets: The assets of the run.
        environment: Environment variables.

    Returns:
        The merged run config.
    """
    defaults = deployed(environment)
    if "ops" in defaults:
        defaults["ops"] = {name: one for name, one in defaults["ops"].items() if name in assets}
    merged: dict[str, Any] = _merged(defaults, dict(config))
    return merged


def _of_stage(asset: str, ops: Mapping[str, Any]) -> Any:
    """What the config says of the assets that run the same stage."""
    merged: Any = {}
    for name in ASSETS:
        if ASSETS[name].stage == ASSETS[asset].stage:
            merged = _merged(merged, ops.get(name) or {})
    return merged


def from_environment(value: Any, environment: Mapping[str, str]) -> Any:
    """The value with `{env: NAME}` replaced by the variable's value, as Dagster does.

    Args:
        value: Of a run config.
        environment: The variables.

    Returns:
        The value, or what it becomes.

    Raises:
        ClipgenError: A variable is not set.
    """
    if not isinstance(value, dict):
        return value
    if list(value) == ["env"]:
        if value["env"] not in environment:
            raise ClipgenError(f"the environment variable {value['env']} is not set: set it")
        return environment[value["env"]]
    return {name: from_environment(one, environment) for name, one in value.items()}


def _place(error: Exception) -> str:
    """What a parser of YAML complains of, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else first_line(error)


def _merged(first: Any, second: Any) -> Any:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return first | {name: _merged(first.get(name), value) for name, value in second.items()}
