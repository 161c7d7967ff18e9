"""Models as files: what is written is loaded again, and nothing else is."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.export import Weights, export_file, export_folder, in_int8
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.model_file import digest, unpacked
from clipgen_core.generation.parts import FILE, read_parts
from clipgen_core.models.clip import ClipEncoder
from tests.conftest import draw

PROMPTS = ["a red disc", "a blue square", "a gold cross"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def exported(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model.clipgen"
    export_file(read_parts(checkpoint), str(target), name="tiny")
    return target


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path / "a model.clipgen"))


def psnr(one: Any, other: Any) -> float:
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_file_gives_the_images_of_its_model_up_to_rounding(
    checkpoint: str, tmp_path: Path, weights: Weights
) -> None:
    source, target = TextToImage.from_pretrained(checkpoint), tmp_path / "model.clipgen"
    card = export_file(source.parts, str(target), name="tiny", version="3", weights=weights)
    assert (card.name, card.version, card.weights, card.images) == ("tiny", "3", weights, 72)
    assert card.clip_key == source.parts.clip_key and card.clip == "included"
    assert [path.name for path in tmp_path.iterdir()] == ["model.clipgen"]
    loaded = TextToImage.from_pretrained(target)
    assert loaded.parts.sampling == source.parts.sampling

    rows = [one.generate_scored(PROMPTS, n=4, seed=1, candidates=1) for one in (source, loaded)]
    ours, theirs = (np.stack([one.codes for row in each for one in row]) for each in rows)
    equal = [max((mine == other).mean() for other in theirs[i // 4 * 4 :][:4]) for i, mine in enumerate(ours)]
    assert np.mean(equal) > 0.9
    decoded = (one.decode(torch.from_numpy(ours)) for one in (source, loaded))
    assert min(psnr(*pair) for pair in zip(*decoded, strict=True)) > 40
    for prompt in PROMPTS:
        (nearest, cosine), *_ = loaded.search(prompt, 72)
        assert dict(source.search(prompt, 72))[nearest] == pytest.approx(cosine, abs=0.02)
    assert {name for name, _ in loaded.search("a disc", 72)} == {
        name for name, _ in source.search("a disc", 72)
    }


def test_a_file_holds_no_address_of_who_trained_it(checkpoint: str, file: Path) -> None:
    data = file.read_bytes()
    root = str(Path(checkpoint).parents[3]).encode()
    assert root not in data and b"/tmp" not in data and str(Path.home()).encode() + b"/" not in data
    assert load_file(file)["transformer/codes.weight"].dtype in (torch.bfloat16, torch.float32)


def test_a_file_edits_and_starts_trainings(any_order: str, tmp_path: Path) -> None:
    from clipgen_core.generation.load import vqgan_to_start_from
    from tests.conftest import tiny_vqgan_config

    target = str(tmp_path / "model.clipgen")
    export_file(read_parts(any_order), target, name="tiny")
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    one, other = (
        TextToImage.from_pretrained(source).edit(draw("red", "disc"), mask, seed=1)[0]
        for source in (any_order, target)
    )
    assert psnr(one.image, other.image) > 20
    assert vqgan_to_start_from(target, tiny_vqgan_config().model).state.step == 4


def test_a_file_is_unpacked_once_and_keeps_what_its_clip_computes(file: Path, checkpoint: str) -> None:
    folder = unpacked(file)
    before = (folder / FILE).stat().st_mtime_ns
    assert unpacked(file) == folder and (folder / FILE).stat().st_mtime_ns == before
    parts = read_parts(str(folder))
    assert ClipEncoder(parts.clip).key == parts.clip_key != read_parts(checkpoint).clip_key
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]


def test_loading_a_file_logs_nothing_of_open_clip(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    TextToImage.from_pretrained(file)
    assert not [record.message for record in caplog.records if "open_clip" in record.pathname]
    open_clip.create_model("ViT-B-32", load_weights=False, device="meta")
    assert "open_clip" in caplog.records[-1].pathname  # outside of that, it may still log


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "half", "seal", "all"])
def test_a_damaged_copy_in_the_cache_is_unpacked_again(file: Path, damage: str) -> None:
    folder = unpacked(file)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = folder / "transformer" / "model.safetensors"
    if damage == "flip":
        weights.write_bytes(whole[weights][:-1] + bytes([whole[weights][-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(whole[weights][:-100])
    elif damage == "remove":
        weights.unlink()
    elif damage == "half":
        shutil.rmtree(folder / "vqgan")
        shutil.rmtree(folder / "embeddings.lance" / "data")
    elif damage == "seal":
        (folder / "files.sha256").unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert unpacked(file) == folder
    assert weights.read_bytes() == whole[weights]
    again = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert again == {path.relative_to(folder).parts[0] for path in whole}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert TextToImage.from_pretrained(file).search("a disc", 1)
    before = (folder / FILE).stat().st_mtime_ns
    assert unpacked(file) == folder and (folder / FILE).stat().st_mtime_ns == before  # use changes nothing


def test_a_damaged_file_is_refused_although_the_good_one_was_unpacked(file: Path) -> None:
    unpacked(file)
    content = bytearray(file.read_bytes())
    content[-10] ^= 4
    file.write_bytes(content)
    with pytest.raises(ClipgenError, match="its content does not have its digest"):
        unpacked(file)


def test_a_clip_brings_its_text_files_or_is_named_where_a_hub_has_it(
    checkpoint: str, clip_reference: str, tmp_path: Path
) -> None:
    parts, target = read_parts(checkpoint), tmp_path / "model.clipgen"
    clip = shutil.copytree(clip_reference.removeprefix("local-dir:"), tmp_path / "clip")
    (clip / "tower").mkdir()
    for name in ("tower/config.json", "merges.txt", "weights.pkl", ".hidden.json"):
        (clip / name).write_text("x")
    export_file(parts.model_copy(update={"clip": f"local-dir:{clip}"}), str(target), name="tiny")
    names = {path.name for path in (unpacked(target) / "clip").rglob("*") if path.is_file()}
    assert names == {"config.json", "merges.txt", "open_clip_config.json", "open_clip_model.safetensors"}

    named = parts.model_copy(update={"clip": "hub:ViT-B-32/openai", "clip_key": "ViT-B-32-openai-0123"})
    card = export_file(named, str(target), name="tiny")
    assert card.clip == "hub:ViT-B-32/openai" and not (unpacked(target) / "clip").exists()
    loaded = read_parts(str(unpacked(target)))
    assert (loaded.clip, loaded.clip_key) == (named.clip, named.clip_key)


def test_a_generator_saves_itself_as_a_file(checkpoint: str, tmp_path: Path) -> None:
    TextToImage.from_pretrained(checkpoint).save_pretrained(tmp_path / "tiny.clipgen")
    assert (tmp_path / "tiny.clipgen").is_file()
    assert read_parts(str(unpacked(tmp_path / "tiny.clipgen"))).embeddings


def test_remote_files_and_folders_are_written_and_read(checkpoint: str, tmp_path: Path) -> None:
    parts = read_parts(checkpoint)
    export_file(parts, f"memory:/{tmp_path}/m.clipgen", name="tiny")
    export_folder(parts, f"memory:/{tmp_path}/folder", name="tiny")
    images = [
        TextToImage.from_pretrained(f"memory:/{tmp_path}/{name}").generate("a disc")[0][0]
        for name in ("m.clipgen", "folder")
    ]
    assert images[0].tobytes() == images[1].tobytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]), st.integers(1, 40))
def test_int8_rows_are_off_by_half_a_level_at_most(seed: int, size: float, width: int) -> None:
    rows = torch.randn(7, width, 3, generator=torch.Generator().manual_seed(seed)) * size
    rows[0] = 0
    stored, scale = in_int8(rows)
    assert stored.dtype == torch.int8 and stored.shape == rows.shape
    off = (stored.float() * scale[:, None, None] - rows).abs().amax(dim=(1, 2))
    assert (off <= torch.maximum(scale * 0.501, torch.tensor(1e-12))).all()
    assert (stored[0] == 0).all()


def test_the_folder_for_the_hub_loads_and_says_what_it_is(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    done = CliRunner().invoke(app, ["export", "-m", checkpoint, "--layout", "huggingface", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "clipgen" and config["vqgan"]["image_size"] == 32
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: clipgen\n") and "# hub\n" in readme
    assert "| Training images | 72 |" in readme and "| Version |" not in readme
    assert TextToImage.from_pretrained(folder).generate("a red disc")[0][0].size == (32, 32)
    again = CliRunner().invoke(
        app, ["export", "-m", checkpoint, "--layout", "huggingface", "-o", str(folder)]
    )
    assert again.exit_code == 2 and "holds other files" in again.output


def test_the_command_exports_what_generate_takes(checkpoint: str, tmp_path: Path) -> None:
    file, image = tmp_path / "tiny.clipgen", tmp_path / "out.png"
    done = CliRunner().invoke(app, ["export", "-m", checkpoint, "-o", str(file), "--weights", "int8"])
    assert done.exit_code == 0, done.output
    assert f"-m {file}" in done.output.replace("\n", "")
    done = CliRunner().invoke(app, ["generate", "a disc", "-m", str(file), "-n", "1", "-o", str(image)])
    assert done.exit_code == 0 and image.is_file(), done.output
    for output in (tmp_path, tmp_path / "none" / "x.clipgen"):
        refused = CliRunner().invoke(app, ["export", "-m", checkpoint, "-o", str(output)])
        assert refused.exit_code == 2 and "choose another --output" in " ".join(refused.output.split())


def test_a_repository_of_the_hub_loads(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_folder(read_parts(checkpoint), str(tmp_path / "hub"), name="tiny")
    data = (tmp_path / "hub" / "model.safetensors").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/me/tiny/resolve/main/model.safetensors"
            self.send_response(200 if known else 404)
            for name, value in (
                ("ETag", '"abc"'),
                ("X-Repo-Commit", "0" * 40),
                ("Content-Length", str(len(data) if known else 0)),
            ):
                self.send_header(name, value)
            if not known:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if known and self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    script = """if True:
        import sys
        from clipgen_core import ClipgenError, TextToImage
        print(TextToImage.from_pretrained("hf://me/tiny").generate("a disc")[0][0].size)
        for name in ("hf://me/other", "hf://tiny"):
            try:
                TextToImage.from_pretrained(name)
            except ClipgenError as error:
                print(error)
    """
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
    offline = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = os.environ | place | offline
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    size, missing, misspelt = [line for line in done.stdout.splitlines() if "bf16" not in line]
    assert size == "(32, 32)"
    assert missing.startswith("hf://me/other cannot be fetched")
    assert misspelt == "hf://tiny names no repository: write it as hf://ORG/NAME"


def refusal(file: Path) -> str:
    with pytest.raises(ClipgenError) as caught:
        unpacked(file)
    assert "\n" not in str(caught.value)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "clipgen" / "models"
    assert not cache.exists() or not list(cache.iterdir())
    return str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_lost_or_changed_a_byte_is_refused(file: Path, data: st.DataObject) -> None:
    whole, damaged = file.read_bytes(), file.with_name("damaged")
    place = data.draw(st.integers(0, len(whole) - 1), label="place")
    if data.draw(st.booleans(), label="cut"):
        damaged.write_bytes(whole[:place])
    else:
        flipped = whole[place] ^ data.draw(st.integers(1, 255), label="change")
        damaged.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
    said = refusal(damaged)
    assert re.search("damaged|does not know|not written by clipgen", said), said


def rewritten(
    file: Path,
    change: Callable[[dict[str, str], dict[str, torch.Tensor]], object],
) -> Path:
    """The file with other content, whose digest is right."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    change(metadata, tensors)
    metadata["sha256"] = digest(metadata, sorted(tensors.items()))
    target = file.with_name("other")
    save_file(tensors, target, metadata)
    return target


def edited(key: str, **changes: object) -> Callable[[dict[str, str], dict[str, torch.Tensor]], None]:
    """A change of a JSON text in the metadata; dots lead into objects."""

    def change(metadata: dict[str, str], _: object) -> None:
        whole = json.loads(metadata[key])
        for name, value in changes.items():
            *way, last = name.split("__")
            place = whole
            for step in way:
                place = place[step]
            place[last] = value
        metadata[key] = json.dumps(whole)

    return change


def renamed(name: str) -> Callable[[object, dict[str, torch.Tensor]], None]:
    return lambda _, tensors: tensors.update({f"clip-file/{name}": torch.zeros(3, dtype=torch.uint8)})


MODEL, SIZES = "transformer/config.json", "clip/open_clip_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited("clipgen", format=2, clipgen="9.1"), "written by clipgen 9.1 in a format that this version"),
        (edited("clipgen", colour="red"), "is damaged"),
        (lambda metadata, _: metadata.pop("clipgen"), "was not written by clipgen export"),
        (edited(MODEL, config__model__layers=10**9), "describes? another model than its weights"),
        (edited(MODEL, config__model__width=2**30), "is damaged"),
        (edited(MODEL, config__model__layers=3), "of its transformer do not fit its settings"),
        (edited(MODEL, config__model__flux=1), "setting that this version does not know .flux"),
        (edited(MODEL, tokens__codebook_size=10**15), "of its transformer do not fit its settings"),
        (edited(MODEL, tokens__grid=10**8), "describe another model"),
        (edited("vqgan/config.json", config__model__blocks=10**9), "describe another model"),
        (edited("vqgan/config.json", config__model__image_size=2**40), "describe another model"),
        (edited(SIZES, model_cfg__vision_cfg__layers=10**9), "describes another model"),
        (edited(SIZES, model_cfg__embed_dim=2**40), "describes another model"),
        (edited(SIZES, model_cfg__embed_dim=2**19), "of its CLIP do not fit its settings"),
        (edited(FILE, vqgan="/etc"), "names parts outside of itself"),
        (edited(FILE, embeddings="../../../x.lance"), "names parts outside of itself"),
        (edited(FILE, clip="local-dir:/home"), "names parts outside of itself"),
        (edited(FILE, clip_key=5), "does not know .clip_key"),
        (renamed("../x.json"), "a file of its CLIP is called '../x.json'"),
        (renamed("/x.json"), "a file of its CLIP is called"),
        (renamed("a/b/c.json"), "a file of its CLIP is called"),
        (renamed("open_clip_model.safetensors"), "a file of its CLIP is called"),
        (renamed("open_clip_pytorch_model.bin"), "a file of its CLIP is called"),
        (renamed("..json/../x.json"), "a file of its CLIP is called"),
        (lambda _, t: t.pop("vqgan/decoder.0.weight"), "of its vqgan do not fit its settings"),
        (lambda _, t: t.pop("embeddings/id"), "is damaged"),
        (lambda _, t: t.update({"embeddings/id": t["embeddings/id"][1:]}), "embeddings have other shapes"),
        (lambda _, t: t.update({"embeddings/vector:scale": torch.ones(3)}), "scales of something else"),
        (lambda metadata, _: metadata.pop(MODEL), "is damaged"),
        (lambda metadata, _: metadata.update({MODEL: "[" * 10**5}), "setting that this version|is damaged"),
    ],
)
def test_what_no_model_file_holds_is_refused(
    file: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], object], message: str
) -> None:
    assert re.search(message, refusal(rewritten(file, change)))
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix in (".json", ".lance")) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    assert "was not written by clipgen export" in refusal(other)
    for content in (b"", b"PK\x03\x04" + bytes(100), struct.pack("<Q", 2**62), b"\x80\x04", b"x" * 10**5):
        other.write_bytes(content)
        assert "is no whole model file" in refusal(other)
    with pytest.raises(ClipgenError, match=r"there is no file .*none.clipgen: check the path"):
        TextToImage.from_pretrained(tmp_path / "none.clipgen")


@pytest.mark.slow
def test_a_killed_export_leaves_the_file_before_or_the_new_one(checkpoint: str, tmp_path: Path) -> None:
    target = tmp_path / "model.clipgen"
    target.write_bytes(b"before")
    code = (
        "import sys; from clipgen_core.generation.export import *\n"
        "from clipgen_core.generation.parts import read_parts\n"
        "parts = read_parts(sys.argv[1]); print('ready', flush=True)\n"
        "while True: export_file(parts, sys.argv[2], name='x')"
    )
    for pause in (0.05, 0.3):
        command = [sys.executable, "-c", code, checkpoint, str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() == b"before" or unpacked(target).is_dir()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".draft-")} <= {
        "model.clipgen",
        "cache",
    }
