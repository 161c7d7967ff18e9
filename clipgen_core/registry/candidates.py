"""Candidates of a registered model: registering a generator, and marking it with a judgement.

Knows versions and their tags; knows nothing of champions. A checkpoint is registered once, however often it
is judged: its version has the tags of the last judgement.
"""

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import exists, write_bytes
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.mlflow_tracker import MlflowTracker
from clipgen_core.registry.evaluation import Evaluation
from clipgen_core.registry.lineage import lineage
from clipgen_core.registry.versions import CHECK, PARAMS, SCORE, Evaluated, description, judgement, log_model
from clipgen_core.storage import Storage, portable, remedy, root_of

CANDIDATE = "candidate"
JUDGED_AGAINST = "judged_against"
CONDITIONING = "the conditioning CLIP"
REGISTERED = "registered.json"  # beside a report: under which version its generator is registered


class Candidates:
    """The versions of one model.

    Args:
        client: Of MLflow.
        out: The root of the generators and their reports.
        name: The registered model.
    """

    def __init__(self, client: Any, out: Storage, name: str) -> None:
        self.client, self.out, self.name = client, out, name

    def newest_evaluation(self) -> Evaluation:
        """The newest evaluation under the root, if it is of this model.

        Raises:
            ClipgenError: There is none, or it is of another model or of an earlier version of clipgen.
        """
        folder = self.out.current("evaluation", "registering a model").path
        found = Evaluation.read(folder, self.out.root)
        if found is None or found.model != self.name:
            of = "an earlier version of clipgen" if found is None else f"the model {found.model}"
            raise ClipgenError(
                f"the newest evaluation under {self.out.root} ({folder}) is of {of}, so {self.name} cannot "
                f"be registered from it: {remedy('evaluation')}"
            )
        return found

    def waiting(self) -> Evaluation | None:
        """The newest evaluation, if its generator was not registered because the registry was away."""
        try:
            found = self.newest_evaluation()
        except ClipgenError:
            return None
        return None if exists(f"{found.folder}/{REGISTERED}") else found

    def register_evaluated(self, evaluation: Evaluation, tracker: MlflowTracker) -> str:
        """Register the generator of an evaluation, mark it, and note that beside the report.

        Args:
            evaluation: The evaluation.
            tracker: The MLflow run that gets the report, and the model's files unless they are registered.

        Returns:
            The version, which is the candidate now.
        """
        tracker.file(local_copy(evaluation.report))
        version = self.register(evaluation.transformer, tracker)
        self.mark(
            version,
            evaluation,
            judge=evaluation.judge,
            judged_against=evaluation.judged_against,
            run_id=tracker.run_id,
        )
        record = json.dumps({"model": self.name, "version": version})
        write_bytes(f"{evaluation.folder}/{REGISTERED}", record.encode())
        return version

    def register(self, transformer: str, tracker: MlflowTracker) -> str:
        """Register a generator, self-contained; once only.

        A version that was registered from the same checkpoint is returned, and nothing is copied. A new
        version has no judgement: `mark` gives it one, and makes it the candidate.

        Args:
            transformer: The URL of a transformer checkpoint.
            tracker: The MLflow run that gets the model's files, if they are not registered yet.

        Returns:
            The version.
        """
        import mlflow

        parts = read_parts(transformer)
        tags = {key: value for key, value in lineage(parts).items() if key != "configuration"}
        version = self._registered(tags["transformer"], tags["transformer_digest"])
        if version:
            return version
        with tempfile.TemporaryDirectory() as scratch:
            copy_parts(parts, Path(scratch) / "generator")
            params = {"n": 1, "seed": 0} | parts.sampling.model_dump(include=set(PARAMS))
            model = log_model(Path(scratch) / "generator", params, tracker)
        return str(mlflow.register_model(model, self.name, tags=tags).version)

    def _registered(self, transformer: str, digest: str) -> str | None:
        """The newest version that was registered from this checkpoint, wherever its root lay then."""
        same = self.client.search_model_versions(
            f"name = '{self.name}' and tags.transformer_digest = '{digest}'"
        )
        relative = portable(transformer, root_of(transformer))
        tagged = ((one, one.tags.get("transformer", "")) for one in same)
        versions = [int(one.version) for one, url in tagged if portable(url, root_of(url)) == relative]
        return str(max(versions)) if versions else None

    def mark(
        self, version: str, judged: Evaluated, *, judge: str | None, judged_against: str | None, run_id: str
    ) -> None:
        """Write a judgement on a version, in place of an earlier one; the version becomes the candidate.

        Until all of it is written the version counts as not judged, so that `promote` never acts on a part.

        Args:
            version: The judged version.
            judged: The metrics, the checks and the report.
            judge: The CLIP that computed the scores; None for the one that conditions the model.
            judged_against: The version that was champion, None if there was none.
            run_id: The MLflow run that has the report among its artifacts.
        """
        judge = judge or CONDITIONING
        report = f"runs:/{run_id}/{PurePosixPath(judged.report).name}"
        tags = judgement(judged) | {"judge": judge, "mlflow_run": run_id, "report": report}
        before = self.client.get_model_version(self.name, version).tags
        earlier = {key for key in before if key.startswith((SCORE, CHECK))} - tags.keys()
        for key in [JUDGED_AGAINST, *earlier] if JUDGED_AGAINST in before else earlier:
            self.client.delete_model_version_tag(self.name, version, key)
        for key, value in (tags | {JUDGED_AGAINST: judged_against or "none"}).items():
            self.client.set_model_version_tag(self.name, version, key, value)
        self.client.update_model_version(self.name, version, description(judged.metrics, judge))
        self.client.set_registered_model_alias(self.name, CANDIDATE, version)
