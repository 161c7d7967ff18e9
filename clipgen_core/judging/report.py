"""Renders the evaluation report: metrics and images on one self-contained HTML page."""

import base64
import io
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from clipgen_core.data.pixels import png_bytes
from clipgen_core.extras import needed_for
from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.copies import Nearest
from clipgen_core.judging.distances import NORMAL_95
from clipgen_core.judging.figures import REFERENCE
from clipgen_core.judging.impartiality import Impartiality
from clipgen_core.judging.metrics import BLURS

with needed_for("the evaluation report"):
    import jinja2
    from matplotlib.figure import Figure

KINDS = {
    "generated": "this model",
    "champion": "champion",
    "reconstructed": "reconstructions",
    "real": "real pictures",
}
FLOOR = "other real pictures: the floor"


class Column(NamedTuple):
    """How the page shows a metric: its heading, its format, and what it is multiplied with."""

    heading: str
    form: str = "{:.2f}"
    scale: float = 1.0


SCORES = {
    "clip_score": Column("CLIP score", "{:.3f}"),
    "recall@1": Column("recall@1"),
    "recall@5": Column("recall@5"),
}
DISTANCES = {
    "kid": Column("1000 KID", scale=1000),
    "kid_clip": Column("1000 KID, CLIP space", scale=1000),
    "fid": Column("FID (biased)", "{:.1f}"),
    "fid_clip": Column("FID, CLIP space (biased)", "{:.3f}"),
    "cmmd": Column("CMMD (biased)"),
    "precision": Column("precision"),
    "recall": Column("recall"),
    "density": Column("density"),
    "coverage": Column("coverage"),
    "inception_score": Column("Inception score"),
}
WITH_FLOOR = ("kid", "kid_clip", "fid", "fid_clip", "cmmd")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images for a prompt, the best first, with the CLIP score and the nearest training image of the best."""

    prompt: str
    pictures: list[Image.Image]
    score: float
    nearest: Nearest | None


@dataclass(frozen=True)
class Curve:
    """A metric over the steps of a training, as (step, value) pairs."""

    title: str
    points: list[tuple[float, float]]

    @property
    def uri(self) -> str:
        """A plot of the curve, as the data URI of an SVG file."""
        figure = Figure(figsize=(4, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([x for x, _ in self.points], [y for _, y in self.points], color="#3b82f6")
        axes.set_title(self.title, fontsize=9)
        axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        return data_uri(buffer.getvalue(), "image/svg+xml")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page; the template reads its attributes and properties.

    Attributes:
        metrics: Metrics by the names in metrics.json: `{split}/{kind}/{metric}`,
            `against_reference/{kind}/{metric}` and metrics of the models.
        judge: Who scored, and whom that favours.
        reference: Sentences about the reference set.
        champion: Name of the champion that the candidate was compared with.
        verdicts: Results of the checks.
        copy_share: Share of common codes from which an image counts as a memorised copy.
        views: Stored views of each training image that were compared; None if none are stored.
        samples: Images for the shown prompts.
        ranked: The best and the worst samples, by heading.
        reconstructions: Pairs of an image and its reconstruction.
        starts: Sentences about what the trainings were started from.
        curves: Training curves.
        made_from: Digests and versions of everything that the model was made from.
    """

    metrics: dict[str, float]
    judge: Impartiality
    reference: list[str]
    champion: str | None
    verdicts: list[Verdict]
    copy_share: float
    views: int | None
    samples: list[Sample]
    ranked: dict[str, list[Sample]]
    reconstructions: list[tuple[Image.Image, Image.Image]]
    starts: list[str]
    curves: list[Curve]
    made_from: dict[str, str]

    @property
    def splits(self) -> list[str]:
        """Names of the splits of the prompts."""
        return [name.removesuffix("/prompts") for name in self.metrics if name.endswith("/prompts")]

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of images that have scores, with their names on the page."""
        return {
            kind: name
            for kind, name in KINDS.items()
            if any(f"{split}/{kind}/clip_score" in self.metrics for split in self.splits)
        }

    @property
    def scores(self) -> dict[str, str]:
        """The scores of single images, with their names on the page."""
        return {key: column.heading for key, column in SCORES.items()}

    @property
    def distances(self) -> dict[str, str]:
        """The distances to the reference set that were measured, with their names on the page."""
        return {
            key: column.heading
            for key, column in DISTANCES.items()
            if f"{REFERENCE}/generated/{key}" in self.metrics
        }

    @property
    def compared(self) -> dict[str, str]:
        """The kinds of images that were compared with the reference set, with their names on the page."""
        floor = {"floor": FLOOR} if f"{REFERENCE}/floor/cmmd" in self.metrics else {}
        return self.kinds | floor

    @property
    def blurs(self) -> list[str]:
        """The KIDs of blurred images: in Inception's space if it is available, else in CLIP space."""
        space = "kid" if "kid" in self.distances else "kid_clip"
        return [space, *(f"{space}_{k}" for k in BLURS)]

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


def render(report: Report) -> str:
    """Render the page as HTML that loads no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipgen_core.judging"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = lambda image: data_uri(png_bytes(image), "image/png")
    return environment.get_template("report.html").render(report=report)


def sheet(samples: dict[str, list[Image.Image]], columns: int = 3, side: int = 96) -> Image.Image:
    """Arrange the images of several prompts on one sheet, each prompt below its images.

    Args:
        samples: The images of each prompt, at least one prompt.
        columns: Prompts in a row.
        side: Side of an image, in pixels.

    Returns:
        One RGB image.
    """
    count = max(len(row) for row in samples.values())
    width, height, gap = count * (side + 2), side + 24, 14
    rows = -(-len(samples) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, (prompt, images) in enumerate(samples.items()):
        left, top = number % columns * (width + gap), number // columns * height
        for i, image in enumerate(images):
            page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left + i * (side + 2), top))
        pen.text((left, top + side + 2), prompt, fill="black", font=font)
    return page


def data_uri(data: bytes, media_type: str) -> str:
    """Encode data as a data URI.

    Args:
        data: The content.
        media_type: Its media type, such as image/png.

    Returns:
        A base64 data URI.
    """
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
