"""The reference set: real images, with which every set of images of an evaluation is compared.

It is chosen by the images' ids, so that it is the same for the candidate, for the champion and in later
evaluations: held-out images come first, then training images. It holds none of the prompts' own images.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import lance
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from clipgen_core import logs
from clipgen_core.data.decode import decode, decode_stored
from clipgen_core.data.images import held_out
from clipgen_core.data.keys import digest_of_keys, joined, keys_of_ids
from clipgen_core.data.pixels import fit_square
from clipgen_core.data.referenced import take_images
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.selection import selected_keys
from clipgen_core.data.sources import Item, Source
from clipgen_core.data.tables import open_table, scan_keys
from clipgen_core.errors import ClipgenError
from clipgen_core.judging.distances import Discrepancy, Estimate, Frechet, Manifold, cmmd, floor, kid
from clipgen_core.judging.judge import CLIP, INCEPTION, LOGITS, Features, Judge
from clipgen_core.judging.metrics import BLURS, blurred, inception_score
from clipgen_core.progress import track

PER_DIMENSION = 10  # reference images for each dimension of the features that FID needs
BLOCK = 256  # images at once; only the first block is also blurred, for KID is unbiased at any number
DECODERS = 4
SPACES = {CLIP: "CLIP", INCEPTION: "Inception"}
SUFFIX = {CLIP: "_clip", INCEPTION: ""}  # of the metrics' names, by space
FEWEST = 3


class Block(NamedTuple):
    """Some images of a reference set: their keys, S16 [n], and the RGB images, all of one size."""

    keys: np.ndarray
    images: list[Image.Image]


class Chosen(NamedTuple):
    """The images of a reference set.

    Attributes:
        blocks: The images, decoded when they are needed.
        most: How many there are at the most.
        origin: What they are, for the report.
    """

    blocks: Iterator[Block]
    most: int
    origin: str


def choose_stored(
    images: str, size: int, most: int, without: Collection[str], where: str | None = None
) -> Chosen:
    """Choose images of the images table: those with the lowest ids, of which the first are held out.

    Args:
        images: URL of the images table.
        size: Their side, in pixels.
        most: How many at the most.
        without: Ids of images to leave out.
        where: Which images the generator was trained on; all if None.

    Returns:
        The reference set.
    """
    table = open_table(images)
    keys = joined(scan_keys(table))
    chosen = keys if where is None else selected_keys(table, where, "tokens.where")
    order = np.argsort(keys)
    order = order[np.isin(keys[order], chosen)]
    rows = order[~np.isin(keys[order], keys_of_ids(pa.array(sorted(without), pa.string())))][:most]
    held = chosen[held_out(chosen)] if len(chosen) else chosen
    validation = int(np.isin(keys[rows], held).sum())
    origin = (
        f"{validation:,} held-out and {len(rows) - validation:,} training images, none of them a prompt's"
    )
    return Chosen(_stored_blocks(table, keys, rows, size), len(rows), origin)


def _stored_blocks(
    table: lance.LanceDataset, keys: np.ndarray, rows: np.ndarray, size: int
) -> Iterator[Block]:
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(rows), BLOCK):
            found, gone = take_images(table, rows[start : start + BLOCK].tolist())
            for reason in gone.values():
                logs.line(f"the reference set lacks an image: {reason}")
            if not found.num_rows:
                continue
            images = pool.map(lambda one: fit_square(decode_stored(one), size), found["image"].to_pylist())
            yield Block(keys_of_ids(found["id"]), list(images))


def choose_files(folder: str, size: int, most: int) -> Chosen:
    """The first images of a folder of held-out images.

    Args:
        folder: The folder.
        size: Their side, in pixels.
        most: How many at the most.

    Returns:
        The reference set.

    Raises:
        ClipgenError: The folder does not exist, or while it is read: an image cannot be used.
    """
    source = Source(folder)
    return Chosen(_file_blocks(source, size, most), most, f"images of {source.url}")


def _file_blocks(source: Source, size: int, most: int) -> Iterator[Block]:
    items = itertools.islice((item for file in source.files() for item in source.items(file)), most)
    while some := list(itertools.islice(items, BLOCK)):
        ids = [hashlib.sha256(item.data).hexdigest() for item in some]
        yield Block(keys_of_ids(pa.array(ids)), [_usable(item, size) for item in some])


def _usable(item: Item, size: int) -> Image.Image:
    try:
        return fit_square(decode(item.data).image, size)
    except Rejected as error:
        raise ClipgenError(f"{item.uri} is no usable reference image ({error}): take it out") from error


class Reference:
    """A reference set in the judge's spaces, sharp and blurred.

    Args:
        judge: The judge.
        chosen: The images.

    Raises:
        ClipgenError: There are fewer than three images, or one cannot be used.
    """

    def __init__(self, judge: Judge, chosen: Chosen) -> None:
        self.judge, self.origin = judge, chosen.origin
        keys, features, soft = self._read(chosen)
        self.count, self.digest = len(keys), digest_of_keys([keys])
        self.spaces = [space for space in features if space != LOGITS]
        self.kid = {space: kid(scaled(space, features[space])) for space in self.spaces}
        self.frechet = {
            space: Frechet(features[space]) for space in self.spaces if self.enough(features[space].shape[1])
        }
        self.cmmd, self.manifold = cmmd(features[CLIP]), Manifold(features[CLIP])
        self.soft = {
            (space, radius): kid(scaled(space, own[space]))
            for radius, own in soft.items()
            for space in self.spaces
        }

    def notes(self, n: int) -> list[str]:
        """What the reference set is, and which figures are left out because there are too few images.

        Args:
            n: How many images are compared with it.

        Returns:
            Sentences for the report.
        """
        notes = [f"The reference set has {self.count:,} images: {self.origin} (digest {self.digest})."]
        for space, one in self.kid.items():
            dim = one.real.shape[1]
            if not self.enough(dim):
                notes.append(
                    f"Too few images for FID in {SPACES[space]} space: its features have {dim:,} dimensions, "
                    f"so the reference set needs {PER_DIMENSION * dim:,} images."
                )
        if not self.has_floor(n):
            notes.append(f"Too few images for the floor: the reference set needs {2 * n:,}.")
        return notes

    def enough(self, dim: int) -> bool:
        """Whether there are enough images for the covariance of features of width `dim`."""
        return self.count >= PER_DIMENSION * dim

    def has_floor(self, n: int) -> bool:
        """Whether there are two disjoint sets of `n` images."""
        return self.count >= 2 * n

    def distances(self, images: list[Image.Image], embeddings: np.ndarray | None = None) -> dict[str, float]:
        """Compare a set of images with the reference set.

        Args:
            images: RGB images of the reference set's size, at least three.
            embeddings: Their embeddings by the judge's CLIP, float32 [n, d]; computed by default.

        Returns:
            KID (sharp, and blurred by 1, 2, 4 and 8 pixels) with its standard error, FID where the reference
            set is large enough for it, CMMD, precision, recall, density and coverage in CLIP space; with
            Inception also KID and FID in its space, and the Inception score.
        """
        features = self.judge.features(images, embeddings)
        metrics: dict[str, float] = {}
        for space in self.spaces:
            metrics |= _named(f"kid{SUFFIX[space]}", self.kid[space].to(scaled(space, features[space])))
        metrics |= {f"fid{SUFFIX[space]}": one.to(features[space]) for space, one in self.frechet.items()}
        metrics |= {"cmmd": self.cmmd.to(features[CLIP]).value, **self.manifold.scores(features[CLIP])}
        if LOGITS in features:
            metrics["inception_score"] = inception_score(torch.from_numpy(features[LOGITS]))
        return metrics | self._of_blurred(images)

    def floor(self, n: int) -> dict[str, float]:
        """The distances of `n` other real images to the reference set.

        Args:
            n: How many images are compared with the reference set.

        Returns:
            KID, FID and CMMD with their standard errors; nothing if there are fewer than 2 n images.
        """
        if not self.has_floor(n):
            return {}
        distances: dict[str, Discrepancy | Frechet] = {
            **{f"kid{SUFFIX[space]}": one for space, one in self.kid.items()},
            **{f"fid{SUFFIX[space]}": one for space, one in self.frechet.items()},
            "cmmd": self.cmmd,
        }
        metrics: dict[str, float] = {}
        for name, distance in distances.items():
            metrics |= _named(name, floor(distance, n))
        return metrics

    def _of_blurred(self, images: list[Image.Image]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for radius in BLURS:
            features = self.judge.features(blurred(images, radius))
            for space in self.spaces:
                estimate = self.soft[space, radius].to(scaled(space, features[space]))
                metrics |= _named(f"kid{SUFFIX[space]}_{radius}", estimate)
        return metrics

    def _read(self, chosen: Chosen) -> tuple[np.ndarray, Features, dict[int, Features]]:
        """Keys and features by space of all images, and features of the first block blurred, by radius."""
        keys: list[np.ndarray] = []
        sharp: list[Features] = []
        soft: dict[int, Features] = {}
        with track("reference set", chosen.most, "images") as meter:
            for block in chosen.blocks:
                soft = soft or {r: self.judge.features(blurred(block.images, r)) for r in BLURS}
                sharp.append(self.judge.features(block.images))
                keys.append(block.keys)
                meter.advance(len(block.images))
        count = sum(map(len, keys))
        if count < FEWEST:
            raise ClipgenError(
                f"the reference set has {count} images ({chosen.origin}), at least {FEWEST} are needed: "
                "set evaluation.reference to a folder with more"
            )
        return np.concatenate(keys), _joined(sharp), soft


def _joined(parts: Sequence[Features]) -> Features:
    return {space: np.concatenate([part[space] for part in parts]) for space in parts[0]}


def scaled(space: str, features: np.ndarray) -> np.ndarray:
    """Features for KID. CLIP embeddings have length 1 and are scaled to a mean square of 1: the cubic kernel
    of shorter ones is all but linear, and would compare little more than the means.

    Args:
        space: A space of the judge.
        features: In this space, float [n, d].

    Returns:
        The features, float [n, d].
    """
    return features * features.shape[1] ** 0.5 if space == CLIP else features


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}/standard_error": estimate.standard_error}
