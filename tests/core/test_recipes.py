import pytest

from clipgen_core.errors import ClipgenError
from clipgen_core.recipes import RECIPES, configure


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_together(name: str) -> None:
    recipe = RECIPES[name]
    model = recipe.vqgan.model
    assert model.grid * model.downsampling == model.image_size
    assert type(recipe).model_validate(recipe.model_dump()) == recipe


def test_overrides_change_single_fields() -> None:
    config = configure("demo", "vqgan", {"train.steps": 3, "model.quantizer.codebook_size": 64})
    assert config.train.steps == 3
    assert config.model.quantizer.codebook_size == 64
    assert config.train.batch_size == RECIPES["demo"].vqgan.train.batch_size


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("typo", {}, "there is no recipe 'typo': choose one of demo"),
        ("demo", {"train.stepz": 1}, "vqgan setting 'train.stepz'"),
        ("demo", {"nothing.at.all": 1}, "vqgan has no setting 'nothing.at.all'"),
        ("demo", {"train.steps": 0}, "vqgan setting 'train.steps'"),
        ("demo", {"model.image_size": 60}, "60 is not divisible by the downsampling factor 8"),
    ],
)
def test_bad_settings_are_one_sentence(recipe: str, overrides: dict[str, int], message: str) -> None:
    with pytest.raises(ClipgenError, match=message):
        configure(recipe, "vqgan", overrides)
