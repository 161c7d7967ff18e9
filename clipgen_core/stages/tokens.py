"""Encode every image once, so that training the transformer decodes no image again.

In:  the images table, the embeddings table, a VQGAN checkpoint
Out: {root}/codes/{fingerprint}.lance: the codes of each image; only new images are encoded
     {root}/tokens/{vqgan_digest}-{clip_key}-{fingerprint}/: part-*.parquet and manifest.json, codes beside
     embeddings, in an order that is random and does not depend on when an image came
Run: `token_shards` in Dagster, or `clipgen tokens`.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from clipgen_core import filesystem, logs, storage
from clipgen_core.data import tokens
from clipgen_core.data.decode import decode_stored
from clipgen_core.data.duplicates import redundant_keys
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.fill import Filling, fill
from clipgen_core.data.images import held_out
from clipgen_core.data.keys import Lookup, digest_of_keys, joined
from clipgen_core.data.pixels import fit_square, random_crop, to_bytes, to_float
from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.selection import selected_embeddings, selected_keys
from clipgen_core.data.tables import open_table, scan_keys
from clipgen_core.data.transfer import Moving, Transfer
from clipgen_core.data.upkeep import tag
from clipgen_core.device import autocast
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.models.quantizer import usage_and_perplexity
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.progress import track
from clipgen_core.schema import (
    Part,
    TokenInputs,
    TokenManifest,
    codes_fingerprint,
    codes_schema,
    digest_of,
    tokens_schema,
)
from clipgen_core.settings.tokens import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    import lance

__all__ = ["Config", "Result", "run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The token shards and their manifest; `encoded` images had no codes before, and `where` selects
    `selected` of `total` images."""

    shards: str
    manifest: TokenManifest
    digest: str
    selected: int
    total: int
    encoded: int
    images_per_second: float


def run(
    config: Config,
    *,
    images: str,
    embeddings: str,
    vqgan: str,
    out: storage.Storage,
    tracker: Tracker,
) -> Result:
    """Encode the images that have no codes yet, and publish shards of them all.

    Args:
        config: Views, block and part sizes, and where the work runs.
        images: The images table.
        embeddings: The embeddings table.
        vqgan: The VQGAN's checkpoint.
        out: The root that gets codes and shards.
        tracker: Gets the counts and the speed.

    Returns:
        The shards and their manifest.

    Raises:
        ClipgenError: An image has no embedding, `where` selects none, or the VQGAN is not available.
    """
    tracker.params({"config": config.model_dump()})
    model = load_vqgan(vqgan)
    vqgan_digest = Checkpoint(vqgan).provenance.digest
    codes = out.codes(codes_fingerprint(vqgan_digest, config.views, config.smallest_crop))
    source = open_table(images)
    filling = Filling(images, source.version, codes, config.batch_size, config.block_size, out=out)
    selected = selected_keys(source, config.where, "tokens.where")
    here = config.compute.where == "local"
    make = functools.partial(Encoder, vqgan, config.views, config.smallest_crop, model if here else None)
    encoded, speed = fill(filling, make, config.compute, "codes", only=selected)
    coded = open_table(codes)
    code_rows = Lookup(joined(scan_keys(coded))).find(selected)
    selected, code_rows = selected[code_rows >= 0], code_rows[code_rows >= 0]  # others were set aside
    embedded = EmbeddingTable(embeddings)
    tracker.table(images, source.version)
    tracker.table(embeddings, embedded.version)
    if config.where is not None:
        own = out.embeddings(f"{embedded.clip_key}-{digest_of(config.where)}")
        embedded = selected_embeddings(embedded, selected, own)
    shards = _Shards(config, source, embedded, coded, selected, code_rows)
    if config.exclude_duplicates is not None:
        duplicates = out.duplicates(embedded.clip_key)
        shards.leave_out(redundant_keys(duplicates, config.exclude_duplicates, embedded, among=selected))
    manifest, url = shards.publish(shards.inputs(vqgan, vqgan_digest, model), images, out)
    usage = {"codebook_usage": manifest.codebook_usage, "codebook_perplexity": manifest.codebook_perplexity}
    counts = {
        "rows": manifest.rows,
        "parts": len(manifest.train) + len(manifest.validation),
        "encoded": encoded,
        "images": len(selected),
        "images_total": source.count_rows(),
    }
    tracker.metrics(usage | counts | {"images_per_second": speed}, step=0)
    digest = digest_of([part.sha256 for part in (*manifest.train, *manifest.validation)])
    out.publish_current("tokens", url, digest)
    return Result(
        shards=url,
        manifest=manifest,
        digest=digest,
        selected=len(selected),
        total=counts["images_total"],
        encoded=encoded,
        images_per_second=speed,
    )


class Encoder:
    """A worker that encodes batches of images.

    Args:
        vqgan: The VQGAN's checkpoint.
        views: Crops of each image that are encoded.
        smallest_crop: Of a random crop, as a share of the short side.
        model: That VQGAN where it is loaded already.
    """

    def __init__(self, vqgan: str, views: int, smallest_crop: float, model: Vqgan | None = None) -> None:
        self.vqgan, self.views, self.smallest_crop = model or load_vqgan(vqgan), views, smallest_crop
        config = self.vqgan.config
        self.schema = codes_schema(config.quantizer.codebook_size, config.grid**2, views)
        self.decoders = ThreadPoolExecutor(pool_size())
        self.transfer = Transfer(next(self.vqgan.parameters()).device)

    def prepare(self, batch: pa.Table) -> tuple[pa.Table, Moving]:
        """Decode and crop: uint8 [n * views, 3, size, size], the views of an image one after the other."""
        pairs = zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True)
        views = self.decoders.map(lambda pair: self._views(*pair), pairs)
        crops = to_bytes([view for own in views for view in own])
        return batch.select(["id", "folder"]), self.transfer.begin(crops)

    def _views(self, image_id: str, data: bytes) -> list[Image.Image]:
        size, image = self.vqgan.config.image_size, decode_stored(data)
        seed = int(image_id[:12], 16)
        crops = [random_crop(image, size, self.smallest_crop, seed + view) for view in range(1, self.views)]
        return [fit_square(image, size), *crops]

    @torch.no_grad()
    def rows(self, prepared: tuple[pa.Table, Moving]) -> pa.Table:
        batch, images = prepared[0], self.transfer.end(prepared[1])
        with autocast(images.device):
            codes = torch.cat([self.vqgan.encode(to_float(some)) for some in images.split(128)]).cpu()
        kind = self.schema.field("codes").type
        flat = pa.array(codes.numpy().reshape(-1)).cast(kind.value_type)
        columns = [batch["id"], batch["folder"], pa.FixedSizeListArray.from_arrays(flat, kind.list_size)]
        return pa.Table.from_arrays(columns, schema=self.schema)


class _Shards:
    """The rows of images, embeddings and codes that belong together, ordered by id."""

    def __init__(
        self,
        config: Config,
        images: "lance.LanceDataset",
        embeddings: EmbeddingTable,
        codes: "lance.LanceDataset",
        keys: np.ndarray,
        code_rows: np.ndarray,
    ) -> None:
        self.config, self.images, self.embeddings, self.codes = config, images, embeddings, codes
        order = np.argsort(keys, kind="stable")
        self.keys, self.code_rows = keys[order], code_rows[order]
        self.embedding_rows = Lookup(embeddings.keys()).find(self.keys)
        missing = int((self.embedding_rows < 0).sum())
        if missing:
            raise ClipgenError(
                f"{missing} images have no embedding in {embeddings.url}: {storage.remedy('embeddings')}"
            )

    def leave_out(self, redundant: set[bytes]) -> None:
        kept = np.array([key not in redundant for key in self.keys.tolist()], bool)
        self.keys, self.code_rows = self.keys[kept], self.code_rows[kept]
        self.embedding_rows = self.embedding_rows[kept]

    def inputs(self, vqgan: str, vqgan_digest: str, model: Vqgan) -> TokenInputs:
        """What the shards are made from."""
        return TokenInputs(
            grid=model.config.grid,
            codebook_size=model.config.quantizer.codebook_size,
            embedding_dim=self.embeddings.dim,
            views=self.config.views,
            smallest_crop=self.config.smallest_crop,
            exclude_duplicates=self.config.exclude_duplicates,
            where=self.config.where,
            images_digest=digest_of_keys([self.keys]),
            clip=self.embeddings.clip,
            clip_key=self.embeddings.clip_key,
            vqgan=vqgan,
            vqgan_digest=vqgan_digest,
            embeddings=self.embeddings.url,
            embeddings_version=self.embeddings.version,
        )

    def publish(self, inputs: TokenInputs, images: str, out: storage.Storage) -> tuple[TokenManifest, str]:
        """Write the shards unless they are there and whole; returns their manifest and URL."""
        fingerprint, url = self._place(inputs, out)
        tag(inputs.embeddings, inputs.embeddings_version, f"tokens-{fingerprint}")
        if tokens.is_whole(url):
            return tokens.read_manifest(url), url
        if filesystem.exists(f"{url}/{tokens.MANIFEST}"):
            logs.line(f"the token shards at {url} are damaged: they are written again")
        self.counts = torch.zeros(inputs.codebook_size, dtype=torch.long)
        with filesystem.draft_folder(url) as scratch:
            draft = Path(scratch) / "tokens"
            draft.mkdir()
            held = held_out(self.keys)
            train = self._write(draft, np.flatnonzero(~held), "train")
            validation = self._write(draft, np.flatnonzero(held), "validation")
            usage, perplexity = usage_and_perplexity(self.counts)
            manifest = TokenManifest(
                **inputs.model_dump(),
                train=train,
                validation=validation,
                images=images,
                images_version=self.images.version,
                codebook_usage=usage,
                codebook_perplexity=perplexity,
            )
            tokens.publish(draft, manifest, url)
        return manifest, url

    def _place(self, inputs: TokenInputs, out: storage.Storage) -> tuple[str, str]:
        """The fingerprint and the URL of the shards; those of an earlier version, whose fingerprint depended
        on where the root lies, if they are there."""
        for counted in (inputs, storage.portable(inputs, out.root)):
            fingerprint = digest_of([counted.model_dump(), self.config.rows_per_part])
            url = out.tokens(inputs.vqgan_digest, inputs.clip_key, fingerprint)
            if filesystem.exists(f"{url}/{tokens.MANIFEST}"):
                break
        return fingerprint, url

    def _write(self, draft: Path, rows: np.ndarray, split: str) -> tuple[Part, ...]:
        return tuple(
            tokens.write_part(draft, f"part-{split}-{number:05d}.parquet", part)
            for number, part in enumerate(self.parts(rows, split))
        )

    def parts(self, rows: np.ndarray, split: str) -> Iterator[pa.Table]:
        """Tables of about `rows_per_part` rows, one row a view of an image."""
        size = max(self.config.rows_per_part // self.config.views, 1)
        with track(f"tokens ({split})", len(rows), "images") as meter:
            for start in range(0, len(rows), size):
                yield self._part(rows[start : start + size])
                meter.advance(len(rows[start : start + size]))

    def _part(self, rows: np.ndarray) -> pa.Table:
        views = self.config.views
        stored = self.codes.take(self.code_rows[rows].tolist(), columns=["id", "codes"])
        embedded = self.embeddings.vectors(self.embedding_rows[rows])
        codes = stored["codes"].combine_chunks().flatten()
        self.counts += torch.from_numpy(codes.to_numpy().astype("int64")).bincount(minlength=len(self.counts))
        again = pa.array(np.repeat(np.arange(len(rows)), views))
        schema = tokens_schema(len(self.counts), len(codes) // (len(rows) * views), self.embeddings.dim)
        columns = [
            stored["id"].combine_chunks().take(again),
            pa.array(np.tile(np.arange(views, dtype=np.uint8), len(rows))),
            pa.FixedSizeListArray.from_arrays(codes, schema.field("codes").type.list_size),
            embedded.combine_chunks().take(again),
        ]
        return pa.Table.from_arrays(columns, schema=schema)
