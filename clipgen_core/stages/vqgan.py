"""Train the VQGAN that turns images into codes.

In:  the images table, and a CLIP whose frozen image tower measures perceptual distance
Out: {root}/checkpoints/vqgan/{run}/step-N
Run: `vqgan_checkpoint` in Dagster.

Loss: |x - x'| + perceptual * d(x, x') + commitment + late * adaptive * hinge  (arXiv:2012.09841)
`start_from` fine-tunes a checkpoint, for example one that `clipgen import-vqgan` wrote. A training goes on
where it stopped: see training/runs.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipgen_core.data.images import ImageTable
from clipgen_core.data.order import WHOLE, Share, ShuffledOrder
from clipgen_core.data.pixels import fit_square, grid, random_crop, to_bytes, to_float, to_images
from clipgen_core.device import autocast, default_device
from clipgen_core.generation.load import vqgan_to_start_from
from clipgen_core.judging.metrics import Reconstruction
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.clip_files import absolute
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.settings.vqgan import Config
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.losses import (
    ClipFeatureDistance,
    Lpips,
    adaptive_weight,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    lecam,
)
from clipgen_core.training.optim import adamw
from clipgen_core.training.provenance import GOAL, Provenance
from clipgen_core.training.runs import Spec, place
from clipgen_core.training.task import Metrics, Optimizers, Validation

__all__ = ["Config", "Result", "run"]

SHOWN = 16
USAGE_IMAGES = 384  # enough codes (384 x 64 in the demo) to estimate usage in little time


@dataclass(frozen=True, kw_only=True)
class Result:
    """The checkpoint to use, the digest of what it was made from, how many of the images of the table it was
    trained on or validated by, the weights that it started from, and the training."""

    checkpoint: str
    digest: str
    images: int
    images_total: int
    started_from: str | None
    fitted: Fitted


def run(config: Config, *, images: str, clip: str, out: Storage, tracker: Tracker) -> Result:
    """Train a VQGAN, or go on with the same training where it stopped.

    Args:
        config: The model, the losses and the training.
        images: The images table.
        clip: The CLIP that measures perceptual distance, as ClipEncoder takes it.
        out: The root that gets the checkpoints.
        tracker: Gets parameters, metrics and images.

    Returns:
        The checkpoint and its training.

    Raises:
        ClipgenError: Too few images, no such CLIP, weights to start from that do not fit, or a loss that is
            not finite.
    """
    table, clip = ImageTable(images, config.where, "vqgan.where"), absolute(clip)
    provenance = Provenance(
        config=config.model_dump(mode="json"),
        images_digest=table.digest,
        image_count=len(table.keys),
        clip=clip,
    )
    tracker.params(provenance.record)
    tracker.metrics({"images": len(table.keys), "images_total": table.total}, step=0)
    tracker.tags({"upstream.images": table.digest, "upstream.clip": clip})
    tracker.table(images, table.table.version, table.digest)
    spec = Spec(
        stage="vqgan",
        label="VQGAN",
        config=config,
        provenance=provenance,
        out=out,
        name_of=lambda record: record.digest,
        source=lambda address: vqgan_to_start_from(address, config.model),
    )
    training = place(spec)

    def task() -> VqganTask:
        return VqganTask(config, table, ClipEncoder(clip), training.start, training.of_imported)

    fitted = fit(task, config.train, checkpoints=training.checkpoints, tracker=tracker, label="VQGAN")
    out.publish_current("vqgan", fitted.checkpoint, training.name)
    return Result(
        checkpoint=fitted.checkpoint,
        digest=training.name,
        images=len(table.keys),
        images_total=table.total,
        started_from=training.started_from,
        fitted=fitted,
    )


class VqganTask:
    """The VQGAN and, from a share of training on, its discriminator.

    Args:
        config: Of the stage.
        table: The images.
        clip: Measures perceptual distance.
        start: Weights to start from; random ones if None.
        keep_codes: Whether no code is ever replaced: the codes of imported weights were trained by
            gradients, on more images than are here.
    """

    def __init__(
        self,
        config: Config,
        table: ImageTable,
        clip: ClipEncoder,
        start: Checkpoint | None = None,
        keep_codes: bool = False,
    ) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.table = config, table
        self.device = default_device()
        self.vqgan = Vqgan(config.model).to(self.device)
        if start:
            distributed.load_module(self.vqgan, start.weights())
        if keep_codes:
            self.vqgan.quantizer.keep_all_codes()
        self.vqgan.set_recompute(config.recompute)
        self.model: nn.Module = self.vqgan
        width, layers = config.discriminator_width, config.discriminator_layers
        self.discriminator = PatchDiscriminator(width, layers).to(self.device)
        self.extras: dict[str, nn.Module] = {"discriminator": self.discriminator}
        self.clip = clip
        self.distance: nn.Module = ClipFeatureDistance(clip, config.perceptual_blocks)
        if config.lpips_weights:
            self.distance = Lpips(config.lpips_weights).to(self.device)
        self.order = ShuffledOrder([len(table.train)], config.train.seed)

    def optimizers(self) -> Optimizers:
        train = self.config.train
        return {
            "vqgan": [adamw([self.vqgan], train.learning_rate, train.betas, train.weight_decay)],
            "discriminator": [adamw([self.discriminator], train.learning_rate, (0.5, 0.9), 0.0)],
        }

    def batch(self, step: int, share: Share = WHOLE) -> Tensor:
        """Random crops.

        Args:
            step: Which batch; the crops depend on it alone.
            share: The part of the batch that this process computes.

        Returns:
            uint8 [n, 3, h, w].
        """
        count = self.config.train.batch_size
        rows = self.table.train[share.take(self.order.batch(step, count))]
        size, smallest, own = (
            self.config.model.image_size,
            self.config.smallest_crop,
            share.take(range(count)),
        )

        def crop(i: int, image: Image.Image) -> Image.Image:
            return random_crop(image, size, smallest, seed=step * 100_003 + own[i])

        return to_bytes(self.table.map(crop, rows))

    def losses(self, batch: Tensor, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The loss of the VQGAN, then that of the discriminator; see the module's docstring.

        Args:
            batch: uint8 [n, 3, h, w].
            progress: The share of training that is done.

        Yields:
            Name, loss and metrics.
        """
        config, batch = self.config, to_float(batch)
        output, _, commitment = self.vqgan(batch)
        output = output.float()
        pixel, perceptual = F.l1_loss(output, batch), self.distance(output, batch)
        reconstruction = pixel + config.perceptual * perceptual
        loss = reconstruction + commitment
        figures = {"l1": pixel.detach(), "perceptual": perceptual.detach()}
        figures |= {"commitment": commitment.detach()}
        adversarial = config.adversarial > 0 and progress >= config.adversarial_from
        if adversarial:
            self.discriminator.requires_grad_(False)
            hinge = hinge_generator(self.discriminator.forward(output).float())
            weight = adaptive_weight(reconstruction, hinge, self.vqgan.decoder.last_layer)
            loss = loss + config.adversarial * weight * hinge
            figures |= {"hinge": hinge.detach(), "adaptive_weight": weight}
        yield "vqgan", loss, figures
        if adversarial:
            self.discriminator.requires_grad_(True)
            loss = self._discriminator_loss(batch, output.detach())
            yield "discriminator", loss, {"discriminator": loss.detach()}

    def _discriminator_loss(self, batch: Tensor, output: Tensor) -> Tensor:
        config = self.config
        if config.gradient_penalty:
            batch = batch.detach().requires_grad_()
        real, fake = self.discriminator(torch.cat([batch, output])).float().chunk(2)
        loss = hinge_discriminator(real, fake)
        if config.lecam:
            self.discriminator.update_anchors(real, fake)
            loss = loss + config.lecam * lecam(real, fake, self.discriminator.anchors)
        if config.gradient_penalty:
            loss = loss + config.gradient_penalty * gradient_penalty(real, batch)
        return loss

    def after_step(self, step: int) -> Metrics:
        """Update the codebook by the whole batch of the step, however it was split.

        Args:
            step: The step, which seeds the random draws.

        Returns:
            How many codes the batch uses, and the share of the codebook that was replaced.
        """
        quantizer = self.vqgan.quantizer
        features, codes = map(distributed.whole_batch, zip(*quantizer.passes, strict=True))
        return {**quantizer.learn(features, codes, seed=self.config.train.seed * 1_000_003 + step)}

    def validate(self) -> Validation:
        """Reconstruct held-out images and USAGE_IMAGES training images; the loss is that of the former."""
        table, held, config = self.table, len(self.table.validation), self.config
        measured = Reconstruction(config.model.quantizer.codebook_size)
        pixel = perceptual = 0.0
        rows = np.concatenate([table.validation, table.train[:USAGE_IMAGES]])
        at_once = max(config.train.rows_at_once(64), SHOWN)
        for start in range(0, len(rows), at_once):
            batch = self._centre(rows[start : start + at_once])
            output, codes = self._reconstruct(batch)
            if not start:
                shown = [*to_images(batch[:SHOWN]), *to_images(output[:SHOWN])]
            measured.add(batch, output, codes, self.clip.embed(batch), self.clip.embed(output))
            if start < held:
                real, fake = batch[: held - start], output[: held - start]
                pixel += len(real) / held * float(F.l1_loss(fake, real))
                perceptual += len(real) / held * float(self.distance(fake, real))
        distance = "lpips" if config.lpips_weights else "perceptual_distance"
        metrics = {GOAL: pixel + config.perceptual * perceptual, distance: perceptual, **measured.metrics()}
        return Validation(metrics, {"reconstructions": grid(shown, max(len(shown) // 2, 1))})

    def _centre(self, rows: Any) -> Tensor:
        size = self.config.model.image_size
        squares = self.table.map(lambda _, image: fit_square(image, size), rows)
        return to_float(to_bytes(squares).to(self.device))

    def _reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(batch.device, self.config.train.precision):
            output, codes, _ = self.vqgan(batch)
        return output.float(), codes
