"""An evaluation as its report's folder records it: enough to register the generator without judging again.

Knows the file evaluation.json; knows nothing of MLflow.
"""

import json
from dataclasses import dataclass

from clipgen_core.filesystem import exists, read_bytes
from clipgen_core.judging.checks import Verdict
from clipgen_core.storage import located, portable

RECORD, METRICS = "evaluation.json", "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was judged, by whom, and with which result.

    Attributes:
        folder: That of the report.
        model: Name of the registered model.
        transformer: The checkpoint of the judged generator.
        judge: The CLIP that computed the scores; None for the one that conditions the model.
        judged_against: The version that was champion; None if there was none.
        verdicts: Of the checks.
        metrics: By name.
    """

    folder: str
    model: str
    transformer: str
    judge: str | None
    judged_against: str | None
    verdicts: list[Verdict]
    metrics: dict[str, float]

    @property
    def report(self) -> str:
        return f"{self.folder}/report.html"

    def record(self, root: str) -> str:
        """The text of evaluation.json, with addresses relative to the root."""
        values = {
            "model": self.model,
            "transformer": portable(self.transformer, root),
            "judge": portable(self.judge, root),
            "judged_against": self.judged_against,
            "verdicts": [one._asdict() for one in self.verdicts],
        }
        return json.dumps(values, indent=2)

    @classmethod
    def read(cls, folder: str, root: str) -> "Evaluation | None":
        """Read the evaluation of a report.

        Args:
            folder: That of the report.
            root: Where the root lies now.

        Returns:
            The evaluation; None if an earlier version of clipgen wrote the report.
        """
        if not exists(f"{folder}/{RECORD}"):
            return None
        values = located(json.loads(read_bytes(f"{folder}/{RECORD}")), root)
        verdicts = [Verdict(**one) for one in values.pop("verdicts")]
        metrics = json.loads(read_bytes(f"{folder}/{METRICS}"))
        return cls(folder=folder, verdicts=verdicts, metrics=metrics, **values)
