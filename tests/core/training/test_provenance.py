import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import digest_of
from clipgen_core.settings.models import VqganConfig
from clipgen_core.settings.training import TrainConfig
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.provenance import ImportedCodes, Provenance, TrainingState
from tests.conftest import tiny_vqgan_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_record_and_its_digest_survive_writing_and_reading(config: dict[str, object]) -> None:
    before = Provenance(config=config, clip="hub:x/y")  # type: ignore[arg-type]
    written = json.dumps(before.record)
    after = Provenance.model_validate_json(written)
    assert after.record == json.loads(written)
    assert after.digest == before.digest == digest_of(json.loads(written))


def test_the_digest_is_that_of_version_0_1() -> None:
    config = tiny_vqgan_config()
    made = Provenance(config=config.model_dump(mode="json"), images_digest="0" * 16, clip="hub:x/y")
    earlier = {"config": config.model_dump(), "images_digest": "0" * 16, "clip": "hub:x/y"}
    assert made.digest == digest_of(earlier)


def saved(folder: Path, **fields: object) -> Checkpoint:
    provenance = Provenance(config={"model": {"image_size": 32}}, **fields)  # type: ignore[arg-type]
    checkpoints = Checkpoints(url=str(folder), provenance=provenance)
    return Checkpoint(checkpoints.save(Saved(weights={}, state=TrainingState(step=3))))


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = saved(tmp_path)
    path = Path(checkpoint.url) / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ClipgenError, match=rf"{name} is damaged .*train again"):
        _ = checkpoint.provenance, checkpoint.state


def test_a_setting_of_a_later_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match=r"config\.json has a setting .*model\.channels"):
        saved(tmp_path).settings("model", VqganConfig)


def test_only_a_transformer_has_codes(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="is no transformer checkpoint"):
        _ = saved(tmp_path).codes
    codes = ImportedCodes(grid=2, codebook_size=4, embedding_dim=8, images_digest="unknown", vqgan_digest="v")
    read = Checkpoint(saved(tmp_path / "imported", tokens=codes).url)
    assert read.codes == codes
    assert read.provenance.record["tokens"] == codes.model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("losses", "patience", "best", "stale"),
    [([], 1, None, False), ([3.0, 2.0, 1.0], 1, 3, False), ([3.0, 1.0, 2.0, 2.5], 2, 2, True)],
)
def test_patience_counts_validations_after_the_best(
    losses: list[float], patience: int, best: int | None, stale: bool
) -> None:
    history = [{"step": step, "validation_loss": loss} for step, loss in enumerate(losses, 1)]
    state = TrainingState(step=len(losses), history=history)
    assert (state.best, state.stale(patience)) == (best, stale)
    config = TrainConfig(steps=9, batch_size=1, learning_rate=1, patience=patience)
    assert state.finished(config) == stale
