import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data.order import ShuffledOrder


@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 5))
def test_every_pass_visits_every_row_once(rows: int, size: int, seed: int) -> None:
    order = ShuffledOrder(rows, seed)
    seen = np.concatenate([order.batch(step, size) for step in range(-(-3 * rows // size))])
    for epoch in range(3):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = ShuffledOrder(100, 7), ShuffledOrder(100, 7)
    first.batch(3, 8)
    assert (first.batch(9, 8) == second.batch(9, 8)).all()
    assert (first.batch(9, 8) != ShuffledOrder(100, 8).batch(9, 8)).any()
