import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip_files import load
from clipgen_core.published.clip import import_clip
from tests.conftest import tiny_clip_config

TAG = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "quick_gelu": True, "hf_hub": "no/where/"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CLIP that open_clip knows as tiny/test, with weights of its own."""
    config = tiny_clip_config().open_clip_config()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"test": TAG})
    torch.manual_seed(7)
    return open_clip.CLIP(**config, quick_gelu=True)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_downloaded_file_becomes_a_folder_that_gives_the_same_embeddings(
    tiny: Any, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, folder = tmp_path / f"weights.{suffix}", tmp_path / "made" / "clip"
    if suffix == "pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tiny.state_dict().items()}}, file)
    else:
        save_file({k: v.contiguous() for k, v in tiny.state_dict().items()}, file)
    done = CliRunner().invoke(
        app, ["import-clip", str(file), "--is", "hub:tiny/test", "-o", str(folder)], catch_exceptions=False
    )
    assert not caplog.records  # open_clip warns of a model without weights, which are to come
    assert done.exit_code == 0 and f"--clip local-dir:{folder}" in done.output.replace("\n", "")
    model, preprocess, tokenizer = load(f"local-dir:{folder}")
    tokens = tokenizer(["a red disc"])
    assert torch.allclose(model.eval().encode_text(tokens), tiny.eval().encode_text(tokens), atol=1e-5)
    pixels = preprocess(Image.new("RGB", (32, 32), (255, 0, 0)))
    colour = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(TAG["mean"])) / torch.tensor(TAG["std"])
    assert torch.allclose(pixels, colour.view(3, 1, 1).expand(3, 32, 32), atol=1e-5)
    assert torch.allclose(model.encode_image(pixels[None]), tiny.encode_image(pixels[None]), atol=1e-5)
    with pytest.raises(ClipgenError, match="exists: give the name of a new folder"):
        import_clip(file, "hub:tiny/test", folder)


def test_what_cannot_be_imported_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    other, folder = tmp_path / "other.safetensors", tmp_path / "clip"
    save_file({"vision_model.weight": torch.zeros(3)}, other)
    with pytest.raises(ClipgenError, match=r"does not hold the weights of tiny/test as open_clip names them"):
        import_clip(other, "hub:tiny/test", folder)
    with pytest.raises(ClipgenError, match=r"there is no file .*gone.pt: check the path"):
        import_clip(tmp_path / "gone.pt", "hub:tiny/test", folder)
    with pytest.raises(ClipgenError, match="open_clip has test for 'tiny', not 'other'"):
        import_clip(other, "hub:tiny/other", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "other.safetensors"]
