"""Compares generated images with real ones by their pixels alone, and says what to doubt.

Knows pixels; knows no network. A CLIP that was trained on few captions, or on few images, gives full scores
to blotches of the right colour. These figures do not.
"""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from clipgen_core.data.pixels import to_tensor
from clipgen_core.judging.trials import REAL, Trial

DETAIL = "detail"
FEWEST = 8  # images of a kind
FINE, COARSE = 16, 8  # sides of the grids between which shapes are looked for
RANGE = (0.5, 2.0)  # of a figure; real images have 1
FEW_PROMPTS = 20
MEANINGS = {
    "sharpness": "contrast of neighbouring pixels: below 1, images are softer than real ones",
    "shape": "contrast of shapes a tenth of the image wide: far below 1, there are only blotches",
    "variety": "how much images differ from each other: far below 1, they look alike",
}


def against_pixels(trials: Sequence[Trial]) -> dict[str, float]:
    """Sharpness, shape and variety of each kind of images, of all splits together.

    Args:
        trials: One a split.

    Returns:
        `detail/{kind}/{figure}`, as multiples of the real images' figures; nothing if there are too few.
    """
    images = {kind: [one for trial in trials for one in trial.images[kind]] for kind in trials[0].images}
    if len(images[REAL]) < FEWEST:
        return {}
    real = figures_of(images.pop(REAL))
    own = {kind: figures_of(shown) for kind, shown in images.items()}
    return {
        f"{DETAIL}/{kind}/{name}": value / max(real[name], 1e-6)
        for kind, figures in own.items()
        for name, value in figures.items()
    }


def figures_of(images: list[Image.Image]) -> dict[str, float]:
    """What the pixels of a set of images say, in units of the pixels' range of 2.

    Args:
        images: RGB, of one size, the side at least FINE and even.

    Returns:
        `sharpness`: mean standard deviation of the brightness within squares of 2 x 2 pixels.
        `shape`: the same between a grid of 16 x 16 and one of 8 x 8, which shows shapes, and not their edges.
        `variety`: standard deviation of each cell of the coarse grid from image to image, root mean square.
    """
    pixels = to_tensor(images)
    brightness = pixels.mean(1, keepdim=True)
    grid = adaptive_avg_pool2d(brightness, FINE)
    cells = adaptive_avg_pool2d(pixels, COARSE)
    return {
        "sharpness": _lost(brightness, brightness.shape[-1] // 2),
        "shape": _lost(grid, COARSE),
        "variety": float(cells.var(0).mean().sqrt()),
    }


def _lost(images: torch.Tensor, side: int) -> float:
    """What a smaller side loses, as root mean square, averaged over the images."""
    coarse = interpolate(adaptive_avg_pool2d(images, side), size=images.shape[-2:], mode="nearest")
    return float((images - coarse).square().mean((1, 2, 3)).sqrt().mean())


def doubts(metrics: Mapping[str, float]) -> list[str]:
    """Why good scores of an evaluation may mean little.

    Args:
        metrics: Metrics of an evaluation, by the names in its metrics.json.

    Returns:
        Sentences for the report; none if there is no doubt.
    """
    shape, variety = (metrics.get(f"{DETAIL}/generated/{name}", 1.0) for name in ("shape", "variety"))
    found = []
    if not RANGE[0] <= shape <= RANGE[1]:
        found.append(
            f"The shapes in the generated images have {shape:.0%} of the contrast that real images have: "
            f"they are {'blotches' if shape < 1 else 'noise'}, whatever the CLIP score. Train longer."
        )
    if variety < RANGE[0]:
        found.append(
            f"The generated images differ from each other by {variety:.0%} of what real images do: "
            "they look alike for all prompts. Train the transformer longer."
        )
    prompts = sum(value for name, value in metrics.items() if name.endswith("/prompts"))
    if 0 < prompts < FEW_PROMPTS:
        found.append(
            f"Only {prompts:.0f} prompts were scored: a CLIP that tells only these apart gives full scores "
            "to any image that differs between them. Give more prompts, and another CLIP as the judge."
        )
    return found
