"""Train the transformer that writes codes from a CLIP embedding.

In:  token shards (which name the VQGAN, the CLIP and the embeddings table they were made from), and
     texts like the expected prompts, one a line, whose statistics help to close the text-image gap
Out: {root}/checkpoints/transformer/{run}/step-N
Run: `transformer_checkpoint` in Dagster, or `clipgen train-stage transformer` under torchrun.

Loss: -mean log p(code | codes known before it, embedding) - embedding_weight * log((1 + cos(e, e')) / 2).
For a share of rows the embedding e is left out. e' is CLIP's embedding of the image that the likeliest
codes decode to; the gradient is passed straight through the choice of code.
`start_from` starts from the weights of an earlier transformer. A training goes on where it stopped: see
training/runs.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from clipgen_core import storage
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.pixels import grid, to_images
from clipgen_core.data.prompts import read_texts
from clipgen_core.data.tables import find_table
from clipgen_core.data.tokens import TokenShards
from clipgen_core.data.upkeep import tag
from clipgen_core.device import default_device
from clipgen_core.generation.load import load_vqgan, transformer_to_start_from
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.generation.steps import generation_loss
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.schema import TokenManifest, digest_of
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.transformer import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training import distributed
from clipgen_core.training.batches import Batch, CodeBatches, condition_of
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.losses import code_cross_entropy, embedding_reconstruction
from clipgen_core.training.optim import optimizers
from clipgen_core.training.orders import predicted_share
from clipgen_core.training.provenance import GOAL, Provenance
from clipgen_core.training.runs import Spec, place
from clipgen_core.training.task import Metrics, Optimizers, Validation, validation_autocast

__all__ = ["Config", "Result", "run"]

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """The checkpoint to use, the digest of what it was made from, where it started from, and the training."""

    checkpoint: str
    digest: str
    started_from: str | None
    parameters: int
    fitted: Fitted


def run(
    config: Config, *, tokens: str, out: storage.Storage, tracker: Tracker, texts: str | None = None
) -> Result:
    """Train a transformer, or go on with the same training where it stopped.

    Args:
        config: The model, its condition and the training.
        tokens: The folder of the token shards.
        out: The root that gets the checkpoints.
        tracker: Gets parameters, tags, metrics and images.
        texts: A file with texts like the expected prompts, one a line; ImageNet's class names if None.

    Returns:
        The checkpoint and its training.

    Raises:
        ClipgenError: Damaged shards, a missing VQGAN or CLIP, a start that does not fit, or no finite loss.
    """
    shards = TokenShards(tokens, config.train.seed)
    lines = read_texts(texts) if texts else list(IMAGENET_CLASSNAMES)
    manifest = shards.manifest
    storage.require_root(tokens, manifest.vqgan)
    provenance = Provenance(config=config.model_dump(mode="json"), tokens=manifest, texts=digest_of(lines))
    tracker.params({"config": provenance.config})
    tracker.tags(upstream_tags(manifest))
    if manifest.images:  # which shards of an earlier version do not name
        tracker.table(manifest.images, manifest.images_version, manifest.images_digest)
    tracker.table(manifest.embeddings, manifest.embeddings_version)
    spec = Spec(
        stage="transformer",
        label="transformer",
        config=config,
        provenance=provenance,
        out=out,
        name_of=lambda record: _name_of(record, lines),
        source=lambda address: transformer_to_start_from(address, config.model, manifest),
    )
    training = place(spec)
    trained_on = storage.located(training.checkpoints.provenance.tokens, out.root)
    if isinstance(trained_on, TokenManifest):  # maybe of an earlier version of the table than the shards
        table, version = trained_on.embeddings, trained_on.embeddings_version
        if find_table(table, version) is not None:  # else `clipgen forget --purge` let go of it
            tag(table, version, f"transformer-{training.name}")

    def task() -> TransformerTask:
        return TransformerTask(config, shards, lines, training.start)

    fitted = fit(task, config.train, checkpoints=training.checkpoints, tracker=tracker, label="transformer")
    if distributed.rank() == 0:
        _store_sampling(Checkpoint(fitted.checkpoint), config.sampling)
    out.publish_current("transformer", fitted.checkpoint, training.name)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in new_transformer(config, manifest).parameters())
    return Result(
        checkpoint=fitted.checkpoint,
        digest=training.name,
        started_from=training.started_from,
        parameters=parameters,
        fitted=fitted,
    )


def _name_of(record: Provenance, lines: list[str]) -> str:
    """The folder's name for a training with this record, on these texts."""
    config = {name: value for name, value in record.config.items() if name != "sampling"}
    return digest_of([config, record.tokens.model_dump() if record.tokens else None, lines])


def _store_sampling(checkpoint: Checkpoint, sampling: SamplingConfig) -> None:
    """Give the model these defaults of generation, if its training began with others."""
    record = checkpoint.provenance
    if checkpoint.settings("sampling", SamplingConfig) != sampling:
        config = record.config | {"sampling": sampling.model_dump(mode="json")}
        checkpoint.rewrite(record.model_copy(update={"config": config}))


def upstream_tags(manifest: TokenManifest) -> dict[str, str]:
    """What the token shards were made from, back to the images."""
    return {
        "upstream.images": manifest.images_digest,
        "upstream.vqgan": manifest.vqgan_digest,
        "upstream.clip": manifest.clip_key,
        "upstream.embeddings": f"{manifest.embeddings}@{manifest.embeddings_version}",
    }


class TransformerTask:
    """Cross-entropy on codes, with dropped conditions and corrupted input codes.

    Args:
        config: Of the stage.
        shards: Codes and embeddings.
        texts: Like the expected prompts.
        start: Weights to start from; random ones if None.
    """

    def __init__(
        self, config: Config, shards: TokenShards, texts: list[str], start: Checkpoint | None = None
    ) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.shards = config, shards
        manifest = shards.manifest
        self.device = default_device()
        self.vqgan, self.clip = load_vqgan(manifest.vqgan), ClipEncoder(manifest.clip)
        self.transformer = new_transformer(config, manifest)
        if start:
            distributed.load_module(self.transformer, start.weights())
        self.transformer.gap.measure(shards.embeddings(), self.clip.encode_texts(texts))
        self.transformer.to(self.device)
        if start is None:
            self.transformer.start_from_codebook(self.vqgan.quantizer.codebook)
        self.transformer.recompute = config.recompute
        self.batches = CodeBatches(config, shards, self.transformer.gap)
        self.held_out, self.held_out_condition = self.batches.held_out(self.device)
        self.model: nn.Module = self.transformer
        self.extras: dict[str, nn.Module] = {}

    def optimizers(self) -> Optimizers:
        model = self.transformer
        return {"transformer": optimizers(self.config.train, [model], model.matrices())}

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """The rows of a step; see `CodeBatches`.

        Args:
            step: Which batch.
            share: The part of the batch that this process computes.

        Returns:
            The rows.
        """
        return self.batches.batch(step, share)

    def losses(self, batch: Batch, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The loss of the transformer; see the module's docstring.

        Args:
            batch: Rows of a step.
            progress: The share of training that is done.

        Yields:
            Name, loss and metrics.
        """
        layout, condition = batch.layout, condition_of(batch, self.transformer.gap)
        predicted = predicted_share(self.config.model.order) if layout else None
        logits = self.transformer(batch.inputs, condition, dropped=batch.dropped, layout=layout)
        loss = code_cross_entropy(logits, layout.wanted(batch.codes) if layout else batch.codes, predicted)
        figures: Metrics = {}
        if self.config.embedding_weight:
            logits = layout.by_position(logits, batch.codes) if layout else logits
            distance = embedding_reconstruction(logits, batch.embedding, self.vqgan, self.clip)
            figures = {"code_loss": loss.detach(), "embedding_loss": distance.detach()}
            loss = loss + self.config.embedding_weight * distance
        del logits  # else they are kept until the last backward pass of the step
        yield "transformer", loss, figures

    def after_step(self, step: int) -> Metrics:
        return {}  # nothing learns outside of the optimizers

    def validate(self) -> Validation:
        codes, condition = self.held_out, self.held_out_condition
        every = max(len(codes) // SHOWN, 1)
        shown = condition[::every][:SHOWN]
        rows, steps = self.config.train.rows_at_once(128), self.config.sampling.steps
        with validation_autocast(self.device, self.config.train):
            loss = sum(
                len(c) / len(codes) * generation_loss(self.transformer, c, e, steps)
                for c, e in zip(codes.split(rows), condition.split(rows), strict=True)
            )
            sampled = sample_codes(self.transformer, shown, range(len(shown)), self.config.sampling)
        side = self.shards.manifest.grid
        decoded = self.vqgan.decode(torch.cat([codes[::every][:SHOWN], sampled]).view(-1, side, side))
        samples = grid(to_images(decoded), columns=len(shown))
        return Validation({GOAL: float(loss)}, {"samples": samples})


def new_transformer(config: Config, manifest: TokenManifest) -> Transformer:
    """An untrained transformer for these token shards.

    Args:
        config: Its shape, and how it is conditioned.
        manifest: Of the shards; gives the grid, the codebook and the width of the embedding.

    Returns:
        The transformer, on the default device of torch.
    """
    return Transformer(
        config.model, manifest.codebook_size, manifest.grid, manifest.embedding_dim, config.gap
    )
