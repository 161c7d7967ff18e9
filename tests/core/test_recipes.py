from typing import Any

import pytest
from pydantic import ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.recipes import RECIPES, named


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_together(name: str) -> None:
    recipe = RECIPES[name]
    model = recipe.vqgan.model
    assert model.grid * model.downsampling == model.image_size
    assert type(recipe).model_validate(recipe.model_dump()) == recipe


def test_overrides_change_single_settings_of_a_copy() -> None:
    demo = named("demo")
    recipe = demo.override({"vqgan.train.steps": 3, "vqgan.model.quantizer.codebook_size": 64})
    assert recipe.vqgan.train.steps == 3
    assert recipe.vqgan.model.quantizer.codebook_size == 64
    assert recipe.vqgan.train.batch_size == demo.vqgan.train.batch_size
    assert recipe.transformer == demo.transformer
    assert demo.vqgan.train.steps == RECIPES["demo"].vqgan.train.steps != 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.vqgan.train.steps = 4


def test_settings_that_depend_on_each_other_change_at_once() -> None:
    fsq = {"kind": "fsq", "levels": [8, 5, 5, 5], "codebook_size": 1000, "code_dim": 4}
    overrides = {f"vqgan.model.quantizer.{name}": value for name, value in fsq.items()}
    assert named("demo").override(overrides).vqgan.model.quantizer.levels == (8, 5, 5, 5)


def test_a_setting_can_be_null_where_null_is_a_value() -> None:
    assert named("demo").vqgan.perceptual_blocks == 3
    assert named("demo").override({"vqgan.perceptual_blocks": None}).vqgan.perceptual_blocks is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"vqgan.train.step": 1},
            "there is no setting 'vqgan.train.step': did you mean 'vqgan.train.steps'? "
            "`clipgen settings vqgan` lists all",
        ),
        ({"nothing.at.all": 1}, "there is no setting 'nothing.at.all': `clipgen settings` lists all"),
        ({"vqgan.train": {}}, "'vqgan.train' is a group of settings: set one of them"),
        ({"vqgan.train.steps": 0}, "the setting 'vqgan.train.steps' is 0: it should be greater than 0"),
        (
            {"vqgan.model.quantizer.kind": "emma"},
            "the setting 'vqgan.model.quantizer.kind' is 'emma': it should be 'ema', 'cosine', 'simvq', ",
        ),
        ({"vqgan.train.betas": [0.9, "x"]}, "the setting 'vqgan.train.betas' is [0.9, 'x']: it should be a"),
        (
            {"vqgan.train.steps": None},
            "the setting 'vqgan.train.steps' is None: it should be a valid integer",
        ),
        (
            {"vqgan.train.seed": -1},
            "the setting 'vqgan.train.seed' is -1: it should be greater than or equal",
        ),
        (
            {"vqgan.train.learning_rate": float("inf")},
            "the setting 'vqgan.train.learning_rate' is inf: it should be a finite number",
        ),
        (
            {"vqgan.train.betas": [0.9, 1.5]},
            "betas (0.9, 1.5) are not both from 0 to below 1: change them (given: vqgan.train.betas=[",
        ),
        ({"vqgan.model.channels": [0]}, "channels (0,) must be"),
        ({"vqgan.discriminator_width": 12}, "the setting 'vqgan.discriminator_width' is 12: it should be a"),
        (
            {"evaluation.candidates": 300},
            "images_shown 4 x candidates 300 is more than 256",
        ),
        ({"evaluation.shown": [" "]}, "a text of shown is empty"),
        (
            {"vqgan.model.image_size": 60},
            "image_size 60 is not divisible by the downsampling ",
        ),
        (
            {"vqgan.train.steps": 5, "vqgan.train.betas": (2, 0.9), "vqgan.model.image_size": 64},
            "betas (2.0, 0.9) are not both from 0 to below 1: change them (given: vqgan.train.betas=",
        ),
        (
            {f"vqgan.train.{name}": 7 for name in ("steps", "log_every", "patience", "checkpoint_every")}
            | {"transformer.sampling.steps": 8},
            "sampling.steps is 8, but a model of order raster takes one step a code",
        ),
    ],
)
def test_a_bad_override_is_one_sentence(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipgenError) as raised:
        named("demo").override(overrides)
    assert str(raised.value).startswith(message)


def test_an_unknown_recipe_is_one_sentence() -> None:
    with pytest.raises(ClipgenError, match="there is no recipe 'typo': choose one of demo"):
        named("typo")


def test_steps_that_a_model_cannot_take_are_said_before_any_work() -> None:
    with pytest.raises(ClipgenError, match=r"sampling.steps is 8, but a model of order raster takes one"):
        named("demo").override({"transformer.sampling.steps": 8})
    any_order = {"transformer.model.order": "any"}
    assert named("demo").override(any_order | {"transformer.sampling.steps": 64}).transformer.sampling.steps
    with pytest.raises(
        ClipgenError, match=r"transformer.sampling.steps is 65, but an image has only 64 codes"
    ):
        named("demo").override(any_order | {"transformer.sampling.steps": 65})
