"""Train the transformer that writes codes from a CLIP embedding.

In:  token shards (which name the VQGAN, the CLIP and the embeddings table they were made from), and
     texts like the prompts to come, one a line, whose statistics help across the text-image gap
Out: {root}/checkpoints/transformer/{run}/step-N
Run: `transformer_checkpoint` in Dagster, or `clipgen train transformer` under torchrun.

Loss: -mean log p(code | codes before it, embedding) - embedding_weight * log((1 + cos(e, e')) / 2),
the embedding e left out for a share of rows; e' is CLIP's embedding of the picture that the likeliest
codes show, with the gradient passed straight through the choice of code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from clipgen_core import storage
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.pixels import grid, to_images
from clipgen_core.data.prompts import read_texts
from clipgen_core.data.tokens import Rows, TokenShards
from clipgen_core.data.upkeep import tag
from clipgen_core.device import default_device
from clipgen_core.generation.load import load_vqgan
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.schema import TokenManifest, digest_of
from clipgen_core.settings.transformer import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoints
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.losses import code_cross_entropy, embedding_reconstruction
from clipgen_core.training.optim import optimizers
from clipgen_core.training.provenance import GOAL, Provenance
from clipgen_core.training.task import Optimizers, Validation

__all__ = ["Config", "Result", "run"]

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    checkpoint: str
    digest: str
    parameters: int
    fitted: Fitted


def run(
    config: Config, *, tokens: str, out: storage.Storage, tracker: Tracker, texts: str | None = None
) -> Result:
    """Train, or go on with the same training where it stopped."""
    shards = TokenShards(tokens, config.train.seed)
    lines = read_texts(texts) if texts else list(IMAGENET_CLASSNAMES)
    provenance = Provenance(config=config.model_dump(mode="json"), tokens=shards.manifest)
    tracker.params({"config": provenance.config})
    tracker.tags(upstream_tags(shards.manifest))
    digest = digest_of([config.model_dump(exclude={"sampling"}), shards.manifest.model_dump(), lines])
    checkpoints = Checkpoints(
        url=out.checkpoints("transformer", digest),
        provenance=provenance,
        keep=config.train.keep_checkpoints,
    )
    tag(shards.manifest.embeddings, shards.manifest.embeddings_version, f"transformer-{digest}")

    def task() -> TransformerTask:
        return TransformerTask(config, shards, lines)

    fitted = fit(task, config.train, checkpoints=checkpoints, tracker=tracker, label="transformer")
    out.publish_current("transformer", fitted.checkpoint, digest)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in new_transformer(config, shards.manifest).parameters())
    return Result(checkpoint=fitted.checkpoint, digest=digest, parameters=parameters, fitted=fitted)


def upstream_tags(manifest: TokenManifest) -> dict[str, str]:
    """What the token shards were made from, back to the pictures."""
    return {
        "upstream.images": manifest.images_digest,
        "upstream.vqgan": manifest.vqgan_digest,
        "upstream.clip": manifest.clip_key,
        "upstream.embeddings": f"{manifest.embeddings}@{manifest.embeddings_version}",
    }


@dataclass(frozen=True)
class Batch:
    """codes int64 [n, t]; read: the same, some corrupted, without the last [n, t - 1]; condition float32
    [n, 1 + neighbours, d]; dropped: rows to train without it, bool [n]; embedding, the clean one,
    float32 [n, d]."""

    codes: Tensor
    read: Tensor
    condition: Tensor
    dropped: Tensor
    embedding: Tensor


class TransformerTask:
    """Cross-entropy on codes, with condition dropping and corrupted input codes."""

    def __init__(self, config: Config, shards: TokenShards, texts: list[str]) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.shards = config, shards
        manifest = shards.manifest
        self.device = default_device()
        self.vqgan, self.clip = load_vqgan(manifest.vqgan), ClipEncoder(manifest.clip)
        self.transformer = new_transformer(config, manifest)
        self.transformer.gap.measure(shards.embeddings(), self.clip.encode_texts(texts))
        known = np.concatenate(list(shards.embeddings())) if config.model.neighbours else None
        self.nearest = nearest_rows(known, config.model.neighbours) if known is not None else None
        self.transformer.to(self.device).start_from_codebook(self.vqgan.quantizer.codebook)
        self.transformer.recompute = config.recompute
        self.held_out = shards.validation()
        self.held_out_condition = self._held_out_condition(self.held_out, known)
        self.model: nn.Module = self.transformer
        self.extras: dict[str, nn.Module] = {}

    def optimizers(self) -> Optimizers:
        model = self.transformer
        return {"transformer": optimizers(self.config.train, [model], model.matrices())}

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """The same rows, mistakes and noise whatever the number of shares."""
        config, size = self.config, self.config.train.batch_size
        numbers = self.shards.order.batch(step, size)
        rng = np.random.default_rng([config.train.seed, step])
        count = self.shards.manifest.grid**2 - 1
        wrong = rng.random((size, count)) < rng.random((size, 1)) * config.corrupt
        other = rng.integers(self.shards.manifest.codebook_size, size=(size, count))
        noise = rng.standard_normal((size, self.shards.manifest.embedding_dim), np.float32)
        dropped = rng.random(size) < config.drop_condition
        numbers, wrong, other, noise, dropped = map(share.take, (numbers, wrong, other, noise, dropped))
        rows = self.shards.take(numbers)
        codes = rows.codes.astype("int64")
        read = np.where(wrong, other, codes[:, :-1])
        embedding = torch.from_numpy(rows.embeddings).to(self.device)
        return Batch(
            torch.from_numpy(codes).to(self.device),
            torch.from_numpy(read).to(self.device),
            self._condition(embedding, numbers, torch.from_numpy(noise).to(self.device)),
            torch.from_numpy(dropped).to(self.device),
            embedding,
        )

    def _condition(self, embedding: Tensor, numbers: np.ndarray, noise: Tensor) -> Tensor:
        gap = self.transformer.gap
        own = gap.noisy(gap.image(embedding), noise).unsqueeze(1)
        if self.nearest is None:
            return own
        around = self.shards.take(self.nearest[numbers].ravel()).embeddings
        beside = gap.image(torch.from_numpy(around).to(self.device)).view(len(own), -1, own.shape[-1])
        return torch.cat([own, beside], dim=1)

    def losses(self, batch: Batch, progress: float) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        logits = self.transformer(batch.read, batch.condition, dropped=batch.dropped)
        loss, figures = code_cross_entropy(logits, batch.codes), {}
        if self.config.embedding_weight:
            distance = embedding_reconstruction(logits, batch.embedding, self.vqgan, self.clip)
            figures = {"code_loss": loss.detach(), "embedding_loss": distance.detach()}
            loss = loss + self.config.embedding_weight * distance
        yield "transformer", loss, figures

    def validate(self) -> Validation:
        codes = torch.from_numpy(self.held_out.codes.astype("int64")).to(self.device)
        condition = self.held_out_condition
        losses = [
            code_cross_entropy(self.transformer(c[:, :-1], e), c)
            for c, e in zip(codes.split(128), condition.split(128), strict=True)
        ]
        every = max(len(codes) // SHOWN, 1)
        shown = condition[::every][:SHOWN]
        sampled = sample_codes(self.transformer, shown, range(len(shown)), self.config.sampling)
        side = self.shards.manifest.grid
        made = self.vqgan.decode(torch.cat([codes[::every][:SHOWN], sampled]).view(-1, side, side))
        pictures = grid(to_images(made), columns=len(shown))
        return Validation({GOAL: torch.stack(losses).mean().item()}, {"samples": pictures})

    def _held_out_condition(self, rows: Rows, embeddings: np.ndarray | None) -> Tensor:
        """Clean embeddings; their neighbours are training pictures, by their embeddings."""
        gap, held = self.transformer.gap, torch.from_numpy(rows.embeddings)
        own = gap.image(held.to(self.device)).unsqueeze(1)
        if embeddings is None:
            return own
        known = torch.from_numpy(embeddings)
        around = (held @ known.T).topk(self.config.model.neighbours, dim=1).indices
        return torch.cat([own, gap.image(known[around].to(self.device))], dim=1)


def new_transformer(config: Config, manifest: TokenManifest) -> Transformer:
    """An untrained transformer for these token shards.

    Args:
        config: its shape, and how it is conditioned.
        manifest: of the shards; gives the grid, the codebook and the width of the embedding.
    """
    return Transformer(
        config.model, manifest.codebook_size, manifest.grid, manifest.embedding_dim, config.gap
    )


def nearest_rows(embeddings: np.ndarray, k: int, chunk: int = 4096) -> np.ndarray:
    """The k other rows with the highest cosine to each row [n, d]: int64 [n, k], exact, n * n * d work."""
    known = torch.from_numpy(embeddings)
    found = []
    for start in range(0, len(known), chunk):
        cosine = known[start : start + chunk] @ known.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        found.append(cosine.topk(k, dim=1).indices)
    return torch.cat(found).numpy()
