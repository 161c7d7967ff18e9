import numpy as np
import pytest
from PIL import Image

from clipgen_core.judging.detail import doubts, figures_of
from clipgen_core.judging.metrics import blurred
from tests.conftest import COLOURS, SHAPES, draw

REAL = [draw(colour, shape, 64) for colour in COLOURS for shape in SHAPES]


def of_real(images: list[Image.Image]) -> dict[str, float]:
    real = figures_of(REAL)
    return {name: value / real[name] for name, value in figures_of(images).items()}


def said(images: list[Image.Image]) -> str:
    figures = {f"detail/generated/{name}": value for name, value in of_real(images).items()}
    return " ".join(doubts({"all/prompts": 40, **figures}))


def test_sharpness_and_shape_by_hand() -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 255  # neighbours are -1 and 1: all is lost at half the side
    fine = Image.fromarray(np.repeat(board.astype(np.uint8)[..., None], 3, axis=2))
    figures = figures_of([fine, fine])
    assert figures == {"sharpness": pytest.approx(1), "shape": pytest.approx(0, abs=1e-6), "variety": 0}
    cells = fine.resize((16, 16)).resize((64, 64), Image.Resampling.NEAREST)
    coarse = figures_of([Image.fromarray(np.kron(board[:16, :16], np.ones((4, 4)))).convert("RGB"), cells])
    assert coarse["shape"] == pytest.approx(0.5, abs=0.01)  # all of the first, nothing of the second


def test_real_images_in_another_order_and_softer_ones_raise_no_doubt() -> None:
    assert of_real(REAL[::-1]) == pytest.approx(dict.fromkeys(("sharpness", "shape", "variety"), 1))
    soft = of_real(blurred(REAL, 1))
    assert soft["sharpness"] < 0.8 and soft["shape"] > 0.8 and not said(blurred(REAL, 1))


def test_blotches_of_the_right_colour_are_doubted() -> None:
    blotches = blurred(REAL, 8)
    assert of_real(blotches)["variety"] > 0.5 and "they are blotches" in said(blotches)


def test_noise_is_doubted() -> None:
    rng = np.random.default_rng(0)
    grids = [Image.fromarray(rng.integers(0, 2, (16, 16), np.uint8) * 255).convert("RGB") for _ in REAL]
    assert "they are noise" in said([one.resize((64, 64), Image.Resampling.NEAREST) for one in grids])


def test_one_image_for_all_prompts_is_doubted() -> None:
    assert "they look alike for all prompts" in said([REAL[0]] * 24)


def test_few_prompts_are_doubted() -> None:
    assert "Only 5 prompts were scored" in " ".join(doubts({"train/prompts": 3, "held-out/prompts": 2}))
    assert not doubts({"train/prompts": 20}) and not doubts({})
