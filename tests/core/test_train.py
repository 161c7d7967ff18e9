"""`train()`: what the command line, torchrun, Ray and Dagster call."""

import pytest

from clipgen_core.errors import ClipgenError
from clipgen_core.recipes import named
from clipgen_core.settings.models import TransformerConfig
from clipgen_core.storage import Storage
from clipgen_core.train import train
from clipgen_core.training.checkpoint import Checkpoint

OVERRIDES = {
    "transformer.model.width": 32,
    "transformer.model.layers": 1,
    "transformer.model.heads": 2,
    "transformer.train.steps": 2,
    "transformer.train.batch_size": 4,
    "transformer.train.optimizer": "adamw",
}


def test_a_recipe_or_its_name_and_overrides_train_the_same_model(pipeline: Storage, storage: Storage) -> None:
    tokens = pipeline.current("tokens", "tests")
    storage.publish_current("tokens", tokens.path, tokens.digest)
    checkpoint = train("transformer", storage.root, "demo", OVERRIDES)
    assert Checkpoint(checkpoint).state.step == 2
    assert Checkpoint(checkpoint).settings("model", TransformerConfig).width == 32
    assert train("transformer", storage.root, named("demo").override(OVERRIDES)) == checkpoint


def test_a_missing_input_and_an_unknown_setting_are_one_sentence(storage: Storage) -> None:
    with pytest.raises(ClipgenError, match="captioned images: give --captions"):
        train("clip", storage.root, "demo")
    with pytest.raises(ClipgenError, match="there is no setting 'clip.train.step'"):
        train("clip", storage.root, "demo", {"clip.train.step": 1})
