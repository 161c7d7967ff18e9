import itertools

import numpy as np
import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.steps import Plan, by_locality, padded, plan_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig


def model(order: str) -> Transformer:
    return Transformer(TransformerConfig(width=16, layers=1, heads=2, order=order), 5, 4, 3)  # type: ignore[arg-type]


def targets_of(made: Plan) -> list[list[int]]:
    return [[target for target in row[16:32].tolist() if target != NONE] for row in made.table]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("order", "steps"), [("raster", 16), ("annealed", 16), ("any", 8)])
def test_every_position_is_predicted_in_one_step(order: str, steps: int, fixed: bool) -> None:
    made = plan_of(model(order), 0, fixed=fixed)
    targets = targets_of(made)
    assert len(made.shapes) == len(targets) == steps
    assert sorted(itertools.chain(*targets)) == list(range(16))
    assert all(shape.predicted >= len(row) for shape, row in zip(made.shapes, targets, strict=True))
    if order != "any":
        assert targets == [[position] for position in range(16)]


def test_steps_that_are_recorded_have_few_shapes() -> None:
    known = torch.full((1, 16), NONE)
    known[:, :5] = 1
    assert len(set(plan_of(model("raster"), 0, fixed=True).shapes)) == 2
    larger = Transformer(TransformerConfig(width=16, layers=1, heads=2, order="any"), 5, 16, 3)
    made = plan_of(larger, 20, fixed=True)
    assert len(made.shapes) == 20 and len(set(made.shapes)) <= 8
    assert set(made.shapes[1:]) & set(plan_of(larger, 32, fixed=True).shapes[1:])
    assert len({shape.reach for shape in plan_of(model("any"), 0, known, fixed=True).shapes}) == 1


def test_sizes_are_little_larger_than_asked_for() -> None:
    assert [padded(count) for count in (1, 2, 4, 5, 32, 33, 200)] == [1, 4, 4, 8, 32, 40, 224]
    assert all(count <= padded(count) <= max(1.25 * count, 4 + count // 4 * 4) for count in range(1, 1025))


def test_positions_of_a_step_are_far_apart_and_beside_known_codes() -> None:
    positions, targets, steps = by_locality(8, 16)
    place = np.stack(np.divmod(np.arange(64), 8), axis=1)
    for step in range(16):
        asked = targets[(steps == step) & (targets != NONE)]
        distances = np.linalg.norm(place[asked][:, None] - place[asked][None], axis=2)
        if step < 12:  # few positions are left then
            assert (distances + 9 * np.eye(len(asked)) > 1).all()  # none are neighbours
        known = positions[(steps <= step) & (positions != NONE)]
        if step >= 8:
            nearest = np.linalg.norm(place[asked][:, None] - place[known][None], axis=2).min(1)
            assert nearest.mean() < 1.3


def test_only_positions_without_a_code_are_predicted() -> None:
    known = torch.full((2, 16), NONE)
    known[:, 3:14] = 1
    targets = targets_of(plan_of(model("any"), 3, known))
    assert sorted(itertools.chain(*targets)) == [0, 1, 2, 14, 15] and len(targets) == 3


def test_what_a_model_cannot_do_is_one_sentence() -> None:
    known = torch.zeros(1, 16, dtype=torch.long)
    known[0, 0] = NONE
    for order in ("raster", "annealed"):
        with pytest.raises(ClipgenError, match="takes 16 steps, not 4"):
            plan_of(model(order), 4)
        with pytest.raises(ClipgenError, match="editing needs one that was trained with"):
            plan_of(model(order), 0, known)
    with pytest.raises(ClipgenError, match="steps is 17, but an image has only 16 codes"):
        plan_of(model("any"), 17)
    assert len(plan_of(model("any"), 4, known).shapes) == 1  # there is one code to predict
