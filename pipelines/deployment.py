"""What holds for every run of this code location: the run config that CLIPGEN_CONFIG names, and variables.

Read when the definitions are loaded, so that runs of sensors and schedules get the same as those of people.
Knows how it is read and refused; knows nothing of what the values are used for.
"""

import os
from typing import Any

import dagster as dg

from clipgen_core.assets import ASSETS
from clipgen_core.config_files import VARIABLE, deployed
from clipgen_core.errors import ClipgenError
from clipgen_core.run_config import Run, read_run


def deployment() -> Run:
    """A run without a run config, of all assets that run a stage.

    Raises:
        dg.DagsterInvalidDefinitionError: The file that CLIPGEN_CONFIG names has a mistake.
    """
    config = _read()
    run = read_run(config, tuple(ASSETS))
    problems = [*run.problems, *(f"take out {name!r}" for name in ("execution", "loggers") if name in config)]
    if problems:
        file = os.environ.get(VARIABLE)
        raise dg.DagsterInvalidDefinitionError(f"{VARIABLE} is {file}: {'; '.join(problems)}")
    return run


def defaults(stage: str) -> dict[str, Any]:
    """What the deployment says in the config of the assets of a stage, as a run config does."""
    deployment()
    ops = _read().get("ops") or {}
    found = [ops[name].get("config") or {} for name in ops if ASSETS[name].stage == stage]
    return dict(found[0]) if found else {}


def _read() -> dict[str, Any]:
    try:
        return deployed()
    except ClipgenError as error:
        raise dg.DagsterInvalidDefinitionError(str(error)) from error
