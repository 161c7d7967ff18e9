"""Train a small CLIP where no public one fits the images, or none is available.

In:  a CSV with the columns file and caption; files are relative to it, and an image may have several rows
Out: {root}/checkpoints/clip/{run}/step-N and {root}/clips/{run}: a folder in open_clip's local-dir format
Run: `clip_checkpoint` in Dagster. No stage after this one reads a caption.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, gather_features
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from clipgen_core import filesystem, logs, storage
from clipgen_core.data.captioned import CaptionedImages
from clipgen_core.data.captions import read_captions, require_captioned
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.pixels import random_crop, to_bytes, to_float
from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.sources import in_lists
from clipgen_core.data.transfer import moved
from clipgen_core.device import default_device
from clipgen_core.generation.load import clip_to_start_from
from clipgen_core.models.clip import LOCAL, ClipEncoder
from clipgen_core.schema import digest_of
from clipgen_core.settings.clip import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.contrast import (
    distinct_batches,
    held_out_rows,
    require_variety,
    same_rows,
    soft_targets,
    word_vectors,
)
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.optim import optimizers
from clipgen_core.training.provenance import GOAL, Provenance
from clipgen_core.training.runs import Spec, place
from clipgen_core.training.task import Metrics, Optimizers, Validation, validation_autocast

__all__ = ["Config", "Result", "run"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's
READ_AT_ONCE = 256  # images
Batch = tuple[Tensor, Tensor, Tensor]  # images as uint8, tokens, word vectors of the captions


@dataclass(frozen=True, kw_only=True)
class Result:
    """The CLIP, by the reference that other stages take (local-dir:FOLDER), the weights that it started from,
    and its training."""

    clip: str
    clip_key: str
    images: int
    captions: int
    started_from: str | None
    fitted: Fitted


def run(config: Config, *, captions: str, out: storage.Storage, tracker: Tracker) -> Result:
    """Train on captioned images and save in open_clip's local-dir format.

    Args:
        config: The dual encoder and its training.
        captions: A CSV with the columns file and caption, or an images table that has captions.
        out: The root that gets the checkpoints and the CLIP.
        tracker: Gets parameters and metrics.

    Returns:
        The CLIP and its training.

    Raises:
        ClipgenError: The CSV or an image that it names cannot be used, weights to start from do not fit, or a
            loss is not finite.
    """
    pairs = read_captions(captions)
    provenance = Provenance(
        config=config.model_dump(mode="json"),
        captions=digest_of(sorted(pairs.items())),
        image_count=len(pairs),
    )
    tracker.params(provenance.record)
    spec = Spec(
        stage="clip",
        label="CLIP",
        config=config,
        provenance=provenance,
        out=out,
        name_of=lambda record: digest_of([record.config, sorted(pairs.items())]),
        source=lambda address: clip_to_start_from(address, config),
    )
    training = place(spec)

    def task() -> ClipTask:
        return ClipTask(config, captions, pairs, training.start)

    fitted = fit(task, config.train, checkpoints=training.checkpoints, tracker=tracker, label="CLIP")
    folder = out.path("clips", training.name)
    if distributed.rank() == 0:
        model = open_clip.CLIP(**config.open_clip_config())
        distributed.load_module(model, Checkpoint(fitted.checkpoint).weights())
        save_local_dir(model, config, folder)
    distributed.wait_for_all()
    reference = f"{LOCAL}{folder}"
    encoder = ClipEncoder(reference)
    out.publish_current("clip", reference, encoder.key)
    return Result(
        clip=reference,
        clip_key=encoder.key,
        images=len(pairs),
        captions=sum(map(len, pairs.values())),
        started_from=training.started_from,
        fitted=fitted,
    )


class ClipTask:
    """Contrastive training with open_clip's model classes and logits.

    Args:
        config: Of the stage.
        captions: The CSV, which the files are relative to, or the images table.
        pairs: Captions of each file.
        start: Weights to start from; random ones if None.

    Raises:
        ClipgenError: All captions are the same, or an image cannot be used.
    """

    def __init__(
        self,
        config: Config,
        captions: str,
        pairs: Mapping[str, list[str]],
        start: Checkpoint | None = None,
    ) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.readers = config, ThreadPoolExecutor(pool_size())
        self.files, self.captions = list(pairs), list(pairs.values())
        self.images = CaptionedImages(captions, self.files, 4 * config.image_size, self.readers)
        require_captioned(captions, self.files)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length)
        variety = require_variety(captions, self.captions, self.tokenizer, config.train.batch_size)
        if variety <= config.train.batch_size and 2 * variety < len(self.files) and distributed.rank() == 0:
            logs.line(
                f"warning: {len(self.files)} images have only {variety} different captions, and the CLIP "
                "will tell only these apart"
            )
        self.words = word_vectors(self.captions)
        self.device = default_device()
        self.model: nn.Module = open_clip.CLIP(
            **config.open_clip_config(config.patch_dropout),
            nonscalar_logit_scale=distributed.sharded(config.train.parallel),
        )
        if start:
            distributed.load_module(self.model, start.weights())
        self.model.to(self.device)
        self.mean_std = [torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD)]
        self.contrast = ClipLoss(rank=distributed.rank(), world_size=distributed.world_size())
        self.extras: dict[str, nn.Module] = {}
        held = held_out_rows(self.files)
        self.rows = sorted(set(range(len(self.files))) - set(held))
        self.epoch = functools.lru_cache(2)(self._epoch)
        self.per_epoch = len(self.epoch(0))
        first = [(i, self.captions[i][0]) for i in held or self.rows]
        self.held_out = moved(self._load(first, 0), self.device)

    def optimizers(self) -> Optimizers:
        clip: Any = self.model
        matrices = [clip.visual.transformer, clip.transformer]
        return {"clip": optimizers(self.config.train, [clip], matrices)}

    def _epoch(self, epoch: int) -> list[list[tuple[int, str]]]:
        train, captions = self.config.train, [self.captions[i] for i in self.rows]
        batches = distinct_batches(captions, train.batch_size, train.seed, epoch)
        return [[(self.rows[i], caption) for i, caption in batch] for batch in batches]

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Random crops, tokens and word vectors.

        Args:
            step: Which batch; everything in it depends on it alone.
            share: The part of the batch that this process computes. All shares have the same size: where
                the batch does not divide, its first images are used twice.

        Returns:
            Images as uint8, tokens and word vectors.
        """
        batches = self.epoch(step // self.per_epoch)
        rows = batches[step % self.per_epoch % len(batches)]
        return self._load(share.take(list(islice(cycle(rows), -(-len(rows) // share.of) * share.of))), step)

    def _load(self, batch: list[tuple[int, str]], step: int) -> Batch:
        size, smallest, crops = self.config.image_size, self.config.smallest_crop, list[Image.Image]()

        def crop(i: int, image: Image.Image) -> Image.Image:
            return random_crop(image, size, smallest, step * 100_003 + i)

        for some in in_lists([i for i, _ in batch], READ_AT_ONCE):
            crops += self.readers.map(crop, some, self.images.take(some))
        words = torch.from_numpy(self.words[[i for i, _ in batch]].toarray())
        return to_bytes(crops), self.tokenizer([caption for _, caption in batch]), words

    def losses(self, batch: Batch, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The contrastive loss with soft targets.

        Args:
            batch: Images, tokens and word vectors.
            progress: The share of training that is done.

        Yields:
            Name, loss and metrics.
        """
        images, tokens, words = batch
        image, text, scale = self._embed(images, tokens)
        by_image, by_text = self.contrast.get_logits(
            image.float(), text.float(), scale.float().clamp(max=100)
        )
        if self.contrast.world_size > 1:
            words, tokens = gather_features(
                words, tokens, rank=self.contrast.rank, world_size=self.contrast.world_size
            )
        targets = soft_targets(words, self.config.soften, same_rows(tokens))
        loss = (F.cross_entropy(by_image, targets) + F.cross_entropy(by_text, targets)) / 2
        yield "clip", loss, {"logit_scale": scale.detach()}

    def _embed(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [n, d] of images and of texts, and the scale of their products, without dimensions."""
        mean, std = self.mean_std
        image, text, scale, *_ = self.model(((to_float(images) + 1) / 2 - mean) / std, tokens)
        return image, text, scale.squeeze()

    def after_step(self, step: int) -> Metrics:
        return {}

    def validate(self) -> Validation:
        images, tokens, words = self.held_out
        with validation_autocast(self.device, self.config.train):
            image, text, scale = self._embed(images, tokens)
        alike = same_rows(tokens)
        rank = (text @ image.T).argsort(dim=1, descending=True)
        hit = alike.gather(1, rank)
        recall = {f"recall_at_{k}": hit[:, :k].any(1).float().mean().item() for k in (1, 5)}
        logits, targets = scale.float() * image.float() @ text.float().T, soft_targets(words, 0, alike)
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        return Validation({GOAL: loss.item(), **recall})


def save_local_dir(model: nn.Module, config: Config, url: str) -> None:
    """Write a model in open_clip's local-dir format.

    Args:
        model: Of open_clip's class.
        config: Its shape.
        url: The folder to write.

    Raises:
        ClipgenError: The disk is full.
    """
    visual: Any = model.visual
    visual.image_mean, visual.image_std = MEAN, STD
    full = (
        f"the disk is full, so the CLIP was not saved to {url}: make room and run again, its training is done"
    )
    with filesystem.room_needed(full), tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "clip"
        draft.mkdir()
        save_config_for_hf(model, draft / "open_clip_config.json", config.open_clip_config())
        weights = {k: v.contiguous().cpu() for k, v in model.state_dict().items()}
        save_file(weights, draft / "open_clip_model.safetensors")
        filesystem.publish_folder(draft, url, marker="open_clip_config.json")
