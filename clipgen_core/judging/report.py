"""The content of an evaluation report: figures with their meaning, images, and what the model was made from.

Knows the names of figures and how they are written; knows nothing of HTML.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.copies import Nearest
from clipgen_core.judging.detail import DETAIL, MEANINGS, doubts
from clipgen_core.judging.distances import NORMAL_95
from clipgen_core.judging.figures import REFERENCE
from clipgen_core.judging.impartiality import Impartiality
from clipgen_core.judging.metrics import BLURS

KINDS = {
    "generated": "this model",
    "champion": "champion",
    "reconstructed": "reconstructions",
    "real": "real images",
}
FLOOR = "other real images: the floor"
EXTREMES = 8  # best and worst images that the page begins with


class Column(NamedTuple):
    """How the page shows a figure: its heading, what it means, its format, and what it is multiplied with."""

    heading: str
    meaning: str
    form: str = "{:.2f}"
    scale: float = 1.0


SCORES = {
    "clip_score": Column("CLIP score", "how well an image fits its prompt: the cosine of both", "{:.3f}"),
    "recall@1": Column("recall@1", "the share of images that fit no other prompt better than their own"),
    "recall@5": Column("recall@5", "the share of images whose own prompt is among the five that fit best"),
}
DISTANCES = {
    "kid": Column("1000 KID", "how far the images are from real ones, as Inception sees them", scale=1000),
    "kid_clip": Column("1000 KID, CLIP space", "how far they are as the judge's CLIP sees them", scale=1000),
    "fid": Column("FID (biased)", "a distance like KID that grows as there are fewer images", "{:.1f}"),
    "fid_clip": Column("FID, CLIP space (biased)", "such a distance as the judge's CLIP sees it", "{:.3f}"),
    "cmmd": Column("CMMD (biased)", "a distance in CLIP space that assumes no shape of the distribution"),
    "precision": Column("precision", "the share of images that lie among real ones"),
    "recall": Column("recall", "the share of real images that lie among these"),
    "density": Column("density", "how many real images lie around an image, 1 as for real ones"),
    "coverage": Column("coverage", "the share of real images that have one of these nearby"),
    "inception_score": Column("Inception score", "how distinct and how various the images are"),
}
FLOORS = {"clip_score": "with other prompts", "recall@5": "by chance"}  # of the scores that are drawn


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images for a prompt, the best first, with the CLIP score and the nearest training image of the best."""

    prompt: str
    pictures: list[Image.Image]
    score: float
    nearest: Nearest | None
    split: str = ""


@dataclass(frozen=True)
class Curve:
    """A metric over the steps of a training, as (step, value) pairs."""

    title: str
    points: list[tuple[float, float]]


class Mark(NamedTuple):
    """A value on a gauge. start and end: the interval, as `place` a share of the gauge's length."""

    kind: str
    name: str
    text: str
    place: float
    start: float
    end: float


class Gauge(NamedTuple):
    """A score of one split between its floor and its ceiling."""

    split: str
    column: Column
    marks: list[Mark]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page; the template reads its attributes and properties.

    Attributes:
        model: Name of the model in the registry.
        date: Day of the evaluation, as YYYY-MM-DD.
        metrics: Metrics by the names in metrics.json: `{split}/{kind}/{metric}`,
            `against_reference/{kind}/{metric}` and metrics of the models.
        names: Number of prompts among which an image's own prompt is ranked.
        judge: Who scored, and whom that favours.
        reference: Sentences about the reference set.
        champion: Name of the champion that the candidate was compared with.
        verdicts: Results of the checks.
        copy_share: Share of common codes from which an image counts as a memorised copy.
        views: Stored views of each training image that were compared; None if none are stored.
        samples: Images for the shown prompts.
        scored: One image for every scored prompt, the best CLIP score first.
        reconstructions: Pairs of an image and its reconstruction.
        starts: Sentences about what the trainings were started from.
        curves: Training curves.
        made_from: Digests and versions of everything that the model was made from.
    """

    model: str
    date: str
    metrics: dict[str, float]
    names: int
    judge: Impartiality
    reference: list[str]
    champion: str | None
    verdicts: list[Verdict]
    copy_share: float
    views: int | None
    samples: list[Sample]
    scored: list[Sample]
    reconstructions: list[tuple[Image.Image, Image.Image]]
    starts: list[str]
    curves: list[Curve]
    made_from: dict[str, str]

    pixel_figures = MEANINGS

    @property
    def splits(self) -> list[str]:
        """Names of the splits of the prompts."""
        return [name.removesuffix("/prompts") for name in self.metrics if name.endswith("/prompts")]

    @property
    def extremes(self) -> dict[str, list[Sample]]:
        """The best and the worst of the scored images, by heading; nothing where there are too few."""
        if len(self.scored) < 2 * EXTREMES:
            return {}
        return {"Best": self.scored[:EXTREMES], "Worst": self.scored[: -EXTREMES - 1 : -1]}

    @property
    def checks(self) -> list[Verdict]:
        """The checks that say something: all but the comparison with a champion where there is none."""
        return [one for one in self.verdicts if one.figures or not one.passed]

    @property
    def doubts(self) -> list[str]:
        """Why the scores may mean little."""
        return doubts(self.metrics)

    @property
    def pixels(self) -> dict[str, dict[str, float]]:
        """The figures of the pixels by kind of images; nothing where they were not measured."""
        return {
            kind: {name: self.metrics[f"{DETAIL}/{kind}/{name}"] for name in MEANINGS}
            for kind in self.kinds
            if f"{DETAIL}/{kind}/shape" in self.metrics
        }

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of images that have scores, with their names on the page."""
        return {
            kind: name
            for kind, name in KINDS.items()
            if any(f"{split}/{kind}/clip_score" in self.metrics for split in self.splits)
        }

    @property
    def scores(self) -> dict[str, Column]:
        """The scores of single images."""
        return SCORES

    @property
    def distances(self) -> dict[str, Column]:
        """The distances to the reference set that were measured, without those that are equal in each row."""
        return {
            key: column
            for key, column in DISTANCES.items()
            if f"{REFERENCE}/generated/{key}" in self.metrics
            and len({self.distance(kind, key) for kind in self.kinds}) > 1
        }

    @property
    def compared(self) -> dict[str, str]:
        """The kinds of images that were compared with the reference set, with their names on the page."""
        floor = {"floor": FLOOR} if f"{REFERENCE}/floor/cmmd" in self.metrics else {}
        return self.kinds | floor

    @property
    def blurs(self) -> list[str]:
        """The KIDs of blurred images: in Inception's space if it is available, else in CLIP space."""
        space = "kid" if f"{REFERENCE}/generated/kid" in self.metrics else "kid_clip"
        return [space, *(f"{space}_{k}" for k in BLURS)]

    @property
    def gauges(self) -> list[Gauge]:
        """The main scores of each split, between the floor and the score of real images; no score that every
        image reaches by chance."""
        drawn = [metric for metric in FLOORS if self._floor("", metric) < 1]
        return [self._gauge(split, metric) for split in self.splits for metric in drawn]

    def _gauge(self, split: str, metric: str) -> Gauge:
        floor = self._floor(split, metric)
        keys = {kind: f"{split}/{kind}/{metric}" for kind in self.kinds}
        values = {kind: self.metrics[key] for kind, key in keys.items() if key in self.metrics}
        low, high = min(floor, *values.values()), max(floor, *values.values())

        def mark(kind: str, name: str, text: str, value: float, half_width: float = 0.0) -> Mark:
            ends = np.array([value, value - half_width, value + half_width])
            return Mark(kind, name, text, *np.clip((ends - low) / (high - low or 1.0), 0, 1).tolist())

        marks = [mark("floor", FLOORS[metric], SCORES[metric].form.format(floor), floor)]
        for kind, value in values.items():
            half_width = self.metrics.get(f"{keys[kind]}/half_width", 0.0)
            marks.append(mark(kind, KINDS[kind], self.score(split, kind, metric), value, half_width))
        return Gauge(split, SCORES[metric], marks)

    def _floor(self, split: str, metric: str) -> float:
        """The score of images that have nothing to do with their prompts."""
        if metric == "clip_score":
            return self.metrics.get(f"{split}/generated/other_prompts", 0.0)
        return min(5 / max(self.names, 1), 1.0)

    def score(self, split: str, kind: str, metric: str) -> str:
        """Format a score for the table.

        Args:
            split: The split of the prompts.
            kind: The kind of images.
            metric: The score.

        Returns:
            Its value, and half the width of its interval.
        """
        key = f"{split}/{kind}/{metric}"
        return _shown(SCORES[metric], self.metrics[key], self.metrics.get(f"{key}/half_width"))

    def distance(self, kind: str, metric: str) -> str:
        """Format a distance for the table.

        Args:
            kind: The kind of images.
            metric: The distance.

        Returns:
            Its value, half the width of its 95 % interval if it has one, and a dagger where that overlaps the
            interval of the floor; "" where there is no value.
        """
        key = f"{REFERENCE}/{kind}/{metric}"
        if key not in self.metrics:
            return ""
        error = self.metrics.get(f"{key}/standard_error")
        column = DISTANCES.get(metric, DISTANCES[self.blurs[0]])
        text = _shown(column, self.metrics[key], None if error is None else NORMAL_95 * error)
        return f"{text} †" if self._like_the_floor(kind, metric) else text

    def _like_the_floor(self, kind: str, metric: str) -> bool:
        """Whether a distance cannot be told from that of as many real images."""
        key, floor = f"{REFERENCE}/{kind}/{metric}", f"{REFERENCE}/floor/{metric}"
        if kind in ("real", "floor") or floor not in self.metrics:
            return False
        errors = (self.metrics.get(f"{one}/standard_error", 0.0) for one in (key, floor))
        return self.metrics[key] - self.metrics[floor] <= NORMAL_95 * sum(errors)


def _shown(column: Column, value: float, half_width: float | None) -> str:
    text = column.form.format(column.scale * value)
    return text if half_width is None else f"{text} ± {column.form.format(column.scale * half_width)}"
