"""Train the VQGAN that turns pictures into codes.

In:  the images table, and a CLIP whose frozen image tower measures perceptual distance
Out: {root}/checkpoints/vqgan/{run}/step-N
Run: `vqgan_checkpoint` in Dagster.

Loss: |x - x'| + perceptual * d(x, x') + commitment + late * adaptive * hinge  (arXiv:2012.09841)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clipgen_core.data.images import ImageTable
from clipgen_core.data.order import ShuffledOrder
from clipgen_core.data.pictures import fit_square, grid, random_crop, to_images, to_tensor
from clipgen_core.losses import (
    ClipFeatureDistance,
    Lpips,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
)
from clipgen_core.models.clip import ClipEncoder, default_device
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.quantizer import usage_and_perplexity
from clipgen_core.models.vqgan import Vqgan, VqganConfig
from clipgen_core.schema import Frozen, digest_of
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoints
from clipgen_core.training.loop import Fitted, TrainConfig, Validation, fit
from clipgen_core.training.optim import adamw

SHOWN = 16
USAGE_PICTURES = 384  # enough codes (384 x 64 on the demo) to count usage without a long wait


class Config(Frozen):
    model: VqganConfig
    train: TrainConfig
    smallest_crop: float = Field(default=0.8, gt=0, le=1)
    perceptual: float = Field(default=1.0, ge=0)
    lpips_weights: str | None = None
    adversarial: float = Field(default=0.8, ge=0)
    adversarial_from: float = Field(default=0.6, ge=0, le=1)
    discriminator_width: int = 64
    discriminator_layers: int = 2


@dataclass(frozen=True, kw_only=True)
class Result:
    checkpoint: str
    digest: str
    fitted: Fitted


def run(config: Config, *, images: str, clip: str, out: Storage, tracker: Tracker) -> Result:
    """Train, or go on with the same training where it stopped."""
    table = ImageTable(images)
    provenance = {"config": config.model_dump(), "images_digest": table.digest, "clip": clip}
    tracker.params(provenance)
    tracker.tags({"upstream.images": table.digest, "upstream.clip": clip})
    digest = digest_of(provenance)
    checkpoints = Checkpoints(
        url=out.checkpoints("vqgan", digest), config=provenance, keep=config.train.keep_checkpoints
    )
    task = VqganTask(config, table, ClipEncoder(clip))
    fitted = fit(task, config.train, checkpoints=checkpoints, tracker=tracker, label="VQGAN")
    out.publish_current("vqgan", fitted.checkpoint, digest)
    return Result(checkpoint=fitted.checkpoint, digest=digest, fitted=fitted)


class VqganTask:
    """Generator and discriminator, the latter from a share of training on."""

    def __init__(self, config: Config, table: ImageTable, clip: ClipEncoder) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.table = config, table
        self.device = default_device()
        self.vqgan = Vqgan(config.model).to(self.device)
        self.model: nn.Module = self.vqgan
        width, layers = config.discriminator_width, config.discriminator_layers
        self.discriminator = PatchDiscriminator(width, layers).to(self.device)
        self.extras: dict[str, nn.Module] = {"discriminator": self.discriminator}
        train = config.train
        self.optimizers: dict[str, list[torch.optim.Optimizer]] = {
            "vqgan": [adamw([self.vqgan], train.learning_rate, train.betas, train.weight_decay)],
            "discriminator": [adamw([self.discriminator], train.learning_rate, (0.5, 0.9), 0.0)],
        }
        self.distance: nn.Module = ClipFeatureDistance(clip)
        if config.lpips_weights:
            self.distance = Lpips(config.lpips_weights).to(self.device)
        self.order = ShuffledOrder(len(table.train), train.seed)

    def batch(self, step: int) -> Tensor:
        rows = self.table.train[self.order.batch(step, self.config.train.batch_size)]
        size, smallest = self.config.model.image_size, self.config.smallest_crop
        crops = [
            random_crop(image, size, smallest, seed=step * 100_003 + i)
            for i, image in enumerate(self.table.pictures(rows))
        ]
        return to_tensor(crops).to(self.device, memory_format=torch.channels_last)

    def losses(self, batch: Tensor, progress: float) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        config = self.config
        made, codes, commitment = self.vqgan(batch)
        made = made.float()
        pixel, perceptual = F.l1_loss(made, batch), self.distance(made, batch)
        reconstruction = pixel + config.perceptual * perceptual
        loss = reconstruction + commitment
        figures = {"l1": pixel.detach(), "perceptual": perceptual.detach()}
        figures |= {"commitment": commitment.detach(), "codes_in_batch": codes.unique().numel()}
        fooling = config.adversarial > 0 and progress >= config.adversarial_from
        if fooling:
            self.discriminator.requires_grad_(False)
            hinge = hinge_generator(self.discriminator(made).float())
            weight = adaptive_weight(reconstruction, hinge, self.vqgan.decoder.last_layer)
            loss = loss + config.adversarial * weight * hinge
            figures |= {"hinge": hinge.detach(), "adaptive_weight": weight}
        yield "vqgan", loss, figures
        if fooling:
            self.discriminator.requires_grad_(True)
            real, fake = self.discriminator(batch), self.discriminator(made.detach())
            judged = hinge_discriminator(real.float(), fake.float())
            yield "discriminator", judged, {"discriminator": judged.detach()}

    def validate(self) -> Validation:
        """PSNR on held-out pictures; codebook usage and perplexity over them and USAGE_PICTURES more."""
        counts = torch.zeros(self.config.model.quantizer.codebook_size, dtype=torch.long)
        errors, shown = [], []
        for start in range(0, len(self.table.validation), 64):
            batch = self._centre(self.table.validation[start : start + 64])
            made, codes = self._reconstruct(batch)
            errors.append((made - batch).square().mean((1, 2, 3)))
            counts += codes.flatten().bincount(minlength=len(counts)).cpu()
            if not start:
                shown = [*to_images(batch[:SHOWN]), *to_images(made[:SHOWN])]
        for start in range(0, min(len(self.table.train), USAGE_PICTURES), 64):
            codes = self._reconstruct(self._centre(self.table.train[start : start + 64]))[1]
            counts += codes.flatten().bincount(minlength=len(counts)).cpu()
        psnr = 10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10)).mean()
        usage, perplexity = usage_and_perplexity(counts)
        metrics = {"psnr": psnr.item(), "codebook_usage": usage, "codebook_perplexity": perplexity}
        return Validation(metrics, {"reconstructions": grid(shown, max(len(shown) // 2, 1))})

    def _centre(self, rows: Any) -> Tensor:
        size = self.config.model.image_size
        squares = [fit_square(image, size) for image in self.table.pictures(rows)]
        return to_tensor(squares).to(self.device, memory_format=torch.channels_last)

    def _reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(batch.device.type, torch.bfloat16):
            made, codes, _ = self.vqgan(batch)
        return made.float(), codes
