"""What is read of published files, and what is said of files that hold something else."""

import argparse
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.published.files import read_state_dict
from clipgen_core.published.generator import import_vqgan
from clipgen_core.published.weights import published
from clipgen_core.storage import Storage
from tests.conftest import draw
from tests.core.published.networks import LlamaGen, PublicGpt, clip_gen, ibq, llamagen, taming

State = dict[str, Tensor]


def gumbel() -> State:
    state = taming()
    table = state.pop("quantize.embedding.weight")
    return state | {"quantize.proj.weight": torch.zeros(24, 12, 1, 1), "quantize.embed.weight": table}


def continuous() -> State:
    return {name: value for name, value in taming().items() if not name.startswith("quantize.")}


def llamagen_gpt() -> State:
    return dict(LlamaGen(codes=9, layers=1, width=32, heads=1, grid=2, classes=3).state_dict())


def public_gpt() -> State:
    return dict(PublicGpt(codes=9, layers=1, width=32, heads=1, positions=4, dim=8).state_dict())


def a_class(module: str, name: str, patch: pytest.MonkeyPatch) -> type:
    """A class that pickles as that of a package which is not installed."""
    parts = module.split(".")
    for i in range(len(parts)):
        parent = ".".join(parts[: i + 1])
        patch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("module", ["pytorch_lightning.callbacks", "lightning.pytorch.callbacks"])
def test_foreign_classes_are_never_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = taming()
    with monkeypatch.context() as patch:
        callback = a_class(module, "Checkpoint", patch)
        beside = {"callbacks": {callback: {"best": 1.0}}, "hyper_parameters": callback()}
        torch.save({"state_dict": state, **beside}, tmp_path / "last.ckpt")
    assert read_state_dict(tmp_path / "last.ckpt").keys() == state.keys()
    torch.save({"state_dict": state, "hook": Path}, tmp_path / "evil.ckpt")
    with pytest.raises(ClipgenError, match=r"cannot be read safely.*pathlib.Path.*save its state dict alone"):
        read_state_dict(tmp_path / "evil.ckpt")


def test_averaged_weights_are_preferred_beside_arguments(tmp_path: Path) -> None:
    trained = {"w": torch.zeros(2)}
    beside = {
        "model": trained,
        "optimizer": {},
        "steps": 5,
        "args": argparse.Namespace(lr=1e-4, betas=(0.9,)),
    }
    torch.save({**beside, "ema": {"w": torch.ones(2)}}, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt")["w"].tolist() == [1, 1]
    torch.save(beside, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt")["w"].tolist() == [0, 0]


def test_every_file_format_is_read_as_float32(tmp_path: Path) -> None:
    state = {"w": torch.tensor([1.5, -2.0])}
    half = {"w": state["w"].half()}
    save_file(half, tmp_path / "w.safetensors")
    torch.save({"state_dict": half}, tmp_path / "w.pth.tar")
    torch.save({"module": half}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": state["w"].bfloat16()}, tmp_path / "flat.pt")
    for name in ("w.safetensors", "w.pth.tar", "old.pt", "flat.pt"):
        read = read_state_dict(tmp_path / name)["w"]
        assert read.dtype == torch.float32 and torch.equal(read, state["w"]), name


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_files_and_files_of_something_else_are_one_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    with pytest.raises(ClipgenError, match="there is no file"):
        read_state_dict(file)
    save_file(taming(), file) if name == "w.safetensors" else torch.save(taming(), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"<!doctype html><p>sign in first"):
        file.write_bytes(content)
        with pytest.raises(ClipgenError, match="download the file again"):
            read_state_dict(file)
    torch.save({"model": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(ClipgenError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pt")


OTHERS: list[tuple[str, Callable[[], State], str]] = [
    ("taming", llamagen, "LlamaGen's tokenizer.*: use clipgen import-vqgan llamagen"),
    ("llamagen", taming, "a VQGAN of taming-transformers.*: use clipgen import-vqgan taming"),
    ("clip-gen", taming, "use clipgen import-vqgan taming"),
    ("taming", clip_gen, "the VQGAN of the public CLIP-GEN.*: use clipgen import-vqgan clip-gen"),
    ("taming", ibq, "a tokenizer of SEED-Voken.*: for IBQ, use clipgen import-vqgan ibq"),
    ("taming", gumbel, "a Gumbel VQGAN of taming-transformers.*cannot import it"),
    ("ibq", gumbel, "a Gumbel VQGAN"),
    ("taming", continuous, "an autoencoder without codes.*cannot import it"),
    ("llamagen", llamagen_gpt, "LlamaGen's transformer.*: use clipgen import-transformer llamagen"),
    ("llamagen-gpt", llamagen, "LlamaGen's tokenizer.*: use clipgen import-vqgan llamagen"),
    ("clip-gen", public_gpt, "the transformer of the public CLIP-GEN.*: use clipgen import-generator"),
    ("clip-gen-gpt", clip_gen, "the VQGAN of the public CLIP-GEN"),
]


@pytest.mark.parametrize(("kind", "make", "says"), OTHERS)
def test_weights_of_another_kind_are_named(
    kind: str, make: Callable[[], State], says: str, tmp_path: Path
) -> None:
    torch.save({"model": make()}, tmp_path / "w.pt")
    with pytest.raises(ClipgenError, match=f"w.pt seems to hold {says}|w.pt seems to hold .*{says}"):
        published(kind, tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["taming", "ibq"])
def test_the_vqgan_of_a_transformer_is_taken_out(kind: str, tmp_path: Path) -> None:
    state = taming()
    whole = {f"first_stage_model.{name}": value for name, value in state.items()}
    whole["transformer.tok_emb.weight"] = torch.zeros(4, 4)
    torch.save({"state_dict": whole}, tmp_path / "net2net.ckpt")
    assert published(kind, tmp_path / "net2net.ckpt").remaining.keys() == state.keys()
    torch.save({"state_dict": {"transformer.tok_emb.weight": torch.zeros(4, 4)}}, tmp_path / "gpt.ckpt")
    with pytest.raises(ClipgenError, match="a transformer of taming-transformers without its VQGAN"):
        published(kind, tmp_path / "gpt.ckpt")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_bytes(b""), "is empty: download"),
        (lambda file: file.write_text("sign in first"), "is no file of PyTorch, by its first bytes"),
        (lambda file: draw("red", "disc").save(file, "PNG"), "is no file of PyTorch, by its first bytes"),
        (lambda file: file.write_bytes(pickle.dumps({"w": 1})), "it is no checkpoint of weights alone"),
        (lambda file: file.write_bytes(pickle.dumps({"w": 1}, 2)), "it is no checkpoint of weights alone"),
        (lambda file: file.write_bytes(pickle.dumps(Path("x"))), "it is no checkpoint of weights alone"),
    ],
)
def test_what_pytorch_says_of_a_wrong_file_is_not_repeated(
    make: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    make(tmp_path / "w.pt")
    with warnings.catch_warnings(), pytest.raises(ClipgenError, match=says) as refused:
        warnings.simplefilter("error")
        read_state_dict(tmp_path / "w.pt")
    assert "weights_only" not in str(refused.value) and "Re-running" not in str(refused.value)


def test_weights_that_are_not_in_floating_point_are_refused(tmp_path: Path) -> None:
    torch.save({name: value.to(torch.int8) for name, value in taming().items()}, tmp_path / "w.pt")
    with pytest.raises(ClipgenError, match=r"w.pt has .+ as int8, not in floating point: it is quantised"):
        import_vqgan("taming", tmp_path / "w.pt", Storage(str(tmp_path / "root")), image_size=32)


@pytest.mark.parametrize("size", [0, -16, 100_000])
def test_the_image_size_has_bounds(size: int, tmp_path: Path) -> None:
    torch.save(taming(), tmp_path / "w.pt")
    with pytest.raises(ClipgenError, match=f"image_size {size} is not from 1 to 2048 pixels"):
        import_vqgan("taming", tmp_path / "w.pt", Storage(str(tmp_path / "root")), image_size=size)
