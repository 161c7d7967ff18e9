"""Checks of what a run needs, before hours of work depend on it: `clipgen check`, and a job's first step.

Each check looks at one thing and takes seconds. A check says what it found, raises a ClipgenError for a
problem, or `Doubt` for what may go wrong. All checks run, so that all problems are known at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from clipgen_core.assets import ASSETS
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.preflight import inputs, machine, models, services, starts
from clipgen_core.preflight.doubt import Doubt
from clipgen_core.run_config import Run
from clipgen_core.stores import without_credentials

NO_CREDENTIALS = (
    "there are no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE"
)
Status = Literal["ok", "warning", "problem"]
Check = Callable[[Run], str]

ALL = frozenset[str]()
CHECKS: tuple[tuple[str, frozenset[str], Check], ...] = (  # name, assets that need it (none: all), check
    ("images", frozenset({"raw_images", "folder_images"}), inputs.source),
    ("where", frozenset({"vqgan_checkpoint", "token_shards"}), inputs.where),
    ("captions", frozenset({"clip_checkpoint"}), inputs.captions),
    ("texts", frozenset({"transformer_checkpoint"}), inputs.texts),
    ("prompts", frozenset({"evaluation_report"}), inputs.prompts),
    ("reference", frozenset({"evaluation_report"}), inputs.reference),
    ("CLIP", frozenset({"clip_embeddings", "folder_embeddings"}), models.clip),
    ("judge", frozenset({"evaluation_report"}), models.judge),
    ("weights", ALL, models.weights),
    ("root", ALL, machine.root),
    ("disk", ALL, machine.disk),
    ("processes", machine.TRAININGS, machine.processes),
    ("memory", machine.TRAININGS, machine.memory),
    ("MLflow", frozenset({*ASSETS, "champion"}), services.mlflow),
    ("model", frozenset({"evaluation_report", "champion"}), services.model),
    ("start_from", frozenset({"clip_checkpoint"}), starts.clip),
    ("start_from", frozenset({"vqgan_checkpoint"}), starts.vqgan),
    ("start_from", frozenset({"transformer_checkpoint"}), starts.transformer),
    ("VQGAN", frozenset({"vqgan_checkpoint"}), starts.imported),
    ("Ray", ALL, services.ray),
)


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    status: Status
    text: str


def findings(run: Run) -> Iterator[Finding]:
    """Check what a run needs.

    Args:
        run: What it is going to do.

    Yields:
        One finding for each mistake in the run config, and one for each check that concerns the run.
    """
    for problem in run.problems:
        yield Finding("settings", "problem", problem)
    if not run.problems:
        yield Finding(
            "settings", "ok", f"recipe {run.resources['recipe']['name']}, {run.overrides} overridden"
        )
    said = set[str]()
    for name, needed_by, check in CHECKS:
        if not needed_by or needed_by & run.assets:
            if needed_by and needed_by <= run.misspelt:
                asset = ", ".join(sorted(needed_by))
                yield Finding(name, "warning", f"not checked: correct the name of {asset} first")
                continue
            finding = _finding(name, check, run)
            if finding.text and finding.text not in said:
                yield finding
            if finding.status == "problem":  # another check may meet the same
                said.add(finding.text)


def _finding(name: str, check: Check, run: Run) -> Finding:
    try:
        return Finding(name, "ok", check(run))
    except Doubt as doubt:
        return Finding(name, "warning", str(doubt))
    except ClipgenError as error:
        return Finding(name, "problem", str(error))
    except Exception as error:
        if without_credentials(error):
            return Finding(name, "problem", NO_CREDENTIALS)
        # a check may meet anything: a store that refuses, a file that is no file
        return Finding(name, "problem", f"the check failed ({type(error).__name__}: {first_line(error)})")
