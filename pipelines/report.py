"""A stage's result as Dagster shows it: figures, previews, curves and checks.

Knows Markdown and Dagster's types; knows nothing of what the figures mean.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from clipgen_core.settings.catalogue import meaning
from clipgen_core.settings.evaluation import Thresholds

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from clipgen_core.judging.checks import Verdict
    from clipgen_core.training.loop import Fitted

THUMBNAIL = (480, 480)  # pixels; every event of Dagster keeps its own, so it is a few kB
QUALITY = 50
PLOTTED = ("generated/clip_score", "above_shuffled/mean", "against_champion/mean", "memory/copies")
THRESHOLDS = {  # the setting that each check of an evaluation compares with
    "enough_prompts": "min_prompts",
    "follows_prompts": "min_above_shuffled",
    "not_worse_than_champion": "tolerance",
    "codebook_in_use": "min_codebook_usage",
    "not_memorised": "max_copies",
}


def picture(image: "Image") -> dg.MarkdownMetadataValue:
    """An inline thumbnail; the report and MLflow have the image in full."""
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail(THUMBNAIL)
    small.save(buffer, "WEBP", quality=QUALITY)
    return _inline(buffer.getvalue(), "webp")


def preview(image: "Image | None") -> dict[str, dg.MarkdownMetadataValue]:
    """Metadata with a thumbnail; empty where there is no image."""
    return {"preview": picture(image)} if image else {}


def columns(url: str) -> dict[str, dg.TableSchema]:
    """Metadata with the columns of a Lance table."""
    from clipgen_core.data.tables import open_table

    return schema(open_table(url).schema)


def schema(fields: "Iterable[pa.Field[Any]]") -> dict[str, dg.TableSchema]:
    """Metadata with the columns of a table."""
    found = [
        dg.TableColumn(one.name, str(one.type), constraints=dg.TableColumnConstraints(nullable=one.nullable))
        for one in fields
    ]
    return {"dagster/column_schema": dg.TableSchema(found)}


def curve(history: list[dict[str, float]], name: str) -> dg.MarkdownMetadataValue:
    """A figure over the training steps.

    Args:
        history: One row per logged step, each with `step`.
        name: The figure; rows without it are left out.

    Returns:
        An inline image.
    """
    from matplotlib.figure import Figure

    points = [(row["step"], row[name]) for row in history if name in row]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=name.replace("_", " "))
    axes.plot([x for x, _ in points], [y for _, y in points])
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _inline(buffer.getvalue(), "png")


def fitted(result: "Fitted") -> dict[str, Any]:
    """Metadata of every training: its last metrics, its images, and its loss as a number and as a curve."""
    losses = [row["loss"] for row in result.history if "loss" in row]
    return {
        "images_per_second": round(result.images_per_second, 2),
        **({"precision": result.precision} if result.precision else {}),
        **({"loss": round(losses[-1], 4)} if losses else {}),
        "loss_curve": curve(result.history, "loss"),
        **{name: round(value, 4) for name, value in result.metrics.items()},
        **{name: picture(image) for name, image in result.images.items()},
    }


def warm_start(started_from: str | None, result: "Fitted") -> dict[str, Any]:
    """Metadata of a training that started from the weights of another.

    Args:
        started_from: The address of the weights; None from scratch.
        result: The training, which validated before its first step.

    Returns:
        The address and the validation loss before the first step; nothing from scratch.
    """
    if started_from is None:
        return {}
    before = next(row["validation_loss"] for row in result.history if row["step"] == 0)
    return {"started_from": started_from, "validation_loss_before": round(before, 4)}


def figures(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metadata of an evaluation: all figures as one table, and the scores as numbers, which Dagster plots."""
    rows = [dg.TableRecord({"figure": name, "value": round(value, 6)}) for name, value in metrics.items()]
    columns = [dg.TableColumn("figure", "string"), dg.TableColumn("value", "float")]
    table = dg.MetadataValue.table(rows, dg.TableSchema(columns))
    return {"figures": table, **{name: round(metrics[name], 6) for name in metrics if name.endswith(PLOTTED)}}


def check(
    name: str, passed: bool, said: str, advisory: bool = False, **figures: float
) -> dg.AssetCheckResult:
    """One check of an asset, with the figures that it looked at and their threshold.

    Args:
        name: The check's name.
        passed: Whether it passed.
        said: What is wrong, if it did not.
        advisory: It warns and stops nothing.
        figures: What it looked at.

    Returns:
        The result.
    """
    severity = dg.AssetCheckSeverity.WARN if advisory else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=severity,
        metadata=figures,
        description=None if passed else said,
    )


def thresholds(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks of an evaluation: what follows the asset waits for them.

    Args:
        asset: The asset's name.

    Returns:
        The checks, described by the settings that they compare with.
    """
    fields = Thresholds.model_fields
    return [
        dg.AssetCheckSpec(
            name, asset=asset, description=f"{meaning(fields[field])} (`thresholds.{field}`)", blocking=True
        )
        for name, field in THRESHOLDS.items()
    ]


def verdicts(judged: "Sequence[Verdict]", required: Thresholds) -> list[dg.AssetCheckResult]:
    """An evaluation's checks as Dagster's; one that failed or was not measured says why.

    Args:
        judged: The verdicts.
        required: What they were compared with.

    Returns:
        The results.
    """
    return [
        dg.AssetCheckResult(
            check_name=one.name,
            passed=one.passed,
            metadata={**one.figures, THRESHOLDS[one.name]: getattr(required, THRESHOLDS[one.name])},
            description=None if one.passed else one.reason if one.measured else one.said,
        )
        for one in judged
    ]


def _inline(data: bytes, kind: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![](data:image/{kind};base64,{base64.b64encode(data).decode()})")
