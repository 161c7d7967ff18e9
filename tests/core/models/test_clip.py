import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import load_file, save_file

from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import LOCAL, ClipEncoder
from tests.conftest import draw

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TIMM = {"timm_model_name": "test_vit3", "image_size": 160, "timm_pool": "", "timm_proj": "linear"}
RESNET = {"image_size": 64, "width": 16, "layers": [1, 1, 1, 1], "head_width": 32}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "disc")
SIGLIP_TEXT = {  # as open_clip's SigLIP configs have it
    **TEXT,
    "vocab_size": len(WORDS),
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}
HF_TEXT = {"hf_model_name": "text", "hf_tokenizer_name": "roberta-base", "context_length": 12}
DECODER = {**TEXT, "attn_pooler_heads": 2}
CLASSES: dict[str, tuple[type, dict[str, Any], int]] = {  # class, configuration, blocks of the image tower
    "CLIP": (open_clip.CLIP, {"vision_cfg": VIT, "text_cfg": TEXT}, 2),
    "wide images": (open_clip.CLIP, {"vision_cfg": {**VIT, "image_size": [32, 48]}, "text_cfg": TEXT}, 2),
    "ResNet": (open_clip.CLIP, {"vision_cfg": RESNET, "text_cfg": TEXT}, 5),
    "timm": (open_clip.CLIP, {"vision_cfg": TIMM, "text_cfg": TEXT}, 9),
    "own text tower": (
        open_clip.CustomTextCLIP,
        {"vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
        2,
    ),
    "SigLIP": (
        open_clip.CustomTextCLIP,
        {"vision_cfg": TIMM, "text_cfg": SIGLIP_TEXT, "custom_text": True, "init_logit_bias": -10},
        9,
    ),
    "CoCa": (
        open_clip.CoCa,
        {
            "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": DECODER,
            "custom_text": True,
        },
        2,
    ),
    "Hugging Face text tower": (open_clip.CustomTextCLIP, {"vision_cfg": VIT, "text_cfg": HF_TEXT}, 2),
}


def write_clip(folder: Path, kind: str) -> str:
    """A tiny untrained model of one of open_clip's classes as a folder; returns its reference."""
    make, config, _ = CLASSES[kind]
    config = {"embed_dim": 32, **config}
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    if config["text_cfg"].get("hf_model_name"):
        arguments["text_cfg"] = {**HF_TEXT, "hf_model_name": str(write_text_tower(folder))}
        arguments["text_cfg"]["hf_model_pretrained"] = False
    if config["text_cfg"].get("hf_tokenizer_name"):
        write_tokenizer(folder)
    torch.manual_seed(0)
    model = make(**arguments)
    model.visual.image_mean = model.visual.image_std = (0.5, 0.5, 0.5)
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"{LOCAL}{folder}"


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_text_tower(folder: Path) -> Path:
    from transformers import RobertaConfig

    tiny = RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=0,
    )
    tiny.save_pretrained(folder / "text")
    return folder / "text"


@pytest.mark.parametrize("kind", CLASSES)
def test_any_class_of_open_clip_embeds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, blocks = write_clip(tmp_path, kind), CLASSES[kind][2]
    images, texts = [draw("red", "disc"), draw("blue", "cross", 50)], ["a red disc", "a blue disc", ""]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("clipgen_core.models.clip.fast_dtype", lambda _, dtype=dtype: dtype)
        clip = ClipEncoder(reference)
        rows.append(np.concatenate([clip.encode_images(images), clip.encode_texts(texts)]))
        assert rows[-1].shape == (5, clip.dim) == (5, 32)
    assert np.allclose((rows[0] * rows[1]).sum(1), 1, atol=1e-3)
    assert not np.allclose(rows[0][2], rows[0][3])
    wanted = (torch.rand(1, 3, 40, 40) * 2 - 1).requires_grad_()
    for outputs in ([clip.embed(wanted)], clip.features(wanted)):
        wanted.grad = None
        sum((output * torch.rand_like(output)).mean() for output in outputs).backward()
        assert wanted.grad is not None and wanted.grad.abs().sum() > 0
    assert len(clip.features(wanted)) == clip.blocks == blocks
    assert len(clip.features(wanted, 2)) == 2


def test_images_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    clip = ClipEncoder(write_clip(tmp_path, "wide images"))
    white = clip._preprocessed(torch.ones(1, 3, 20, 20))
    assert white.shape == (1, 3, 32, 48) and white.unique().tolist() == [1.0]


def test_weights_in_a_bin_file(tmp_path: Path) -> None:
    reference = write_clip(tmp_path, "own text tower")
    key, file = ClipEncoder(reference).key, tmp_path / "open_clip_model.safetensors"
    torch.save(load_file(file), tmp_path / "open_clip_pytorch_model.bin")
    file.unlink()
    assert ClipEncoder(reference).key == key


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path, ...]]:
        return Path.touch, (self.file,)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    reference, mark = write_clip(tmp_path, "CLIP"), tmp_path / "was-here"
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ClipgenError, match="has neither open_clip_model.safetensors nor .*bin"):
        ClipEncoder(reference)
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        save({"logit_scale": Evil(mark)}, tmp_path / "open_clip_pytorch_model.bin")
        with pytest.raises(ClipgenError, match="cannot be read"):
            ClipEncoder(reference)
    assert not mark.exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("SigLIP", "Hugging Face text tower"):
        (tmp_path / kind).mkdir()
        reference = write_clip(tmp_path / kind, kind)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "transformers", None)
            with pytest.raises(
                ClipgenError, match=r"needs transformers, .*: pip install 'clipgen\[siglip\]'"
            ):
                ClipEncoder(reference)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    reference = write_clip(tmp_path, "SigLIP")
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ClipgenError, match="the tokenizer of CLIP .* cannot be read .* beside the weights"):
        ClipEncoder(reference)


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
    with pytest.raises(ClipgenError, match=r"open_clip has no model 'ViT-B-99' with weights: did you mean"):
        ClipEncoder("hub:ViT-B-99/nope")
    with pytest.raises(ClipgenError, match=r"open_clip has .*laion2b_s34b_b79k.* not 'typo'"):
        ClipEncoder("hub:ViT-B-32/typo")
    with pytest.raises(ClipgenError, match="has no open_clip_config.json"):
        ClipEncoder(f"{LOCAL}{tmp_path}")


def test_no_network_is_one_sentence() -> None:
    with pytest.raises(ClipgenError, match="could not be fetched .* name a downloaded model by"):
        ClipEncoder("hub:RN50/yfcc15m")
    with pytest.raises(ClipgenError, match="could not be fetched .* name a downloaded model by"):
        ClipEncoder("hf-hub:no-one/no-model")


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
