import numpy as np
import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.steps import by_locality, steps_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig


def model(order: str) -> Transformer:
    return Transformer(TransformerConfig(width=16, layers=1, heads=2, order=order), 5, 4, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("order", "steps"), [("raster", 16), ("annealed", 16), ("any", 8)])
def test_every_position_is_predicted_in_one_step(order: str, steps: int) -> None:
    made = steps_of(model(order), 0)
    assert len(made) == steps
    assert sorted(position for targets, _ in made for position in targets) == list(range(16))
    if order != "any":
        assert [targets for targets, _ in made] == [[position] for position in range(16)]


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
    made = steps_of(model("any"), 3, known)
    assert sorted(p for targets, _ in made for p in targets) == [0, 1, 2, 14, 15]
    assert len(made) == 3


def test_what_a_model_cannot_do_is_one_sentence() -> None:
    known = torch.zeros(1, 16, dtype=torch.long)
    known[0, 0] = NONE
    for order in ("raster", "annealed"):
        with pytest.raises(ClipgenError, match="takes 16 steps, not 4"):
            steps_of(model(order), 4)
        with pytest.raises(ClipgenError, match="editing needs one that was trained with"):
            steps_of(model(order), 0, known)
    with pytest.raises(ClipgenError, match="steps is 17, but an image has only 16 codes"):
        steps_of(model("any"), 17)
    assert len(steps_of(model("any"), 4, known)) == 1  # there is one code to predict
