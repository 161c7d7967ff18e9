"""A root after a year of nights: how many files, versions and tags it has, and how many bytes an image.

Each night a new folder is read and embedded. Each week its images are encoded and a transformer is trained on
them all, then upkeep and `clipgen gc` run. Models are tiny, and no model is registered.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tables import small_clip
from benchmarks.timing import Row
from clipgen_core.data.tables import find_table
from clipgen_core.data.upkeep import compact, tables, tags_of
from clipgen_core.registry.unused import remove, unused
from clipgen_core.settings.models import QuantizerConfig, TransformerConfig, VqganConfig
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages import embeddings, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker, mlflow_client

NIGHTS, A_NIGHT, SIZE, WEEK = 364, 4, 32, 7
TRACKER = NullTracker()
TRAIN = TrainConfig(steps=2, batch_size=8, learning_rate=1e-3)


@dataclass(frozen=True)
class Count:
    """What a root has after upkeep: images, files, their bytes, versions of tables, tags."""

    images: int
    files: int
    bytes: int
    versions: int
    tags: int


def year(nights: int = NIGHTS) -> list[Row]:
    """Counts after all nights against those after a quarter of them.

    Args:
        nights: How many, a multiple of eight weeks: the first week has fewer versions than the others.

    Returns:
        A row each for files, versions and tags, and one for bytes an image.
    """
    with tempfile.TemporaryDirectory() as scratch:
        weeks = list(_weeks(Path(scratch), nights // WEEK))
    early, late = weeks[len(weeks) // 4 - 1], weeks[-1]
    detail = f"{late.images} images in {nights} nights, {early.images} before"
    rows = [
        Row("year", f"{name}, all nights / a quarter of them", after / before, "x", "1", f"{before}, {after}")
        for name, before, after in (
            ("files", early.files, late.files),
            ("versions", early.versions, late.versions),
            ("tags", early.tags, late.tags),
        )
    ]
    shares = late.bytes / late.images / (early.bytes / early.images)
    return [*rows, Row("year", "bytes an image, all nights / a quarter", shares, "x", "<= 1", detail)]


def _weeks(scratch: Path, weeks: int) -> Iterator[Count]:
    source, out = scratch / "in", Storage(str(scratch / "root"))
    registry = mlflow_client(f"sqlite:///{scratch}/mlflow.db")
    shape = {"embed_dim": 32, "vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1}
    clip = small_clip(scratch / "clip", image_size=SIZE, patch_size=8, context_length=8, **shape)
    for week in range(weeks):
        for night in range(WEEK * week, WEEK * (week + 1)):
            _night(source, f"{night:03}", night, clip, out)
        _train(clip, out)
        for url in tables(out):
            compact(url, timedelta(0))
        remove(out, unused(out, registry, timedelta(0)))
        yield _count(out)


def _night(source: Path, folder: str, seed: int, clip: str, out: Storage) -> None:
    """A new folder comes, and is read and embedded."""
    (source / folder).mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (A_NIGHT, SIZE, SIZE, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(source / folder / f"{number}.png")
    taken = images.run(images.Config(), source=str(source), out=out, tracker=TRACKER, folder=folder)
    embeddings.run(
        embeddings.Config(), images=taken.table, clip=clip, out=out, tracker=TRACKER, folder=folder
    )


def _train(clip: str, out: Storage) -> None:
    """Encode what is new, by a VQGAN that stays, and train a transformer."""
    if not (Path(out.root) / "current" / "vqgan.json").exists():
        quantizer = QuantizerConfig(codebook_size=16, code_dim=8)
        model = VqganConfig(image_size=SIZE, channels=(32, 32), blocks=1, patch=4, quantizer=quantizer)
        config = vqgan.Config(model=model, train=TRAIN, adversarial_from=0.5, discriminator_width=16)
        vqgan.run(config, images=out.images, clip=clip, out=out, tracker=TRACKER)
    shards = tokens.run(
        tokens.Config(views=1),
        images=out.images,
        embeddings=out.current("embeddings", "the year").path,
        vqgan=out.current("vqgan", "the year").path,
        out=out,
        tracker=TRACKER,
    ).shards
    model_config = TransformerConfig(width=32, layers=1, heads=2)
    training = transformer.Config(model=model_config, train=TRAIN)
    transformer.run(training, tokens=shards, out=out, tracker=TRACKER)


def _count(out: Storage) -> Count:
    files = [file for file in Path(out.root).rglob("*") if file.is_file()]
    found = {url: table for url in tables(out) if (table := find_table(url)) is not None}
    return Count(
        images=found[out.images].count_rows(),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        versions=sum(len(table.versions()) for table in found.values()),
        tags=sum(len(tags_of(url)) for url in found),
    )
