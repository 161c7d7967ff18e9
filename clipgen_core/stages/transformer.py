"""Train the transformer that writes codes from a CLIP embedding.

In:  token shards (which name the VQGAN, the CLIP and the embeddings table they were made from)
Out: {root}/checkpoints/transformer/{run}/step-N
Run: `transformer_checkpoint` in Dagster.

Loss: -mean log p(code | codes before it, embedding), the embedding left out for a share of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from clipgen_core.data.pictures import grid, to_images
from clipgen_core.data.tokens import Rows, TokenShards
from clipgen_core.load import load_vqgan
from clipgen_core.losses import code_cross_entropy
from clipgen_core.models.clip import default_device
from clipgen_core.models.transformer import Transformer, TransformerConfig
from clipgen_core.sampling import SamplingConfig, sample_codes
from clipgen_core.schema import Frozen, TokenManifest, digest_of
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoints
from clipgen_core.training.loop import Fitted, TrainConfig, Validation, fit

SHOWN = 8


class Config(Frozen):
    """corrupt: up to this share of a row's input codes is replaced by random ones in training, so that
    the model learns to go on from its own mistakes; drop_condition: share of rows trained without."""

    model: TransformerConfig
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()
    drop_condition: float = Field(default=0.1, ge=0, lt=1)
    corrupt: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class Result:
    checkpoint: str
    digest: str
    parameters: int
    fitted: Fitted


def run(config: Config, *, tokens: str, out: Storage, tracker: Tracker) -> Result:
    """Train, or go on with the same training where it stopped."""
    shards = TokenShards(tokens, config.train.seed)
    provenance = {"config": config.model_dump(), "tokens": shards.manifest.model_dump()}
    tracker.params({"config": config.model_dump()})
    tracker.tags(upstream_tags(shards.manifest))
    digest = digest_of([config.model_dump(exclude={"sampling"}), shards.manifest.model_dump()])
    checkpoints = Checkpoints(
        url=out.checkpoints("transformer", digest),
        config=provenance,
        keep=config.train.keep_checkpoints,
    )
    task = TransformerTask(config, shards)
    label = "transformer"
    fitted = fit(task, config.train, checkpoints=checkpoints, tracker=tracker, label=label)
    out.publish_current("transformer", fitted.checkpoint, digest)
    parameters = sum(p.numel() for p in task.transformer.parameters())
    return Result(checkpoint=fitted.checkpoint, digest=digest, parameters=parameters, fitted=fitted)


def upstream_tags(manifest: TokenManifest) -> dict[str, str]:
    """What the token shards were made from, back to the pictures."""
    return {
        "upstream.images": manifest.images_digest,
        "upstream.vqgan": manifest.vqgan_digest,
        "upstream.clip": manifest.clip_key,
        "upstream.embeddings": f"{manifest.embeddings}@{manifest.embeddings_version}",
    }


class TransformerTask:
    """Cross-entropy on codes, with condition dropping and corrupted input codes."""

    def __init__(self, config: Config, shards: TokenShards) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.shards = config, shards
        manifest = shards.manifest
        self.device = default_device()
        self.vqgan = load_vqgan(manifest.vqgan)
        self.transformer = Transformer(
            config.model, manifest.codebook_size, manifest.grid**2, manifest.embedding_dim
        ).to(self.device)
        self.transformer.start_from_codebook(self.vqgan.quantizer.codebook)
        self.model: nn.Module = self.transformer
        self.extras: dict[str, nn.Module] = {}
        self.optimizers: dict[str, list[torch.optim.Optimizer]] = {
            "transformer": config.train.optimizers([self.transformer], matrices=[self.transformer.blocks])
        }

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self._to_device(self.shards.batch(step, self.config.train.batch_size))

    def _to_device(self, rows: Rows) -> tuple[Tensor, Tensor]:
        codes = torch.from_numpy(rows.codes.astype("int64")).to(self.device)
        return codes, torch.from_numpy(rows.embeddings.copy()).to(self.device)

    def losses(
        self, batch: tuple[Tensor, Tensor], progress: float
    ) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        codes, embedding = batch
        rows = len(codes)
        dropped = torch.rand(rows, 1, device=self.device) < self.config.drop_condition
        embedding = torch.where(dropped, self.transformer.unconditional(rows), embedding)
        logits = self.transformer(self._corrupted(codes[:, :-1]), embedding)
        loss = code_cross_entropy(logits, codes)
        yield "transformer", loss, {}

    def _corrupted(self, codes: Tensor) -> Tensor:
        share = torch.rand(len(codes), 1, device=self.device) * self.config.corrupt
        wrong = torch.rand(codes.shape, device=self.device) < share
        random = torch.randint_like(codes, self.shards.manifest.codebook_size)
        return torch.where(wrong, random, codes)

    def validate(self) -> Validation:
        codes, embedding = self._to_device(self.shards.validation)
        losses = [
            code_cross_entropy(self.transformer(c[:, :-1], e), c)
            for c, e in zip(codes.split(128), embedding.split(128), strict=True)
        ]
        shown = embedding[:: max(len(embedding) // SHOWN, 1)][:SHOWN]
        sampling = self.config.sampling
        sampled = sample_codes(self.transformer, shown, range(len(shown)), sampling)
        originals = codes[:: max(len(codes) // SHOWN, 1)][:SHOWN]
        side = self.shards.manifest.grid
        made = self.vqgan.decode(torch.cat([originals, sampled]).view(-1, side, side))
        pictures = grid(to_images(made), columns=len(shown))
        return Validation({"validation_loss": torch.stack(losses).mean().item()}, {"samples": pictures})
