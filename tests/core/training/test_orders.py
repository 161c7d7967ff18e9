import numpy as np
import pytest

from clipgen_core.models.layout import NONE
from clipgen_core.training.orders import draw_order, predicted_share

RASTER = list(range(-1, 15)), list(range(16))


def drawn(order: str, row: int, progress: float) -> np.ndarray:
    return draw_order(np.random.default_rng([0, row]), order, 16, progress)


def test_annealed_orders_are_random_first_and_raster_in_the_end() -> None:
    shares = []
    for progress in (0.0, 0.5, 0.625, 0.75, 1.0):
        rows = [drawn("annealed", row, progress) for row in range(200)]
        assert all(sorted(row[1]) == RASTER[1] for row in rows)
        shares.append(np.mean([(row[0].tolist(), row[1].tolist()) == RASTER for row in rows]))
    assert shares == [0, 0, pytest.approx(0.5, abs=0.1), 1, 1]


def test_any_order_has_groups_of_all_sizes_and_sometimes_given_codes() -> None:
    rows = [drawn("any", row, 0.5) for row in range(300)]
    assert {row.shape for row in rows} == {(3, 16)}
    predicted = np.array([(row[1] != NONE).sum() for row in rows])
    assert 0.7 < (predicted == 16).mean() < 0.9 and predicted.min() < 4
    assert predicted.mean() / 16 == pytest.approx(predicted_share("any"), abs=0.03)
    steps = [row[2][row[1] != NONE].max() + 1 for row in rows]
    assert min(steps) == 1 and max(steps) >= 15
    assert len({tuple(row[1]) for row in rows}) > 290
