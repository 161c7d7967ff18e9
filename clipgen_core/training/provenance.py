"""The two JSON records of a checkpoint: what it was made from, and how far its training is.

The names on disk are those of version 0.1, so that checkpoints of every version are read alike, and the
digest of a record does not change when it is read and written again.
"""

from collections.abc import Sequence

from pydantic import ConfigDict, Field, JsonValue

from clipgen_core.schema import Frozen, TokenManifest, digest_of
from clipgen_core.settings.training import Precision, TrainConfig

GOAL = "validation_loss"  # tells a better checkpoint from a worse one


class ImportedFile(Frozen):
    """The published file that weights were imported from."""

    kind: str
    file: str
    sha256: str


class ImportedCodes(Frozen):
    """What is known of the codes that an imported transformer was trained on."""

    grid: int
    codebook_size: int
    embedding_dim: int
    images_digest: str
    vqgan_digest: str
    images: str = ""
    images_version: int | None = None


class StartedFrom(Frozen):
    """The weights that a training started from: address, digest of their provenance, and whether they
    were imported, at once or by way of other trainings."""

    url: str
    digest: str
    imported: bool = False


class Provenance(Frozen):
    """What a checkpoint was made from: its `config.json`.

    `config` is the stage's full configuration. The other fields are there as far as the stage has them;
    `texts`, `image_count` and `started_from` are younger than version 0.1.
    """

    config: dict[str, JsonValue]
    captions: str | None = None
    images_digest: str | None = None
    clip: str | None = None
    tokens: TokenManifest | ImportedCodes | None = None
    imported: ImportedFile | None = None
    texts: str | None = None
    image_count: int | None = None
    started_from: StartedFrom | None = None

    @property
    def record(self) -> dict[str, JsonValue]:
        """The record as JSON holds it: only what was given."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def digest(self) -> str:
        """16 hex digits over the record."""
        return digest_of(self.record)


class TrainingState(Frozen):
    """How far a training is: the `state.json` of a checkpoint."""

    model_config = ConfigDict(populate_by_name=True)

    step: int
    history: Sequence[dict[str, float]] = ()
    images_per_second: float = Field(default=0.0, alias="pictures_per_second")
    precision: Precision | None = None  # of the matrix products; None in checkpoints of version 0.1

    @property
    def validations(self) -> list[dict[str, float]]:
        """The rows of the history that hold a validation loss, oldest first."""
        return [row for row in self.history if GOAL in row]

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss so far."""
        row = min(self.validations, key=lambda row: row[GOAL], default=None)
        return None if row is None else int(row["step"])

    def stale(self, patience: int) -> bool:
        """Whether the last `patience` validations (0: no limit) have brought nothing better."""
        after_best = sum(row["step"] > (self.best or 0) for row in self.validations)
        return 0 < patience <= after_best

    def finished(self, config: TrainConfig) -> bool:
        """Whether a training with these settings ends here."""
        return self.step >= config.steps or self.stale(config.patience)
