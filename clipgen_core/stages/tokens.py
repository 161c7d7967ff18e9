"""Turn every picture into codes once, so that training the transformer decodes no picture again.

In:  the images table, the embeddings table, a VQGAN checkpoint
Out: {root}/codes/{making}.lance: the codes of each picture, new pictures only being coded; and
     {root}/tokens/{vqgan_digest}-{clip_key}-{making}/: part-*.parquet and manifest.json, codes and
     embeddings side by side, in an order that is random and the same whenever pictures came
Run: `token_shards` in Dagster.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from clipgen_core import storage
from clipgen_core.data import tokens
from clipgen_core.data.duplicates import redundant_keys
from clipgen_core.data.fill import Filling, fill
from clipgen_core.data.images import held_out
from clipgen_core.data.keys import Lookup, digest_of_keys, joined
from clipgen_core.data.pixels import decode_stored, fit_square, random_crop, to_tensor
from clipgen_core.data.tables import open_table, scan_keys
from clipgen_core.data.upkeep import tag
from clipgen_core.device import autocast
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.models.quantizer import usage_and_perplexity
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.progress import track
from clipgen_core.schema import TokenManifest, codes_schema, digest_of, tokens_schema
from clipgen_core.settings.tokens import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import read_config

__all__ = ["Config", "Result", "run"]

DECODERS = 4


@dataclass(frozen=True, kw_only=True)
class Result:
    shards: str
    manifest: TokenManifest
    digest: str
    coded: int
    pictures_per_second: float


def run(
    config: Config,
    *,
    images: str,
    embeddings: str,
    vqgan: str,
    out: storage.Storage,
    tracker: Tracker,
) -> Result:
    """Code the pictures that have no codes yet, and publish shards of them all."""
    tracker.params({"config": config.model_dump()})
    model = load_vqgan(vqgan)
    vqgan_digest = digest_of(read_config(vqgan))
    codes = out.codes(digest_of([vqgan_digest, config.views, config.smallest_crop]))
    source = open_table(images)
    filling = Filling(images, source.version, codes, config.batch_size, config.block_size)
    here = config.compute.on == "local"
    make = functools.partial(Coder, vqgan, config.views, config.smallest_crop, model if here else None)
    coded, speed = fill(filling, make, config.compute, "codes")
    shards = _Shards(config, source, open_table(embeddings), open_table(codes))
    if config.exclude_duplicates is not None:
        shards.leave_out(redundant_keys(out.duplicates(shards.clip_key), config.exclude_duplicates))
    manifest, url = shards.publish(images, embeddings, vqgan, vqgan_digest, model, out)
    usage = {
        "codebook_usage": manifest.codebook_usage,
        "codebook_perplexity": manifest.codebook_perplexity,
    }
    counts = {"rows": manifest.rows, "parts": len(manifest.train) + len(manifest.validation), "coded": coded}
    tracker.metrics(usage | counts | {"pictures_per_second": speed}, step=0)
    digest = digest_of([part.sha256 for part in (*manifest.train, *manifest.validation)])
    out.publish_current("tokens", url, digest)
    return Result(shards=url, manifest=manifest, digest=digest, coded=coded, pictures_per_second=speed)


class Coder:
    """A VQGAN at work on batches of pictures."""

    def __init__(self, vqgan: str, views: int, smallest_crop: float, model: Vqgan | None = None) -> None:
        self.vqgan, self.views, self.smallest_crop = model or load_vqgan(vqgan), views, smallest_crop
        config = self.vqgan.config
        self.schema = codes_schema(config.quantizer.codebook_size, config.grid**2, views)
        self.decoders = ThreadPoolExecutor(DECODERS)

    def prepare(self, batch: pa.Table) -> tuple[pa.Table, Tensor]:
        """float32 [n * views, 3, size, size], a picture's views one after the other."""
        pairs = zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True)
        pictures = self.decoders.map(lambda pair: self._views(*pair), pairs)
        return batch.select(["id", "folder"]), to_tensor([view for views in pictures for view in views])

    def _views(self, image_id: str, data: bytes) -> list[Image.Image]:
        size, picture = self.vqgan.config.image_size, decode_stored(data)
        seed = int(image_id[:12], 16)
        crops = [random_crop(picture, size, self.smallest_crop, seed + view) for view in range(1, self.views)]
        return [fit_square(picture, size), *crops]

    @torch.no_grad()
    def rows(self, prepared: tuple[pa.Table, Tensor]) -> pa.Table:
        batch, pictures = prepared
        device = next(self.vqgan.parameters()).device
        with autocast(device.type):
            codes = torch.cat([self.vqgan.encode(some.to(device)).cpu() for some in pictures.split(128)])
        kind = self.schema.field("codes").type
        flat = pa.array(codes.numpy().reshape(-1)).cast(kind.value_type)
        columns = [batch["id"], batch["folder"], pa.FixedSizeListArray.from_arrays(flat, kind.list_size)]
        return pa.Table.from_arrays(columns, schema=self.schema)


class _Shards:
    """The rows of the three tables that belong together, in the order of the ids."""

    def __init__(
        self,
        config: Config,
        images: lance.LanceDataset,
        embeddings: lance.LanceDataset,
        codes: lance.LanceDataset,
    ) -> None:
        self.config, self.images, self.embeddings, self.codes = config, images, embeddings, codes
        self.keys = np.sort(joined(scan_keys(images)))
        self.clip, self.clip_key = (embeddings.schema.metadata[k].decode() for k in (b"clip", b"clip_key"))
        self.embedding_rows = Lookup(joined(scan_keys(embeddings))).find(self.keys)
        self.code_rows = Lookup(joined(scan_keys(codes))).find(self.keys)
        missing = int((self.embedding_rows < 0).sum())
        if missing:
            raise ClipgenError(
                f"{missing} pictures have no embedding in {embeddings.uri}: run clip_embeddings"
            )

    def leave_out(self, redundant: set[bytes]) -> None:
        kept = np.array([key not in redundant for key in self.keys.tolist()], bool)
        self.keys, self.code_rows = self.keys[kept], self.code_rows[kept]
        self.embedding_rows = self.embedding_rows[kept]

    def publish(
        self,
        images: str,
        embeddings: str,
        vqgan: str,
        vqgan_digest: str,
        model: Vqgan,
        out: storage.Storage,
    ) -> tuple[TokenManifest, str]:
        """Write the shards, unless they are there."""
        made_from: dict[str, Any] = {
            "grid": model.config.grid,
            "codebook_size": model.config.quantizer.codebook_size,
            "embedding_dim": self.embeddings.schema.field("vector").type.list_size,
            "views": self.config.views,
            "smallest_crop": self.config.smallest_crop,
            "exclude_duplicates": self.config.exclude_duplicates,
            "images_digest": digest_of_keys([self.keys]),
            "clip": self.clip,
            "clip_key": self.clip_key,
            "vqgan": vqgan,
            "vqgan_digest": vqgan_digest,
            "embeddings": embeddings,
            "embeddings_version": self.embeddings.version,
        }
        making = digest_of([made_from, self.config.rows_per_part])
        url = out.tokens(vqgan_digest, self.clip_key, making)
        tag(embeddings, self.embeddings.version, f"tokens-{making}")
        if storage.exists(f"{url}/{tokens.MANIFEST}"):
            return tokens.read_manifest(url), url
        self.counts = torch.zeros(made_from["codebook_size"], dtype=torch.long)
        with storage.draft_folder(url) as scratch:
            draft = Path(scratch) / "tokens"
            draft.mkdir()
            held = held_out(self.keys)
            splits = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
            parts = {
                split: tuple(
                    tokens.write_part(draft, f"part-{split}-{number:05d}.parquet", part)
                    for number, part in enumerate(self.parts(rows, split))
                )
                for split, rows in splits.items()
            }
            usage, perplexity = usage_and_perplexity(self.counts)
            manifest = TokenManifest(
                **made_from,
                **parts,
                images=images,
                images_version=self.images.version,
                codebook_usage=usage,
                codebook_perplexity=perplexity,
            )
            tokens.publish(draft, manifest, url)
        return manifest, url

    def parts(self, rows: np.ndarray, split: str) -> Iterator[pa.Table]:
        """Tables of about `rows_per_part` rows, a row a picture and view."""
        size = max(self.config.rows_per_part // self.config.views, 1)
        with track(f"tokens ({split})", len(rows), "pictures") as meter:
            for start in range(0, len(rows), size):
                yield self._part(rows[start : start + size])
                meter.advance(len(rows[start : start + size]))

    def _part(self, rows: np.ndarray) -> pa.Table:
        views = self.config.views
        coded = self.codes.take(self.code_rows[rows].tolist(), columns=["id", "codes"])
        embedded = self.embeddings.take(self.embedding_rows[rows].tolist(), columns=["vector"])
        codes = coded["codes"].combine_chunks().flatten()
        self.counts += torch.from_numpy(codes.to_numpy().astype("int64")).bincount(minlength=len(self.counts))
        again = pa.array(np.repeat(np.arange(len(rows)), views))
        schema = tokens_schema(
            len(self.counts),
            len(codes) // (len(rows) * views),
            self.embeddings.schema.field("vector").type.list_size,
        )
        columns = [
            coded["id"].combine_chunks().take(again),
            pa.array(np.tile(np.arange(views, dtype=np.uint8), len(rows))),
            pa.FixedSizeListArray.from_arrays(codes, schema.field("codes").type.list_size),
            embedded["vector"].combine_chunks().take(again),
        ]
        return pa.Table.from_arrays(columns, schema=schema)
