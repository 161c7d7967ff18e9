"""Writes a generator as one file to share, or as a folder in the layout of the Hugging Face Hub.

Knows the parts of a generator and the format of `model_file`; loads no generator.
"""

import datetime
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import clipgen_core
from clipgen_core import filesystem
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.tables import vectors
from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.model_file import (
    CARD,
    CLIP,
    CLIP_FILE,
    DIGEST,
    EMBEDDINGS,
    FORMAT,
    HARMLESS,
    INCLUDED,
    SCALE,
    Card,
    digest,
    from_int8,
)
from clipgen_core.generation.parts import CHECKPOINTS, FILE, Parts
from clipgen_core.models import clip_files
from clipgen_core.schema import CLIP_CONFIG, LOCAL
from clipgen_core.settings.models import VqganConfig
from clipgen_core.training.checkpoint import MARKER, PROVENANCE, WEIGHTS, Checkpoint
from clipgen_core.training.provenance import ImportedCodes, Provenance, TrainingState

Weights = Literal["bf16", "int8"]
LARGE = 2**12  # numbers: smaller tensors stay as they are
EXACT = ("quantizer.", "gap.")  # the codebook and the statistics of embeddings stay as they are
README = "README.md"


def export_file(
    parts: Parts, output: str, *, name: str, version: str | None = None, weights: Weights = "bf16"
) -> Card:
    """Write a generator as one file, which `TextToImage.from_pretrained` loads.

    A CLIP in a folder is included; one of a hub is named, and fetched where the file is loaded.

    Args:
        parts: Where its parts are.
        output: The file, a local path or an fsspec URL. One that exists is replaced.
        name: Of the model.
        version: Of the model in a registry.
        weights: `bf16`, or `int8` with a scale for each row, of half the size.

    Returns:
        What the file says of itself.

    Raises:
        ClipgenError: A part is missing or damaged, or the disk is full.
    """
    with _draft_of(output) as scratch:
        draft = scratch / WEIGHTS
        card = _write(parts, draft, name, version, weights)
        filesystem.publish_file(draft, output)
    return card


def export_folder(
    parts: Parts, output: str, *, name: str, version: str | None = None, weights: Weights = "bf16"
) -> Card:
    """Write a generator as a folder to upload to the Hugging Face Hub: the file, its settings and a README.

    Args:
        parts, name, version, weights: See `export_file`.
        output: A new or empty folder.

    Returns:
        What the model says of itself.

    Raises:
        ClipgenError: The folder holds other files, or as `export_file`.
    """
    if filesystem.list_folder(output):
        raise ClipgenError(f"{output} holds other files: choose a new folder for the model")
    with _draft_of(output) as scratch:
        draft = scratch / "model"
        draft.mkdir()
        card = _write(parts, draft / WEIGHTS, name, version, weights)
        settings = {kind: Checkpoint(getattr(parts, kind)).provenance.config for kind in CHECKPOINTS}
        models = {kind: config.get("model") for kind, config in settings.items()}
        sampling = parts.sampling.model_dump(mode="json")
        config = {"model_type": "clipgen", **card.model_dump(), **models, "sampling": sampling}
        (draft / PROVENANCE).write_text(json.dumps(config, indent=2))
        (draft / README).write_text(_readme(card))
        filesystem.publish_folder(draft, output, WEIGHTS)
    return card


@contextmanager
def _draft_of(output: str) -> Iterator[Path]:
    full = f"the disk is full, so {output} was not written: make room and run again"
    with filesystem.room_needed(full), filesystem.draft_folder(output) as scratch:
        yield Path(scratch)


def _write(parts: Parts, file: Path, name: str, version: str | None, weights: Weights) -> Card:
    metadata, tensors, included = dict[str, str](), dict[str, Tensor](), {"clip_key": parts.clip_key}
    for kind in CHECKPOINTS:
        checkpoint = Checkpoint(getattr(parts, kind))
        tensors |= _rounded(kind, checkpoint.weights(), weights)
        metadata[f"{kind}/{PROVENANCE}"] = json.dumps(_shared(checkpoint).record)
        metadata[f"{kind}/{MARKER}"] = TrainingState(step=checkpoint.state.step).model_dump_json(
            by_alias=True
        )
    if parts.clip.startswith(LOCAL):
        folder = local_copy(parts.clip.removeprefix(LOCAL))
        stored, included["clip_key"] = _clip(f"{LOCAL}{folder}", weights)
        tensors |= stored | _clip_files(folder)
        metadata[f"{CLIP}/{CLIP_CONFIG}"] = (folder / CLIP_CONFIG).read_text()
    if parts.embeddings:
        tensors |= _embeddings(EmbeddingTable(parts.embeddings, parts.embeddings_version))
    places = INCLUDED.model_dump(include={"vqgan", "transformer"})
    places |= {"clip": INCLUDED.clip if parts.clip.startswith(LOCAL) else parts.clip, **included}
    places |= {"embeddings": INCLUDED.embeddings if parts.embeddings else None, "embeddings_version": None}
    metadata[FILE] = parts.model_copy(update=places).model_dump_json()
    card = _card(parts, name, version, weights)
    metadata[CARD] = card.model_dump_json()
    metadata[DIGEST] = digest(metadata, sorted(tensors.items()))
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata)
    return card


def _card(parts: Parts, name: str, version: str | None, weights: Weights) -> Card:
    vqgan, transformer = Checkpoint(parts.vqgan), Checkpoint(parts.transformer)
    count = vqgan.provenance.image_count
    if parts.embeddings:
        count = EmbeddingTable(parts.embeddings, parts.embeddings_version).table.count_rows()
    return Card(
        format=FORMAT,
        clipgen=clipgen_core.__version__,
        name=name,
        version=version,
        weights=weights,
        clip="included" if parts.clip.startswith(LOCAL) else parts.clip,
        clip_key=parts.clip_key,
        images=count,
        image_size=vqgan.settings("model", VqganConfig).image_size,
        step=transformer.state.step,
        exported=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _shared(checkpoint: Checkpoint) -> Provenance:
    """What a checkpoint was made from, without the addresses and texts of who trained it."""
    full = checkpoint.provenance
    told: dict[str, Any] = {
        "config": {key: value for key, value in full.config.items() if not isinstance(value, str)},
        "images_digest": full.images_digest,
        "imported": full.imported,
        "image_count": full.image_count,
    }
    if full.tokens is not None:
        kept = set(ImportedCodes.model_fields) - {"images", "images_version"}
        told["tokens"] = ImportedCodes(**full.tokens.model_dump(include=kept))
    return Provenance(**{key: value for key, value in told.items() if value is not None})


def _rounded(prefix: str, weights: Mapping[str, Tensor], to: Weights) -> dict[str, Tensor]:
    """Weights as they are stored: large ones rounded, others as they are."""
    stored = {}
    for name, value in weights.items():
        key = f"{prefix}/{name}"
        small = value.ndim < 2 or value.numel() < LARGE or name.startswith(EXACT)
        if small or not value.is_floating_point():
            stored[key] = value
        elif to == "bf16":
            stored[key] = value.bfloat16()
        else:
            stored[key], stored[key + SCALE] = in_int8(value)
    return stored


def in_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 255 levels between plus and minus the largest number of each row.

    Args:
        rows: Float [n, ...].

    Returns:
        int8 [n, ...], and what to multiply each row by, float32 [n].
    """
    flat = rows.float().flatten(1)
    scale = flat.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (flat / scale[:, None]).round().to(torch.int8).view(rows.shape), scale


def _clip(reference: str, to: Weights) -> tuple[dict[str, Tensor], str]:
    """The stored weights of a CLIP, and its key once they are loaded again."""
    model, _, _ = clip_files.load(reference)
    stored = _rounded(CLIP, model.state_dict(), to)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            rounded, scale = stored[f"{CLIP}/{name}"], stored.get(f"{CLIP}/{name}{SCALE}")
            value.copy_(rounded if scale is None else from_int8(rounded, scale))
    return stored, clip_files.key(reference, model)


def _clip_files(folder: Path) -> dict[str, Tensor]:
    """The files that a tokenizer or a text tower reads beside the weights."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    files = [name for name in names if HARMLESS.fullmatch(name) and name != CLIP_CONFIG]
    read = ((name, np.frombuffer((folder / name).read_bytes(), np.uint8)) for name in files)
    return {f"{CLIP_FILE}/{name}": torch.from_numpy(data.copy()) for name, data in read if len(data)}


def _embeddings(table: EmbeddingTable) -> dict[str, Tensor]:
    ids, parts = [], []
    for batch in _batches(table):
        ids += [np.frombuffer(bytes.fromhex(one), np.uint8) for one in batch["id"].to_pylist()]
        parts.append(in_int8(torch.from_numpy(vectors(batch).copy())))
    if not ids:
        raise ClipgenError(f"{table.url} has no embeddings: embed images, or restore the table")
    return {
        f"{EMBEDDINGS}/id": torch.from_numpy(np.stack(ids)),
        f"{EMBEDDINGS}/vector": torch.cat([rows for rows, _ in parts]),
        f"{EMBEDDINGS}/vector{SCALE}": torch.cat([scale for _, scale in parts]),
    }


def _batches(table: EmbeddingTable) -> Iterator[Any]:
    import pyarrow as pa

    for batch in table.table.to_batches(columns=["id", "vector"]):
        yield pa.Table.from_batches([batch])


def _readme(card: Card) -> str:
    """A model card as the Hugging Face Hub reads it."""
    facts = {
        "Version": card.version,
        "Image size": f"{card.image_size} px",
        "Training images": card.images,
        "Training steps of the transformer": card.step,
        "CLIP": f"{card.clip_key} ({card.clip})",
        "Weights": card.weights,
        "Exported": f"{card.exported}, by clipgen {card.clipgen}",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)
    return f"""---
library_name: clipgen
pipeline_tag: text-to-image
tags: [clip-gen, vqgan, text-to-image]
---

# {card.name}

A text-to-image model that was trained on images without captions (CLIP-GEN,
[arXiv:2203.00386](https://arxiv.org/abs/2203.00386)). Beside the weights, the file holds the CLIP
embeddings and the ids (SHA-256) of the training images, but not the images.

```python
from clipgen_core import TextToImage

generator = TextToImage.from_pretrained("FOLDER")  # or hf://ORG/NAME
generator.generate(["a red heart"], seed=1)[0][0].save("heart.png")
```

| | |
|---|---|
{rows}
"""
