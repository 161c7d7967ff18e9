"""The contracts between stages: table columns, code dtype, manifests.

Stages never import each other; they meet in files of these shapes (docs: README, "Artefacts").
"""

import hashlib
import json
from collections.abc import Iterable

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from clipgen_core.errors import ClipgenError

VALIDATION_SHARE = 0.02

IMAGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # sha256 of the file's bytes
        pa.field("uri", pa.string(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
    ]
)

REJECTS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def embeddings_schema(dim: int, clip: str, clip_key: str) -> pa.Schema:
    """One row an image and CLIP model; `vector` is L2-normalised float32 of length `dim`.

    The table's metadata names the CLIP it was made with.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("folder", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata={"clip": clip, "clip_key": clip_key},
    )


def code_type(codebook_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds every code: uint16 up to 65,536 codes, else uint32."""
    if not 1 < codebook_size <= 2**32:
        raise ClipgenError(f"codebook_size {codebook_size} is not between 2 and 2**32: change it")
    return pa.uint16() if codebook_size <= 2**16 else pa.uint32()


def tokens_schema(codebook_size: int, positions: int, dim: int) -> pa.Schema:
    """One row a picture and view: `codes` row by row of the grid, `embedding` of the picture."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("view", pa.uint8(), nullable=False),
            pa.field("codes", pa.list_(code_type(codebook_size), positions), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def is_validation(image_id: str) -> bool:
    """Whether a picture is held out from training: by its own digest, so every stage agrees."""
    return int(image_id[:8], 16) / 2**32 < VALIDATION_SHARE


class Frozen(BaseModel):
    """A record that refuses unknown keys and never changes: every config and manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Part(Frozen):
    """One Parquet file of token shards."""

    file: str
    rows: int
    sha256: str


class TokenManifest(Frozen):
    """What `manifest.json` beside the token shards promises; readers refuse what does not match."""

    grid: int
    codebook_size: int
    embedding_dim: int
    views: int
    smallest_crop: float
    images_digest: str
    clip: str
    clip_key: str
    vqgan: str
    vqgan_digest: str
    embeddings: str
    embeddings_version: int
    codebook_usage: float
    codebook_perplexity: float
    train: tuple[Part, ...]
    validation: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in (*self.train, *self.validation))


def digest_of(value: object) -> str:
    """A short stable digest (16 hex digits) of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_ids(ids: Iterable[str]) -> str:
    """A digest of a set of image ids, whatever their order: the version of a data set."""
    combined = hashlib.sha256()
    for image_id in sorted(ids):
        combined.update(image_id.encode())
    return combined.hexdigest()[:16]
