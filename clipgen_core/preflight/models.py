"""Checks of the models that a run starts from: CLIPs and files of weights. None of them is loaded."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.filesystem import exists, list_folder, read_bytes
from clipgen_core.run_config import TRAINED, Run
from clipgen_core.schema import CLIP_CONFIG, CLIP_WEIGHTS, HUB, LOCAL
from clipgen_core.storage import Storage

TRAINED_UNDER = f"{TRAINED}:"
SECONDS = 10.0
STARTS = (b"PK", b"\x80")  # of PyTorch's files: a zip archive, or a pickle in those from before 1.6
ADVICE = {
    "vqgan.lpips_weights": "download torchvision's vgg16-397923af.pth, or leave it unset",
    "evaluation.inception": "download torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
}


def clip(run: Run) -> str:
    """Whether the CLIP that embeds the images is available, and as deep as the VQGAN's training needs."""
    reference = str(run.resources["images"]["clip"])
    if reference == TRAINED:
        if "clip_checkpoint" in run.assets:
            return ""
        reference = Storage(run.root).current("clip", "clip_embeddings").path
    said, blocks = available(reference), run.recipe.vqgan.perceptual_blocks
    depth = _depth(reference) if blocks and "vqgan_checkpoint" in run.assets else None
    if blocks and depth and depth < blocks:
        raise ClipgenError(
            f"CLIP {reference!r} has {depth} blocks, fewer than vqgan.perceptual_blocks, which is {blocks}: "
            "lower that, or set it to null"
        )
    return said


def judge(run: Run) -> str:
    """Whether the CLIP that judges is available, if it is another one."""
    reference = run.own["evaluation_report"].get("judge")
    if not reference:
        return ""
    if reference.startswith(TRAINED_UNDER):
        reference = Storage(reference.removeprefix(TRAINED_UNDER)).current("clip", "the judge").path
    return available(reference)


def weights(run: Run) -> str:
    """Whether the files of weights exist that settings name, and are not files of something else."""
    named = dict(_named(run))
    missing = [
        f"{name} is {value}, which does not exist" for name, value in named.items() if not exists(value)
    ]
    if missing:
        raise ClipgenError(f"{'; '.join(missing)}: check the path")
    for name, value in named.items():
        if not _is_pytorch(Path(value)):
            raise ClipgenError(f"{name} is {value}, which is no file of PyTorch weights: {ADVICE[name]}")
    return ", ".join(named)


def _named(run: Run) -> Iterator[tuple[str, str]]:
    """The settings that name files, with their values; those of the assets that the run materialises."""
    named = {
        "vqgan_checkpoint": ("vqgan.lpips_weights", run.recipe.vqgan.lpips_weights),
        "evaluation_report": ("evaluation.inception", run.recipe.evaluation.inception),
    }
    for asset, (name, value) in named.items():
        if value and asset in run.assets:
            yield name, value


def _is_pytorch(file: Path) -> bool:
    """Whether the first bytes are those of what `torch.save` writes."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(2).startswith(STARTS)


def available(reference: str) -> str:
    """Whether a CLIP can be loaded.

    Args:
        reference: As `ClipEncoder` takes it.

    Returns:
        Where its files are.

    Raises:
        ClipgenError: They are not where the reference says, or cannot be fetched.
    """
    if reference.startswith(LOCAL):
        folder = reference.removeprefix(LOCAL)
        files = list_folder(folder)
        if CLIP_CONFIG not in files or not any(one in files for one in CLIP_WEIGHTS):
            raise ClipgenError(f"CLIP folder {folder} has no {CLIP_CONFIG}, or no weights: check the path")
        return reference
    from clipgen_core.models.clip_files import hub_repository

    if repository := hub_repository(reference):
        return _on_the_hub(reference, repository, CLIP_WEIGHTS)
    return _public(reference)


def _public(reference: str) -> str:
    """A model that open_clip knows by name."""
    import open_clip

    from clipgen_core.models.clip_files import hub_name

    source = open_clip.get_pretrained_cfg(*hub_name(reference))
    if source.get("hf_hub"):
        repository, _, file = source["hf_hub"].rpartition("/")
        return _on_the_hub(reference, repository, (file,) if file else CLIP_WEIGHTS)
    if (Path.home() / ".cache" / "clip" / PurePosixPath(source["url"]).name).is_file():
        return f"{reference}, in the cache"
    try:
        request = urllib.request.Request(source["url"], method="HEAD")
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except OSError as error:
        raise _unreachable(reference, error) from error
    return f"{reference}, to be fetched"


def _on_the_hub(reference: str, repository: str, files: tuple[str, ...]) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return f"{reference}, in the cache"
    reason: Exception = ClipgenError(f"{repository} has no weights")
    for file in files:
        try:
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=SECONDS)
        except EntryNotFoundError:
            continue
        except Exception as error:
            reason = error
            break
        return f"{reference}, to be fetched"
    raise _unreachable(reference, reason)


def _unreachable(reference: str, error: Exception) -> ClipgenError:
    return ClipgenError(
        f"CLIP {reference!r} is not in the cache and cannot be fetched ({first_line(error)}): check the "
        f"network, or name a downloaded model by {LOCAL}FOLDER"
    )


def _depth(reference: str) -> int | None:
    """Blocks of the image tower, where the model's configuration says so."""
    config: Any
    if reference.startswith(LOCAL):
        config = json.loads(read_bytes(f"{reference.removeprefix(LOCAL)}/{CLIP_CONFIG}"))["model_cfg"]
    elif reference.startswith(HUB):
        import open_clip

        config = open_clip.get_model_config(reference.removeprefix(HUB).partition("/")[0]) or {}
    else:
        return None
    layers = config.get("vision_cfg", {}).get("layers")
    return layers if isinstance(layers, int) else None
