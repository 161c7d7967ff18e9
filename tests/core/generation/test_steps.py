import itertools

import numpy as np
import pytest

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.steps import Plan, Shape, by_locality, padded, plan_of, shape_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig


def model(order: str) -> Transformer:
    return Transformer(TransformerConfig(width=16, layers=1, heads=2, order=order), 5, 4, 3)  # type: ignore[arg-type]


def targets_of(made: Plan) -> list[list[int]]:
    return [[target for target in row[16:32].tolist() if target != NONE] for row in made.table]


@pytest.mark.parametrize(("order", "steps"), [("raster", 16), ("annealed", 16), ("any", 8)])
def test_every_position_is_predicted_in_one_step(order: str, steps: int) -> None:
    made = plan_of(model(order), 0)
    targets = targets_of(made)
    assert len(made) == len(targets) == steps
    assert sorted(itertools.chain(*targets)) == list(range(16))
    assert made.predicted == tuple(len(row) for row in targets)
    if order != "any":
        assert targets == [[position] for position in range(16)]


def shapes(model: Transformer, made: Plan, *, fixed: bool) -> list[Shape]:
    return [shape_of(model, [(made, step)], fixed=fixed) for step in range(len(made))]


def test_steps_that_are_recorded_have_few_shapes() -> None:
    raster, small = model("raster"), model("any")
    assert len(set(shapes(raster, plan_of(raster, 0), fixed=True))) == 2
    larger = Transformer(TransformerConfig(width=16, layers=1, heads=2, order="any"), 5, 16, 3)
    made = shapes(larger, plan_of(larger, 20), fixed=True)
    assert len(made) == 20 and len(set(made)) <= 8
    assert set(made[1:]) & set(shapes(larger, plan_of(larger, 32), fixed=True)[1:])
    editing = plan_of(small, 0, tuple(range(5)))
    assert {shape.reach for shape in shapes(small, editing, fixed=True)} == {small.slots}


@pytest.mark.parametrize("order", ["raster", "any"])
def test_a_step_of_several_rows_is_as_large_as_the_largest_of_them(order: str) -> None:
    asked = model(order)
    made = plan_of(asked, 0)
    alone = shapes(asked, made, fixed=False)
    for one, other in itertools.combinations(range(1, len(made)), 2):
        together = shape_of(asked, [(made, one), (made, other)])
        assert together == tuple(map(max, zip(alone[one], alone[other], strict=True)))
        assert together.reach % 16 == 0 and together.reach <= asked.slots


def test_sizes_are_little_larger_than_asked_for() -> None:
    assert [padded(count) for count in (0, 1, 2, 4, 5, 32, 33, 200)] == [0, 1, 4, 4, 8, 32, 40, 224]
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
    targets = targets_of(plan_of(model("any"), 3, tuple(range(3, 14))))
    assert sorted(itertools.chain(*targets)) == [0, 1, 2, 14, 15] and len(targets) == 3


def test_what_a_model_cannot_do_is_one_sentence() -> None:
    known = tuple(range(1, 16))
    for order in ("raster", "annealed"):
        with pytest.raises(
            ClipgenError, match="steps is 4, but this model generates one code a step, 16 in all"
        ):
            plan_of(model(order), 4)
        with pytest.raises(ClipgenError, match="editing needs one that was trained with"):
            plan_of(model(order), 0, known)
    with pytest.raises(ClipgenError, match="steps is 17, but an image has only 16 codes"):
        plan_of(model("any"), 17)
    assert len(plan_of(model("any"), 4, known)) == 1  # there is one code to predict
