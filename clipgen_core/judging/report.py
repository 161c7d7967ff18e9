"""Renders the evaluation report: metrics and images on one self-contained HTML page."""

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from clipgen_core.data.pixels import png_bytes
from clipgen_core.extras import needed_for
from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.copies import Nearest

with needed_for("the evaluation report"):
    import jinja2
    from matplotlib.figure import Figure

KINDS = {
    "generated": "this model",
    "champion": "champion",
    "reconstructed": "reconstructions",
    "real": "real pictures",
}
COLUMNS = {  # metric: (its name on the page, its format)
    "clip_score": ("CLIP score", "{:.3f}"),
    "recall@1": ("recall@1", "{:.2f}"),
    "recall@5": ("recall@5", "{:.2f}"),
    "fid": ("FID", "{:.1f}"),
    "fid_clip": ("FID, CLIP space", "{:.3f}"),
    "cmmd": ("CMMD", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "density": ("density", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "inception_score": ("Inception score", "{:.2f}"),
}


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
        metrics: Metrics by the names in metrics.json: `{split}/{kind}/{metric}` and metrics of the models.
        judge: Name of the CLIP that scored.
        champion: Name of the champion that the candidate was compared with.
        verdicts: Results of the checks.
        copy_share: Share of common codes from which an image counts as a memorised copy.
        samples: Images for the shown prompts.
        ranked: The best and the worst samples, by heading.
        reconstructions: Pairs of an image and its reconstruction.
        curves: Training curves.
        made_from: Digests and versions of everything that the model was made from.
    """

    metrics: dict[str, float]
    judge: str
    champion: str | None
    verdicts: list[Verdict]
    copy_share: float
    samples: list[Sample]
    ranked: dict[str, list[Sample]]
    reconstructions: list[tuple[Image.Image, Image.Image]]
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
    def columns(self) -> dict[str, str]:
        """The metrics that the table shows, with their names on the page."""
        first = f"{self.splits[0]}/generated/"
        return {key: name for key, (name, _) in COLUMNS.items() if first + key in self.metrics}

    @property
    def blurs(self) -> list[str]:
        """The FID-k metrics: in Inception's space if it is available, else in CLIP space."""
        space = "fid" if f"{self.splits[0]}/generated/fid" in self.metrics else "fid_clip"
        return [space, *(f"{space}_{k}" for k in (1, 2, 4, 8))]

    def cell(self, split: str, kind: str, metric: str) -> str:
        """Format a metric for the table.

        Args:
            split: The split of the prompts.
            kind: The kind of images.
            metric: The metric.

        Returns:
            Its value, and half the width of its interval if it has one.
        """
        key = f"{split}/{kind}/{metric}"
        form = COLUMNS.get(metric, ("", "{:.3f}"))[1]
        half_width = self.metrics.get(f"{key}/half_width")
        text = form.format(self.metrics[key])
        return text if half_width is None else f"{text} ± {form.format(half_width)}"


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
