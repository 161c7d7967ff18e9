"""A whole generator in one safetensors file: weights, CLIP and image embeddings, with JSON in its metadata.

Reading unpacks it, once, to a generator folder in the user's cache. Nothing in a file is trusted: names and
sizes are checked before anything is built or written. Knows the format; knows nothing of how it is written.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipgen_core import filesystem
from clipgen_core.cache import cached, seal, unchanged
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.generation.parts import CHECKPOINTS, FILE, Parts
from clipgen_core.models.clip_files import unfilled
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.schema import CLIP_CONFIG, CLIP_WEIGHTS, HF_HUB, HUB, LOCAL, Frozen, embeddings_schema
from clipgen_core.settings.models import GapConfig, TransformerConfig, VqganConfig
from clipgen_core.training.checkpoint import MARKER, PROVENANCE, WEIGHTS
from clipgen_core.training.provenance import ImportedCodes, Provenance, TrainingState

FORMAT = 1
CARD, DIGEST = "clipgen", "sha256"  # keys of the metadata
CLIP, CLIP_FILE, EMBEDDINGS = "clip", "clip-file", "embeddings"  # what names of tensors start with
SCALE = ":scale"  # ends the name of what int8 rows are multiplied by
HARMLESS = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*\.(?:json|txt|model)")  # files of a tokenizer
ID_BYTES = 32
INCLUDED = Parts(
    clip=f"{LOCAL}clip",
    clip_key="",
    vqgan="vqgan",
    transformer="transformer",
    embeddings="embeddings.lance",
)


class Card(Frozen):
    """What a model file says of itself; `clip_key` is that of the CLIP before its weights were rounded."""

    format: int
    clipgen: str
    name: str
    version: str | None = None
    weights: str
    clip: str
    clip_key: str
    images: int | None = None
    image_size: int
    step: int
    exported: str


def digest(metadata: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A SHA-256 over all that a file holds.

    Args:
        metadata: Texts by name; the digest itself is left out.
        tensors: Tensors with their names, sorted by name.

    Returns:
        Its 64 hex digits.
    """
    told = {name: text for name, text in metadata.items() if name != DIGEST}
    combined = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in tensors:
        combined.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        combined.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return combined.hexdigest()


def unpacked(file: Path) -> Path:
    """The generator folder that a file holds. It stays in the user's cache, so the next call is fast: that
    compares the file and the folder with their digests, and unpacks again if the folder has changed.

    Raises:
        ClipgenError: The file is damaged, something else, or of a newer version.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata() or {})
            card, key = read_card(file, metadata), metadata.get(DIGEST, "")
            if not re.fullmatch(r"[0-9a-f]{64}", key):
                raise _damaged(file, "it has no digest")
            names = sorted(opened.keys())
            if digest(metadata, ((name, opened.get_tensor(name)) for name in names)) != key:
                raise _damaged(file, "its content does not have its digest")
            return cached("models", key, lambda draft: _unpack(file, opened, metadata, draft), unchanged)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise ClipgenError(
            f"{file} has a setting that this version does not know ({name}: {problem['msg']}): upgrade to "
            f"clipgen {card.clipgen}, which wrote it"
        ) from error
    except SafetensorError as error:
        raise ClipgenError(
            f"{file} is no whole model file ({first_line(error)}): it is damaged, cut short or something "
            "else; get it again"
        ) from error


def read_card(file: Path, metadata: Mapping[str, str]) -> Card:
    """What a file says of itself.

    Args:
        file: Its name, for messages.
        metadata: Of the file.

    Returns:
        The card.

    Raises:
        ClipgenError: It was not written by `clipgen export`, or by a newer version.
    """
    if CARD not in metadata:
        raise ClipgenError(f"{file} holds weights, but was not written by clipgen export: give a model file")
    try:
        told = json.loads(metadata[CARD])
        if isinstance(told, dict) and isinstance(told.get("format"), int) and told["format"] > FORMAT:
            raise ClipgenError(
                f"{file} was written by clipgen {str(told.get('clipgen'))[:20]} in a format that this "
                "version does not know: upgrade clipgen"
            )
        return Card.model_validate(told)
    except ValueError as error:
        raise _damaged(file, first_line(error)) from error


def _damaged(file: Path, why: str) -> ClipgenError:
    return ClipgenError(f"{file} is damaged ({why}): get it again, or export the model again")


def _unpack(file: Path, opened: Any, metadata: Mapping[str, str], folder: Path) -> None:
    try:
        parts = Parts.model_validate_json(metadata[FILE])
        _require_included(file, parts)
        folder.mkdir(parents=True)
        for part in CHECKPOINTS:
            _unpack_checkpoint(file, opened, metadata, folder / part)
        if parts.clip == INCLUDED.clip:
            _unpack_clip(file, opened, metadata, folder / "clip")
        if parts.embeddings:
            _unpack_embeddings(file, opened, parts, folder / parts.embeddings)
    except ValidationError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
        raise _damaged(file, first_line(error)) from error
    (folder / FILE).write_text(parts.model_dump_json(indent=2))
    seal(folder)


def _require_included(file: Path, parts: Parts) -> None:
    """Refuse parts that are elsewhere; only a CLIP may be named by its reference to a hub."""
    fixed = {"vqgan": INCLUDED.vqgan, "transformer": INCLUDED.transformer}
    if not (
        all(getattr(parts, name) == value for name, value in fixed.items())
        and parts.embeddings in (None, INCLUDED.embeddings)
        and parts.embeddings_version is None
        and (parts.clip == INCLUDED.clip or parts.clip.startswith((HUB, HF_HUB)))
    ):
        raise _damaged(file, "it names parts outside of itself")


def _unpack_checkpoint(file: Path, opened: Any, metadata: Mapping[str, str], folder: Path) -> None:
    kind = folder.name
    weights = _weights(opened, kind)
    provenance = Provenance.model_validate_json(metadata[f"{kind}/{PROVENANCE}"])
    state = TrainingState.model_validate_json(metadata[f"{kind}/{MARKER}"])
    _require_fit(file, kind, _empty(kind, provenance, len(weights)), weights)
    folder.mkdir()
    save_file(weights, folder / WEIGHTS)
    (folder / PROVENANCE).write_text(json.dumps(provenance.record, indent=2))
    (folder / MARKER).write_text(state.model_dump_json(by_alias=True, indent=2))


def _empty(kind: str, provenance: Provenance, most: int) -> nn.Module:
    """The model that the settings describe, without memory for its weights."""
    config = provenance.config
    with torch.device("meta"):
        if kind == "vqgan":
            vqgan = VqganConfig.model_validate(config.get("model"))
            blocks = len(vqgan.channels) * max(vqgan.blocks, vqgan.decoder_blocks)
            _require_few(blocks, most, max(vqgan.image_size, vqgan.quantizer.codebook_size))
            return Vqgan(vqgan)
        model, codes = TransformerConfig.model_validate(config.get("model")), provenance.tokens
        if not isinstance(codes, ImportedCodes):
            raise ValueError("it does not say which codes the transformer knows")
        _require_few(model.layers, most, max(codes.grid, model.neighbours))
        return Transformer(
            model,
            codes.codebook_size,
            codes.grid,
            codes.embedding_dim,
            GapConfig.model_validate(config.get("gap")),
        )


def _require_few(layers: int, tensors: int, size: int) -> None:
    """Refuse settings that would take minutes to build even without memory."""
    if layers > tensors or size > 2**20:
        raise ValueError("its settings describe another model than its weights")


def _require_fit(file: Path, what: str, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != given:
        name = min(expected.items() ^ given.items())[0]
        raise _damaged(file, f"the weights {name} of its {what} do not fit its settings")


def _unpack_clip(file: Path, opened: Any, metadata: Mapping[str, str], folder: Path) -> None:
    weights = _weights(opened, CLIP)
    folder.mkdir()
    (folder / CLIP_CONFIG).write_text(metadata[f"{CLIP}/{CLIP_CONFIG}"])
    for name in _under(opened, CLIP_FILE):
        if not HARMLESS.fullmatch(name) or name == CLIP_CONFIG:
            raise _damaged(file, f"a file of its CLIP is called {name[:80]!r}")
        target = Path(filesystem.inside(str(folder), name))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(opened.get_tensor(f"{CLIP_FILE}/{name}").numpy().tobytes())
    _require_fit(file, "CLIP", unfilled(f"{LOCAL}{folder}", len(weights)), weights)
    save_file(weights, folder / CLIP_WEIGHTS[0])


def _unpack_embeddings(file: Path, opened: Any, parts: Parts, folder: Path) -> None:
    import lance

    rows, ids = _weights(opened, EMBEDDINGS), opened.get_tensor(f"{EMBEDDINGS}/id")
    vectors = F.normalize(rows["vector"].float(), dim=-1).numpy()
    if vectors.ndim != 2 or ids.dtype != torch.uint8 or ids.shape != (len(vectors), ID_BYTES):
        raise _damaged(file, "its embeddings have other shapes")
    names = [bytes(one).hex() for one in ids.numpy()]
    flat = pa.array(vectors.reshape(-1).astype(np.float32))
    schema = embeddings_schema(vectors.shape[1], parts.clip, parts.clip_key)
    columns = [
        pa.array(names),
        pa.array([""] * len(names)),  # the folders' names are not shared
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    ]
    lance.write_dataset(pa.Table.from_arrays(columns, schema=schema), str(folder))


def _under(opened: Any, prefix: str) -> list[str]:
    names = (one for one in opened.keys() if one.startswith(f"{prefix}/"))  # noqa: SIM118  # it has no __iter__
    return sorted(one.removeprefix(f"{prefix}/") for one in names)


def _weights(opened: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix; those that were rounded to int8 in float32."""
    found = {name: opened.get_tensor(f"{prefix}/{name}") for name in _under(opened, prefix)}
    scales = {name: found.pop(name + SCALE) for name in [*found] if name + SCALE in found}
    if prefix == EMBEDDINGS:
        found.pop("id")
    for name, scale in scales.items():
        if scale.shape != found[name].shape[:1]:
            raise ValueError(f"{name} has the scales of something else")
        found[name] = from_int8(found[name], scale)
    return found


def from_int8(rows: Tensor, scale: Tensor) -> Tensor:
    """What was rounded to int8, as near as it can be told.

    Args:
        rows: int8 [n, ...].
        scale: What to multiply each row by, float32 [n].

    Returns:
        float32 [n, ...].
    """
    return rows.float() * scale.view(-1, *[1] * (rows.ndim - 1))
