"""The evaluation report: figures and pictures to one self-contained HTML page."""

import base64
import io
from dataclasses import dataclass

import jinja2
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from clipgen_core.data.pictures import png_bytes

KINDS = ("generated", "reconstructed", "real")
SCORES = ("clip_score", "recall@1", "recall@5", "fid_clip")


@dataclass(frozen=True)
class Picture:
    image: Image.Image

    @property
    def uri(self) -> str:
        return data_uri(png_bytes(self.image), "image/png")


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
    title: str
    metrics: dict[str, float]
    judge: str
    samples: dict[str, list[Picture]]
    reconstructions: list[tuple[Picture, Picture]]
    curves: list[Curve]
    made_from: dict[str, str]

    @property
    def splits(self) -> list[str]:
        return [name.removesuffix("/prompts") for name in self.metrics if name.endswith("/prompts")]


def render(report: Report) -> str:
    """The page; it loads nothing from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipgen_core"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(report=report, kinds=KINDS, scores=SCORES)


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
