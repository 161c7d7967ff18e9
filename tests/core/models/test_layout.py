import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.models.layout import NONE, Layout, group_sizes, tokens_of

SIZES = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=6))


@given(SIZES, st.integers(0, 5))
def test_every_code_that_is_not_given_is_predicted_once_from_the_codes_before_it(
    drawn: tuple[int, list[int]], more: int
) -> None:
    sizes = [drawn[0], *drawn[1]]
    order = np.random.default_rng(sum(sizes)).permutation(sum(sizes))
    least = tokens_of(order, sizes).shape[1]
    positions, targets, steps = tokens_of(order, sizes, least + more)
    assert len(steps) == least + more
    assert sorted(targets[targets != NONE]) == sorted(order[sizes[0] :])
    ends = np.cumsum(sizes)
    for step in range(len(sizes) - 1):
        seen = positions[(steps <= step) & (positions != NONE)]
        assert sorted(seen) == sorted(order[: ends[step]])
        asked = targets[steps == step]
        assert sorted(asked[asked != NONE]) == sorted(order[ends[step] : ends[step + 1]])
        assert (asked[: sizes[step + 1]] != NONE).all()  # they come first
    assert (steps[least:] == len(sizes) - 1).all() and (targets[least:] == NONE).all()


@given(st.integers(1, 300), st.data())
def test_groups_grow_and_hold_every_code(count: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, count))
    sizes = group_sizes(count, steps)
    assert len(sizes) == steps and sizes.sum() == count
    assert sizes.min() >= 1 and (np.diff(sizes) >= 0).all()
    assert tokens_of(np.arange(count), [0, *sizes]).shape[1] == count


def test_codes_and_logits_go_to_their_positions() -> None:
    codes = torch.tensor([[3, 1, 4, 2]])
    layout = Layout.stack([tokens_of(np.array([2, 0, 3, 1]), [1, 1, 2], 6)])
    assert layout.held(codes).tolist() == [[4, 3, NONE, NONE, NONE, NONE]]
    assert layout.wanted(codes).tolist() == [[3, 2, 1, NONE, NONE, NONE]]
    logits = torch.arange(30.0).view(1, 6, 5)
    placed = layout.by_position(logits, codes)
    assert torch.equal(placed[0, [0, 3, 1]], logits[0, :3])
    assert placed[0, 2].argmax() == 4 and placed[0, 2].softmax(0).max() > 0.999
