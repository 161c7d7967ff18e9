"""Turn every picture into codes once, so that training the transformer decodes no picture again.

In:  the images table, the embeddings table, a VQGAN checkpoint
Out: {root}/tokens/{vqgan_digest}-{clip_key}/: part-*.parquet and manifest.json
Run: `token_shards` in Dagster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import Field

from clipgen_core import storage
from clipgen_core.data import tokens
from clipgen_core.data.images import ImageTable
from clipgen_core.data.pictures import fit_square, random_crop, to_tensor
from clipgen_core.data.tables import open_table
from clipgen_core.errors import ClipgenError
from clipgen_core.load import load_vqgan
from clipgen_core.models.quantizer import usage_and_perplexity
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.progress import track
from clipgen_core.schema import Frozen, TokenManifest, digest_of, tokens_schema
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import read_config


class Config(Frozen):
    """views: how many codings a picture gets: its central square, then random crops, half mirrored."""

    views: int = Field(default=1, ge=1, le=255)
    smallest_crop: float = Field(default=0.85, gt=0, le=1)
    batch_size: int = Field(default=128, gt=0)
    rows_per_part: int = Field(default=4096, gt=0)


@dataclass(frozen=True, kw_only=True)
class Result:
    shards: str
    manifest: TokenManifest
    digest: str


def run(
    config: Config,
    *,
    images: str,
    embeddings: str,
    vqgan: str,
    out: storage.Storage,
    tracker: Tracker,
) -> Result:
    """Encode all pictures and publish the shards; shards of the same making are left as they are."""
    source, table, model = ImageTable(images), open_table(embeddings), load_vqgan(vqgan)
    clip, clip_key = (table.schema.metadata[k].decode() for k in (b"clip", b"clip_key"))
    made_from = {
        "grid": model.config.grid,
        "codebook_size": model.config.quantizer.codebook_size,
        "embedding_dim": table.schema.field("vector").type.list_size,
        "views": config.views,
        "smallest_crop": config.smallest_crop,
        "images_digest": source.digest,
        "clip": clip,
        "clip_key": clip_key,
        "vqgan": vqgan,
        "vqgan_digest": digest_of(read_config(vqgan)),
        "embeddings": embeddings,
        "embeddings_version": table.version,
    }
    url = out.tokens(made_from["vqgan_digest"], clip_key)
    manifest = _already_made(url, made_from)
    if manifest is None:
        encoder = _Encoder(config, source, table, _rows_by_id(table, source), model)
        manifest = encoder.publish(url, made_from)
    usage = {
        "codebook_usage": manifest.codebook_usage,
        "codebook_perplexity": manifest.codebook_perplexity,
    }
    tracker.metrics(usage, step=0)
    digest = digest_of([part.sha256 for part in (*manifest.train, *manifest.validation)])
    out.publish_current("tokens", url, digest)
    return Result(shards=url, manifest=manifest, digest=digest)


def _already_made(url: str, made_from: Mapping[str, Any]) -> TokenManifest | None:
    if not storage.exists(f"{url}/{tokens.MANIFEST}"):
        return None
    manifest = tokens.read_manifest(url)
    same = all(getattr(manifest, name) == value for name, value in made_from.items())
    return manifest if same else None


def _rows_by_id(table: Any, source: ImageTable) -> dict[str, int]:
    ids = table.to_table(columns=["id"])["id"].to_pylist()
    rows = {image_id: row for row, image_id in enumerate(ids)}
    missing = sum(image_id not in rows for image_id in source.ids)
    if missing:
        raise ClipgenError(f"{missing} pictures have no embedding in {table.uri}: run clip_embeddings")
    return rows


@dataclass
class _Encoder:
    config: Config
    source: ImageTable
    table: Any
    embedded: dict[str, int]
    vqgan: Vqgan

    def publish(self, url: str, made_from: Mapping[str, Any]) -> TokenManifest:
        """Write all parts into a draft, then give them and their manifest the final name."""
        self.counts = torch.zeros(self.vqgan.config.quantizer.codebook_size, dtype=torch.long)
        with storage.draft_folder(url) as scratch:
            draft = Path(scratch) / "tokens"
            draft.mkdir()
            splits = {"train": self.source.train, "validation": self.source.validation}
            parts = {
                split: tuple(
                    tokens.write_part(draft, f"part-{split}-{number:05d}.parquet", part)
                    for number, part in enumerate(self.parts(rows, split))
                )
                for split, rows in splits.items()
            }
            usage, perplexity = usage_and_perplexity(self.counts)
            manifest = TokenManifest(
                **made_from, **parts, codebook_usage=usage, codebook_perplexity=perplexity
            )
            tokens.publish(draft, manifest, url)
        return manifest

    def parts(self, rows: np.ndarray, split: str) -> Iterator[pa.Table]:
        """Tables of about `rows_per_part` rows."""
        waiting: list[pa.Table] = []
        with track(f"tokens ({split})", len(rows), "pictures") as meter:
            for start in range(0, len(rows), self.config.batch_size):
                batch = rows[start : start + self.config.batch_size]
                waiting.append(self._encode(batch))
                meter.advance(len(batch))
                if sum(t.num_rows for t in waiting) >= self.config.rows_per_part:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _encode(self, rows: np.ndarray) -> pa.Table:
        ids = [self.source.ids[row] for row in rows]
        found = self.table.take([self.embedded[i] for i in ids], columns=["vector"])
        embedding = found["vector"].combine_chunks()
        pictures = self.source.pictures(rows)
        return pa.concat_tables(
            self._encode_view(
                ids,
                [self._view(p, i, view) for p, i in zip(pictures, ids, strict=True)],
                view,
                embedding,
            )
            for view in range(self.config.views)
        )

    def _view(self, picture: Image.Image, image_id: str, view: int) -> Image.Image:
        size = self.vqgan.config.image_size
        if view == 0:
            return fit_square(picture, size)
        seed = int(image_id[:12], 16) + view
        return random_crop(picture, size, self.config.smallest_crop, seed)

    @torch.no_grad()
    def _encode_view(
        self, ids: list[str], pictures: list[Image.Image], view: int, embedding: pa.Array
    ) -> pa.Table:
        device = next(self.vqgan.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            codes = self.vqgan.encode(to_tensor(pictures).to(device)).flatten(1).cpu()
        self.counts += codes.flatten().bincount(minlength=len(self.counts))
        schema = tokens_schema(len(self.counts), codes.shape[1], embedding.type.list_size)
        flat = pa.array(codes.numpy().reshape(-1)).cast(schema.field("codes").type.value_type)
        columns = [
            pa.array(ids),
            pa.array(np.full(len(ids), view, np.uint8)),
            pa.FixedSizeListArray.from_arrays(flat, codes.shape[1]),
            embedding,
        ]
        return pa.Table.from_arrays(columns, schema=schema)
