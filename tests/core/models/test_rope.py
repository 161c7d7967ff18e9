import pytest
import torch

from clipgen_core.models.rope import rotary_embedding, rotate


def test_scores_depend_on_the_distance_between_codes_in_both_directions() -> None:
    rotary = rotary_embedding(grid=4, head_width=8, prefix=1)
    assert (rotary[0, 0] == 1).all() and (rotary[1, 0] == 0).all()
    query, key = torch.randn(8), torch.randn(8)

    def match(a: int, b: int) -> float:
        return float(rotate(query, rotary[:, 1 + a]) @ rotate(key, rotary[:, 1 + b]))

    assert match(0, 5) == pytest.approx(match(9, 14), abs=1e-5)  # one row down, one column right
    assert match(0, 1) == pytest.approx(match(5, 6), abs=1e-5)
    assert match(0, 1) != pytest.approx(match(0, 4), abs=1e-3)
