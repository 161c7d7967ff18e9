"""What a generator consists of, and where its parts are.

In a generator folder generator.json says so, of a transformer checkpoint its config.json.
"""

import shutil
from pathlib import Path

from pydantic import ValidationError

from clipgen_core import filesystem, logs
from clipgen_core.data.tables import find_table, open_table
from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.models.clip import LOCAL
from clipgen_core.schema import Frozen, TokenManifest
from clipgen_core.settings.models import Order, TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.storage import located, require_root, root_of
from clipgen_core.training.checkpoint import MODELS, PROVENANCE, Checkpoint

FILE = "generator.json"
CHECKPOINTS = ("vqgan", "transformer")


class Parts(Frozen):
    """Where the parts of a generator are, absolute or relative to the folder of generator.json; the order in
    which its transformer generates; the defaults of generation."""

    clip: str
    clip_key: str
    vqgan: str
    transformer: str
    embeddings: str | None = None
    embeddings_version: int | None = None
    order: Order = "raster"
    sampling: SamplingConfig = SamplingConfig()


def copy_parts(parts: Parts, folder: Path) -> None:
    """Copy all parts of a generator into one folder, without loading a model.

    Args:
        parts: Where they are now.
        folder: Gets the copies and a generator.json with relative paths. One that holds the same generator
            already is left as it is.

    Raises:
        ClipgenError: It is a file, holds something else, or cannot be written.
    """
    if (folder / FILE).exists() and _same(parts, read_parts(str(folder))):
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "holds other files" if folder.is_dir() else "is a file"
        raise ClipgenError(f"{folder} {what}: choose a new folder for the generator")
    try:
        _copy(parts, folder)
    except OSError as error:
        raise ClipgenError(
            f"the generator cannot be written to {folder} ({first_line(error)}): mend that, remove what is "
            "there and save it again"
        ) from error


def _same(one: Parts, other: Parts) -> bool:
    """Whether two generators have the same parts, wherever those are."""
    ignored = {"clip", "vqgan", "transformer", "embeddings", "embeddings_version"}
    if one.model_dump(exclude=ignored) != other.model_dump(exclude=ignored):
        return False
    pairs = ((Checkpoint(getattr(one, name)), Checkpoint(getattr(other, name))) for name in CHECKPOINTS)
    return all(a.provenance == b.provenance and a.state.step == b.state.step for a, b in pairs)


def _copy(parts: Parts, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clip = parts.clip
    if clip.startswith(LOCAL):
        shutil.copytree(local_copy(clip.removeprefix(LOCAL)), folder / "clip")
        clip = f"{LOCAL}clip"
    for name in CHECKPOINTS:
        checkpoint = local_copy(getattr(parts, name))
        shutil.copytree(checkpoint, folder / name, ignore=shutil.ignore_patterns("training.pt"))
    if parts.embeddings:
        import lance

        rows = open_table(parts.embeddings, parts.embeddings_version).to_table()
        lance.write_dataset(rows, str(folder / "embeddings.lance"))
    copied = Parts(
        clip=clip,
        clip_key=parts.clip_key,
        vqgan="vqgan",
        transformer="transformer",
        embeddings="embeddings.lance" if parts.embeddings else None,
        order=parts.order,
        sampling=parts.sampling,
    )
    (folder / FILE).write_text(copied.model_dump_json(indent=2))


def read_parts(source: str) -> Parts:
    """The parts of a generator folder or of a transformer checkpoint.

    Raises:
        ClipgenError: It is neither, or damaged.
    """
    if not filesystem.exists(source):
        raise ClipgenError(f"there is no model at {source}: check the path or train one")
    if filesystem.exists(f"{source}/{FILE}"):
        try:
            parts = Parts.model_validate_json(filesystem.read_bytes(f"{source}/{FILE}"))
        except ValidationError as error:
            raise ClipgenError(f"{source}/{FILE} is damaged ({first_line(error)})") from error
        return _absolute(located(parts, root_of(source)), source)
    if not filesystem.exists(f"{source}/{PROVENANCE}"):
        raise ClipgenError(f"{source} is no model, as it has neither {FILE} nor {PROVENANCE}: give {MODELS}")
    checkpoint = Checkpoint(source)
    tokens = checkpoint.codes
    if not isinstance(tokens, TokenManifest):
        raise ClipgenError(f"{source} was imported: give the folder that holds it and {FILE}")
    require_root(source, tokens.vqgan)
    return Parts(
        clip=tokens.clip,
        clip_key=tokens.clip_key,
        vqgan=tokens.vqgan,
        transformer=source,
        embeddings=tokens.embeddings,
        embeddings_version=_kept_version(tokens.embeddings, tokens.embeddings_version),
        order=checkpoint.settings("model", TransformerConfig).order,
        sampling=checkpoint.settings("sampling", SamplingConfig),
    )


def _kept_version(embeddings: str, version: int) -> int | None:
    """The version that a model was trained on; None, which is the newest, if `clipgen forget --purge` let go
    of it."""
    if find_table(embeddings, version) is not None or find_table(embeddings) is None:
        return version
    logs.line(f"version {version} of {embeddings} is no longer kept: the newest one takes its place")
    return None


def _absolute(parts: Parts, folder: str) -> Parts:
    inside = {
        name: f"{folder}/{value}"
        for name in ("vqgan", "transformer", "embeddings")
        if (value := getattr(parts, name)) and "://" not in value and not value.startswith("/")
    }
    if parts.clip.startswith(LOCAL) and not parts.clip.startswith(f"{LOCAL}/"):
        inside["clip"] = f"{LOCAL}{folder}/{parts.clip.removeprefix(LOCAL)}"
    return parts.model_copy(update=inside)
