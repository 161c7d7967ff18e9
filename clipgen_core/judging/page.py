"""The evaluation report as one HTML page that loads no other file and runs no script.

Knows what a report contains and how people read it; knows nothing of how figures are computed.
"""

import base64
import io
from collections.abc import Callable
from functools import partial

import jinja2
from PIL import Image

from clipgen_core.extras import needed_for
from clipgen_core.judging.report import Curve, Report

with needed_for("the evaluation report"):
    from matplotlib.figure import Figure

MOST_BYTES = 5_000_000  # of the page, so that it opens on a phone
TRIED = ((256, True), (160, True), (96, True), (64, True), (64, False), (40, False))
"""Longest sides of its images in pixels, and whether those up to SMALL are stored without loss."""
SMALL = 64


def render(report: Report) -> str:
    """Render the page. Its images are as large as fits MOST_BYTES.

    Args:
        report: What it shows.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipgen_core.judging"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for side, exact in TRIED:
        environment.filters |= _filters(side, exact)
        page = environment.get_template("report.html").render(report=report)
        if len(page) <= MOST_BYTES:
            break
    return page


def _filters(side: int, exact: bool) -> dict[str, Callable[..., str]]:
    return {"uri": partial(_image_uri, side=side, exact=exact), "plot": _plot_uri, "percent": "{:.1%}".format}


def _image_uri(image: Image.Image, side: int, exact: bool) -> str:
    shown = image.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "webp", lossless=exact and max(shown.size) <= SMALL, quality=85)
    return data_uri(buffer.getvalue(), "image/webp")


def _plot_uri(curve: Curve) -> str:
    """A plot of a training curve, as an SVG file."""
    figure = Figure(figsize=(4, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], color="#3b82f6")
    axes.set_title(curve.title, fontsize=9)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return data_uri(buffer.getvalue(), "image/svg+xml")


def data_uri(data: bytes, media_type: str) -> str:
    """Encode data as a data URI.

    Args:
        data: The content.
        media_type: Its media type, such as image/png.

    Returns:
        A base64 data URI.
    """
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
