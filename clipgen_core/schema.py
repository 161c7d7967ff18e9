"""The contracts between stages: table columns, code dtype, manifests.

Stages never import each other; they meet in files of these shapes (see docs/artefacts.md).
"""

import hashlib
import json

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from clipgen_core.errors import ClipgenError

VALIDATION_SHARE = 0.02
HUB, HF_HUB, LOCAL = "hub:", "hf-hub:", "local-dir:"  # what references to a CLIP start with
HF_REPOSITORY = rf"{HF_HUB}[\w.-]+/[\w.-]+"
CLIP_CONFIG = "open_clip_config.json"  # in the folder of a CLIP, beside one of its weights
CLIP_WEIGHTS = (  # in the order of preference
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
KEY = {"lance-schema:unenforced-primary-key": "true"}  # no value twice: see data/tables.py
ID = pa.field("id", pa.string(), nullable=False, metadata=KEY)  # SHA-256 of the image file's bytes
URI = pa.field("uri", pa.string(), nullable=False, metadata=KEY)
FOLDER = pa.field("folder", pa.string(), nullable=False)  # the top-level folder of the source

IMAGES = pa.schema(
    [
        ID,
        pa.field("uri", pa.string(), nullable=False),
        FOLDER,
        pa.field("format", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
    ]
)

REFERENCE = (
    pa.field(  # an optional column of images and copies: where the bytes of an image lie in its source
        "reference",
        pa.struct(
            [
                pa.field(
                    "file", pa.string()
                ),  # URI of the file, which differs from the image's inside archives
                pa.field("offset", pa.int64()),
                pa.field("length", pa.int64()),
                pa.field("stamp", pa.string()),  # of the file when it was read, as in FILES
            ]
        ),
    )
)

REJECTS = pa.schema(
    [
        URI,
        pa.field("file", pa.string(), nullable=False),  # differs from uri inside archives
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

FILES = pa.schema(  # the files that were read: one with the same stamp is not read again
    [
        URI,
        FOLDER,
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("items", pa.int32(), nullable=False),  # images in it, usable or not
        pa.field("rejected", pa.int32(), nullable=False),
    ]
)

COPIES = pa.schema(  # further places of images that the images table has from elsewhere
    [
        URI,
        pa.field("id", pa.string(), nullable=False),
        FOLDER,
    ]
)

MISSING = pa.schema(  # files that were read and have left the source: see data/mirror.py
    [
        URI,
        FOLDER,
        pa.field("since", pa.timestamp("us", "UTC"), nullable=False),  # when one was first missed
    ]
)


DUPLICATES = pa.schema(  # the nearest other image of each image, by their embeddings
    [
        ID,
        FOLDER,
        pa.field("nearest", pa.string(), nullable=False),
        pa.field("cosine", pa.float32(), nullable=False),
    ]
)


CHAMPIONS = pa.schema(  # which version of a registered model was in use: the last row counts
    [
        pa.field("number", pa.int64(), nullable=False, metadata=KEY),
        pa.field("version", pa.string(), nullable=False),
        pa.field("before", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)


def embeddings_schema(dim: int, clip: str, clip_key: str) -> pa.Schema:
    """The schema of an embeddings table: one row an image, `vector` is L2-normalised float32.

    Args:
        dim: Numbers a vector.
        clip: The reference of the CLIP; kept in the table's metadata.
        clip_key: Names the CLIP's model and the digest of its weights; kept in the metadata too.

    Returns:
        The Arrow schema.
    """
    return pa.schema(
        [
            ID,
            FOLDER,
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata={"clip": clip, "clip_key": clip_key},
    )


def codes_schema(codebook_size: int, positions: int, views: int) -> pa.Schema:
    """The schema of a table of codes: one row an image, its views one after the other.

    Args:
        codebook_size: Sets the dtype of the codes.
        positions: Codes a view, row by row of the grid.
        views: Views an image.

    Returns:
        The Arrow schema.
    """
    codes = pa.list_(code_type(codebook_size), positions * views)
    return pa.schema([ID, FOLDER, pa.field("codes", codes, nullable=False)])


def codes_fingerprint(vqgan_digest: str, views: int, smallest_crop: float) -> str:
    """Names the table of codes.

    Args:
        vqgan_digest: Digest of what the VQGAN was made from.
        views: Views an image.
        smallest_crop: Of a random crop, as a share of the short side.

    Returns:
        A digest of all that the codes of an image depend on.
    """
    return digest_of([vqgan_digest, views, smallest_crop])


def code_type(codebook_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds every code: uint16 up to 65,536 codes, else uint32.

    Raises:
        ClipgenError: The codebook has fewer than 2 or more than 2**32 codes.
    """
    if not 1 < codebook_size <= 2**32:
        raise ClipgenError(f"codebook_size {codebook_size} is not between 2 and 2**32: change it")
    return pa.uint16() if codebook_size <= 2**16 else pa.uint32()


def tokens_schema(codebook_size: int, positions: int, dim: int) -> pa.Schema:
    """The schema of token shards: one row a view of an image, with the embedding of the image.

    Args:
        codebook_size: Sets the dtype of the codes.
        positions: Codes a row, row by row of the grid.
        dim: Numbers an embedding.

    Returns:
        The Arrow schema.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("view", pa.uint8(), nullable=False),
            pa.field("codes", pa.list_(code_type(codebook_size), positions), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


class Frozen(BaseModel):
    """A record that refuses unknown keys and never changes: every config and manifest."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class Part(Frozen):
    """One Parquet file of token shards."""

    file: str
    rows: int
    sha256: str


class TokenInputs(Frozen):
    """What token shards are made from; the same inputs give the same shards."""

    grid: int
    codebook_size: int
    embedding_dim: int
    views: int
    smallest_crop: float
    exclude_duplicates: float | None = None
    where: str | None = Field(default=None, exclude_if=lambda where: where is None)  # digests stay the same
    images_digest: str
    clip: str
    clip_key: str
    vqgan: str
    vqgan_digest: str
    embeddings: str
    embeddings_version: int


class TokenManifest(TokenInputs):
    """What `manifest.json` beside the token shards promises; readers refuse what does not match."""

    images: str = ""
    images_version: int | None = None
    codebook_usage: float
    codebook_perplexity: float
    train: tuple[Part, ...]
    validation: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in (*self.train, *self.validation))

    @property
    def images_count(self) -> int:
        return self.rows // self.views


def digest_of(value: object) -> str:
    """A short stable digest (16 hex digits) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
