"""What a training has left in its checkpoints: how far it is, and its result once it is finished."""

from dataclasses import dataclass

from PIL import Image

from clipgen_core import logs
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.training import Precision, TrainConfig
from clipgen_core.training.checkpoint import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training, as its checkpoints tell it.

    checkpoint: the URL of the one to use: the best where `patience` ends trainings, else the last.
    history: rows of metrics, each with its step.
    metrics, images: of the validation of that checkpoint.
    precision: of the matrix products; None where a checkpoint of version 0.1 ended the training.
    """

    checkpoint: str
    history: list[dict[str, float]]
    metrics: dict[str, float]
    images: dict[str, Image.Image]
    images_per_second: float
    precision: Precision | None


def say_how_far(checkpoints: Checkpoints, config: TrainConfig, label: str) -> None:
    """Log that a training goes on, or is finished; nothing of a new one.

    Args:
        checkpoints: Of the training.
        config: How long it is.
        label: What messages call it.
    """
    newest, used = checkpoints.latest(), checkpoints.to_use(config.patience)
    if newest is None or used is None:
        return
    step = newest.state.step
    if newest.state.finished(config):
        logs.line(f"the training of the {label} is finished ({step} steps): checkpoint {used.url}")
    else:
        logs.line(f"the training of the {label} goes on at step {step} of {config.steps}")


def read_finished(checkpoints: Checkpoints, config: TrainConfig) -> Fitted:
    """What a finished training left in its checkpoints.

    Args:
        checkpoints: Of the training; at least one is there.
        config: Tells whether the best or the last one is to be used.

    Returns:
        The finished training.
    """
    newest, used = checkpoints.latest(), checkpoints.to_use(config.patience)
    if newest is None or used is None:
        raise ClipgenError(f"{checkpoints.url} has no checkpoint: train first")
    state = newest.state
    row = next((row for row in reversed(state.validations) if row["step"] == used.state.step), {})
    return Fitted(
        checkpoint=used.url,
        history=list(state.history),
        metrics={name: value for name, value in row.items() if name != "step"},
        images=used.images(),
        images_per_second=state.images_per_second,
        precision=state.precision,
    )
