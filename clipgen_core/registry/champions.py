"""The model registry: registering, promoting, rolling back.

Versions live in MLflow; which of them is champion is decided by `{root}/champions.lance`, a table with one
row a promotion, because MLflow's aliases know no compare-and-set: of two promotions that were judged against
the same champion, one inserts the next row and the other is refused. The aliases follow the table.
"""

import datetime
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from clipgen_core import storage
from clipgen_core.data.tables import find_table, upsert
from clipgen_core.errors import ClipgenError
from clipgen_core.extras import base_packages
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.judging.checks import Verdict
from clipgen_core.registry.lineage import lineage
from clipgen_core.schema import CHAMPIONS
from clipgen_core.storage import Storage
from clipgen_core.tracking import MlflowTracker, find_version, mlflow_client

MODEL = "clip-gen"
CANDIDATE, CHAMPION_ALIAS, PREVIOUS = "candidate", "champion", "previous"
EXAMPLE = ["a red heart"]
PARAMS = ("candidates", "guidance_scale", "temperature")  # of sampling, that a request may set
JUDGED_AGAINST = "judged_against"


def _description(metrics: Mapping[str, float]) -> str:
    """The headline figures as a Markdown table, for MLflow's page of the version."""
    lines = [
        "| prompts | CLIP score | recall@5 | real pictures: CLIP score | recall@5 |",
        "|---|---|---|---|---|",
    ]
    for split in (name.removesuffix("/prompts") for name in metrics if name.endswith("/prompts")):
        keys = [
            f"{split}/{kind}/{score}"
            for kind in ("generated", "real")
            for score in ("clip_score", "recall@5")
        ]
        lines.append("| " + " | ".join([split, *(f"{metrics[key]:.3f}" for key in keys)]) + " |")
    return "\n".join([*lines, "", "The report is an artifact of the run."])


def _log_model(generator: Path, params: dict[str, Any], tracker: MlflowTracker, name: str) -> str:
    """The signature comes from the types of `predict` and from the example's parameters, the defaults."""
    import mlflow

    package = Path(__file__).parents[1]
    mlflow.set_tracking_uri(tracker.client.tracking_uri)
    with mlflow.start_run(run_id=tracker.run_id):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"generator": str(generator)},
            code_paths=[str(package)],
            pip_requirements=requirements(),
            registered_model_name=name,
            input_example=(EXAMPLE, params),
        )
    return str(logged.registered_model_version)


def requirements() -> list[str]:
    """What a registered model needs to run, at the versions of this environment; MLflow adds itself."""
    return [f"{package}=={version_of(package)}" for package in base_packages() if package != "mlflow-skinny"]


class Evaluated(Protocol):
    """What an evaluation left: where its report is, and its figures."""

    @property
    def report(self) -> str: ...

    @property
    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Promotion:
    """A row of the table of champions. before: the version that was champion until then, "" if none."""

    number: int
    version: str
    before: str
    reason: str
    at: datetime.datetime


class Registry:
    """The versions of one model and who of them is champion.

    Args:
        out: the root whose table of champions decides.
    """

    def __init__(self, client: Any, out: Storage, name: str = MODEL) -> None:
        self.client, self.name, self.ledger = client, name, out.champions(name)

    @classmethod
    def at(cls, tracking_uri: str, out: Storage, name: str = MODEL) -> "Registry":
        return cls(mlflow_client(tracking_uri), out, name)

    def history(self) -> list[Promotion]:
        """All promotions and roll-backs, the latest last."""
        table = find_table(self.ledger)
        rows = table.to_table().to_pylist() if table else []
        return sorted((Promotion(**row) for row in rows), key=lambda row: row.number)

    def champion(self) -> str | None:
        """The version in use, None before the first promotion."""
        history = self.history()
        return history[-1].version if history else None

    def uri(self, version: str) -> str:
        """`models:/NAME/VERSION`, which MLflow in this process finds in this registry from now on."""
        import mlflow

        mlflow.set_tracking_uri(self.client.tracking_uri)
        return f"models:/{self.name}/{version}"

    def register(self, transformer: str, result: Evaluated, tracker: MlflowTracker) -> str:
        """Register a judged generator, self-contained, as the candidate.

        Models from code: MLflow stores `registered_model.py` as text and runs it when loading; no Python
        object is pickled.

        Returns:
            Its version.
        """
        parts = read_parts(transformer)
        report = storage.local_copy(result.report)
        tracker.file(report)
        with tempfile.TemporaryDirectory() as scratch:
            copy_parts(parts, Path(scratch) / "generator")
            params = {"seed": 0} | parts.sampling.model_dump(include=set(PARAMS))
            version = _log_model(Path(scratch) / "generator", params, tracker, self.name)
        tags = {key: value for key, value in lineage(parts).items() if key != "configuration"}
        tags |= {f"score.{key.replace('@', '_at_')}": f"{v:.6g}" for key, v in result.metrics.items()}
        tags |= {"mlflow_run": tracker.run_id, "report": f"runs:/{tracker.run_id}/{report.name}"}
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, version, key, value)
        self.client.update_model_version(self.name, version, _description(result.metrics))
        self.client.set_registered_model_alias(self.name, CANDIDATE, version)
        return version

    def mark(self, version: str, verdicts: list[Verdict], judged_against: str | None) -> None:
        """Tag a version with what the checks said, and with the champion it was compared to."""
        for verdict in verdicts:
            said = "passed" if verdict.passed else f"failed: {verdict.reason}"
            self.client.set_model_version_tag(self.name, version, f"check.{verdict.name}", said)
        self.client.set_model_version_tag(self.name, version, JUDGED_AGAINST, judged_against or "none")

    def promote(self, version: str | None = None) -> Promotion:
        """Make a judged version the champion; by default the candidate.

        Raises:
            ClipgenError: it failed a check, was never judged, or not against today's champion.
        """
        wanted = f"{self.name}/{version}" if version else f"{self.name}@{CANDIDATE}"
        found = find_version(self.client, f"models:/{wanted}")
        version, tags, history = str(found.version), found.tags, self.history()
        failed = {k: v for k, v in tags.items() if k.startswith("check.") and v != "passed"}
        if failed:
            (check, said), *_ = failed.items()
            raise ClipgenError(f"{self.name} version {version} is not promoted: {check} {said}")
        if JUDGED_AGAINST not in tags:
            raise ClipgenError(f"{self.name} version {version} was not judged: materialise evaluation_report")
        champion = history[-1].version if history else ""
        if version == champion:
            return self._follow()
        if tags[JUDGED_AGAINST] != (champion or "none"):
            raise ClipgenError(
                f"{self.name} version {version} was compared with version {tags[JUDGED_AGAINST]}, but the "
                f"champion is {champion or 'none'} now: materialise evaluation_report again"
            )
        return self._append(history, version, "promotion")

    def rollback(self) -> Promotion:
        """Make the previous champion the champion again; the two change places."""
        history = self.history()
        if not history or not history[-1].before:
            raise ClipgenError(f"{self.name} has had no other champion to roll back to")
        return self._append(history, history[-1].before, "rollback")

    def _append(self, history: list[Promotion], version: str, reason: str) -> Promotion:
        before, number = (history[-1].version, history[-1].number + 1) if history else ("", 1)
        now = datetime.datetime.now(datetime.UTC)
        row = Promotion(number, version, before, reason, now)
        rows = pa.Table.from_pylist([asdict(row)], schema=CHAMPIONS)
        mine = upsert(self.ledger, rows, "number", overwrite=False) or self.history()[number - 1] == row
        if not mine and self.champion() != version:
            raise ClipgenError(
                f"another promotion of {self.name} came first: version {self.champion()} is champion now; "
                "compare with that one (materialise evaluation_report) before trying again"
            )
        return self._follow()

    def _follow(self) -> Promotion:
        """Point the aliases where the table says; again, if it has moved meanwhile."""
        while True:
            latest = self.history()[-1]
            self.client.set_registered_model_alias(self.name, CHAMPION_ALIAS, latest.version)
            if latest.before:
                self.client.set_registered_model_alias(self.name, PREVIOUS, latest.before)
            if self.history()[-1] == latest:
                return latest
