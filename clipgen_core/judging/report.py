"""The evaluation report: figures and pictures to one self-contained HTML page."""

import base64
import io
from dataclasses import dataclass

import jinja2
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from clipgen_core.data.pixels import png_bytes
from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.copies import Nearest

KINDS = {
    "generated": "this model",
    "champion": "champion",
    "reconstructed": "reconstructions",
    "real": "real pictures",
}
HEADLINES = {  # figure: (what it is, how it is written)
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
    """Pictures of a prompt, the best first; the best one's CLIP score and nearest training picture."""

    prompt: str
    pictures: list[Image.Image]
    score: float
    nearest: Nearest | None


@dataclass(frozen=True)
class Curve:
    """A figure over training steps: (step, value) pairs."""

    title: str
    points: list[tuple[float, float]]

    @property
    def uri(self) -> str:
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
        return [name.removesuffix("/prompts") for name in self.metrics if name.endswith("/prompts")]

    @property
    def kinds(self) -> dict[str, str]:
        return {
            kind: name
            for kind, name in KINDS.items()
            if any(f"{split}/{kind}/clip_score" in self.metrics for split in self.splits)
        }

    @property
    def columns(self) -> dict[str, str]:
        """The figures that the table shows, with their names."""
        first = f"{self.splits[0]}/generated/"
        return {key: name for key, (name, _) in HEADLINES.items() if first + key in self.metrics}

    @property
    def blurs(self) -> list[str]:
        """The figures of FID-k, in the space that is at hand."""
        space = "fid" if f"{self.splits[0]}/generated/fid" in self.metrics else "fid_clip"
        return [space, *(f"{space}_{k}" for k in (1, 2, 4, 8))]

    def cell(self, split: str, kind: str, figure: str) -> str:
        """A figure and half the width of its interval, where it has one."""
        key = f"{split}/{kind}/{figure}"
        form = HEADLINES.get(figure, ("", "{:.3f}"))[1]
        half_width = self.metrics.get(f"{key}/half_width")
        text = form.format(self.metrics[key])
        return text if half_width is None else f"{text} ± {form.format(half_width)}"


def render(report: Report) -> str:
    """The page; it loads nothing from anywhere."""
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
    """Pictures of each prompt side by side with the prompt below, prompts in columns."""
    count = max(len(row) for row in samples.values())
    width, height, gap = count * (side + 2), side + 24, 14
    rows = -(-len(samples) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, (prompt, pictures) in enumerate(samples.items()):
        left, top = number % columns * (width + gap), number // columns * height
        for i, picture in enumerate(pictures):
            page.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left + i * (side + 2), top))
        pen.text((left, top + side + 2), prompt, fill="black", font=font)
    return page


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
