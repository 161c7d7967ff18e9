import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import LOCAL, ClipEncoder
from tests.conftest import draw


@pytest.fixture(scope="module")
def clip(clip_reference: str) -> ClipEncoder:
    return ClipEncoder(clip_reference)


def test_embeddings_have_length_one_and_one_width(clip: ClipEncoder) -> None:
    images = clip.encode_images([draw("red", "disc"), draw("blue", "cross", 50)])
    texts = clip.encode_texts(["a red disc", "naïve 名前 🎈", ""])
    assert images.shape == (2, clip.dim) and texts.shape == (3, clip.dim)
    for rows in (images, texts):
        assert rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_many_items_are_encoded_in_batches(clip: ClipEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"thing {number}" for number in range(7)]
    whole = clip.encode_texts(texts)
    monkeypatch.setattr("clipgen_core.models.clip.BATCH", 3)
    assert np.allclose(clip.encode_texts(texts), whole, atol=0.01)
    assert clip.encode_texts([]).shape == (0, clip.dim)


def test_it_is_open_clips_own_model(clip: ClipEncoder, clip_reference: str) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(clip_reference)
    image = draw("green", "square", 45)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval().encode_image(preprocess(image)[None]))
    assert np.allclose(clip.encode_images([image]), expected.numpy(), atol=0.02)
    assert all(weight.dtype == torch.float32 for weight in clip.model.parameters())


def test_features_match_the_preprocessed_tower_and_are_differentiable(clip: ClipEncoder) -> None:
    images = (torch.rand(2, 3, 40, 40) * 2 - 1).requires_grad_()
    features = clip.features(images)
    assert len(features) == 2
    torch.stack([f.square().mean() for f in features]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_the_key_follows_the_weights(clip: ClipEncoder, clip_reference: str, tmp_path: Path) -> None:
    assert ClipEncoder(clip_reference).key == clip.key
    folder = tmp_path / "other"
    shutil.copytree(clip_reference.removeprefix(LOCAL), folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "open_clip_model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    assert ClipEncoder(f"{LOCAL}{folder}").key != clip.key


def test_a_wrong_reference_is_one_sentence(tmp_path: Path) -> None:
    for reference in ("ViT-B-32", "hub:ViT-B-32", "hub:", "hf-hub:alone", "/some/where"):
        with pytest.raises(
            ClipgenError, match="is neither hub:MODEL/PRETRAINED nor hf-hub:ORG/NAME nor local-dir:"
        ):
            ClipEncoder(reference)
    with pytest.raises(ClipgenError, match=r"open_clip has .*laion2b_s34b_b79k.* not 'typo'"):
        ClipEncoder("hub:ViT-B-32/typo")
    with pytest.raises(ClipgenError, match="has no open_clip_config.json"):
        ClipEncoder(f"{LOCAL}{tmp_path}")


def test_no_network_is_one_sentence() -> None:
    with pytest.raises(ClipgenError, match="could not be fetched .* name a downloaded model by"):
        ClipEncoder("hub:RN50/yfcc15m")


def test_a_damaged_folder_is_one_sentence(clip_reference: str, tmp_path: Path) -> None:
    for number, (file, damage) in enumerate(
        [
            ("open_clip_model.safetensors", b"truncated"),
            ("open_clip_config.json", b"{"),
            ("open_clip_config.json", json.dumps({"model_cfg": {}}).encode()),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(clip_reference.removeprefix(LOCAL), folder)
        (folder / file).write_bytes(damage)
        with pytest.raises(ClipgenError, match="cannot be read"):
            ClipEncoder(f"{LOCAL}{folder}")
