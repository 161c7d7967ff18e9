import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data.order import Share, ShuffledOrder


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 70), st.integers(0, 5))
def test_every_pass_visits_every_row_once(parts: list[int], size: int, seed: int) -> None:
    rows, order = sum(parts), ShuffledOrder(parts, seed, window=2)
    seen = np.concatenate([order.batch(step, size) for step in range(-(-3 * rows // size))])
    for epoch in range(3):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = ShuffledOrder([60, 40], 7), ShuffledOrder([60, 40], 7)
    first.batch(3, 8)
    assert (first.batch(9, 8) == second.batch(9, 8)).all()
    assert (first.batch(9, 8) != ShuffledOrder([60, 40], 8).batch(9, 8)).any()


def test_a_window_at_a_time_is_in_use() -> None:
    order = ShuffledOrder([10] * 12, 3, window=4)
    first_window = order.batch(0, 40)
    assert len({row // 10 for row in first_window}) == 4
    assert (np.diff(first_window) != 1).any()


@given(st.integers(1, 40), st.integers(1, 6))
def test_shares_of_a_batch_make_up_the_batch(rows: int, of: int) -> None:
    batch = np.arange(rows)
    shares = [Share(i, of).take(batch) for i in range(of)]
    assert sorted(np.concatenate(shares)) == batch.tolist()
