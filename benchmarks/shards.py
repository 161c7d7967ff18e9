"""Token shards of random codes and embeddings, of any size."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipgen_core.data import tokens
from clipgen_core.schema import Part, TokenManifest, code_type, tokens_schema

ROWS_PER_PART = 4096  # the default of token_shards
HELD_OUT = 64  # rows
UNNAMED = {"images_digest": "", "clip": "", "clip_key": "", "vqgan": "", "vqgan_digest": "", "embeddings": ""}


def write_shards(
    folder: Path, rows: int, *, codes: int = 16384, grid: int = 16, dim: int = 512, **named: Any
) -> str:
    """Write token shards; parts beyond the first few are copies of those.

    Args:
        folder: The folder to make.
        rows: Training rows.
        codes: Size of the codebook.
        grid: Side of the grid of codes.
        dim: Width of the embeddings.
        named: Further fields of the manifest, such as the VQGAN.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    schema = tokens_schema(codes, grid * grid, dim)
    rng, made, parts = np.random.default_rng(0), dict[int, bytes](), []
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        count, name = min(ROWS_PER_PART, rows - start), f"part-train-{number:05d}.parquet"
        if count not in made:
            part = tokens.write_part(folder, name, _table(rng, count, codes, schema))
            made[count] = (folder / name).read_bytes()
        else:
            (folder / name).write_bytes(made[count])
            part = Part(file=name, rows=count, sha256=hashlib.sha256(made[count]).hexdigest())
        parts.append(part)
    held = tokens.write_part(folder, "part-validation-00000.parquet", _table(rng, HELD_OUT, codes, schema))
    manifest = TokenManifest(
        grid=grid,
        codebook_size=codes,
        embedding_dim=dim,
        views=1,
        smallest_crop=1.0,
        embeddings_version=0,
        codebook_usage=1.0,
        codebook_perplexity=1.0,
        train=tuple(parts),
        validation=(held,),
        **{**UNNAMED, **named},
    )
    (folder / tokens.MANIFEST).write_text(manifest.model_dump_json())
    return str(folder)


def _table(rng: np.random.Generator, count: int, codes: int, schema: pa.Schema) -> pa.Table:
    size = schema.field("codes").type.list_size
    drawn = pa.array(rng.integers(codes, size=count * size)).cast(code_type(codes))
    vectors = schema.field("embedding").type.list_size
    embeddings = pa.array(rng.standard_normal(count * vectors, np.float32))
    columns = [
        pa.array([f"{i:064x}" for i in range(count)]),
        pa.array(np.zeros(count, np.uint8)),
        pa.FixedSizeListArray.from_arrays(drawn, size),
        pa.FixedSizeListArray.from_arrays(embeddings, vectors),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
