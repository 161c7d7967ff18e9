"""The memory that a training needs, counted by one of its steps on fake tensors, in seconds.

The step is that of training/task.py, with the losses of the stage. What is not counted: what a library
allocates inside one operation, and what the allocator loses by fragments.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from clipgen_core.device import resolved
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.layout import Layout
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.plan.tally import Tally, fake, fake_tensors
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import Precision, TrainConfig
from clipgen_core.stages.transformer import TransformerTask
from clipgen_core.stages.vqgan import VqganTask
from clipgen_core.training.batches import Batch
from clipgen_core.training.losses import ClipFeatureDistance, Lpips
from clipgen_core.training.optim import ExponentialAverage
from clipgen_core.training.orders import draw_order
from clipgen_core.training.task import Metrics, Optimizers, train_step

CONTEXT = 1.0e9  # of CUDA and its libraries, with their workspaces
COUNTED = 2  # backward passes of a step; further ones are like the second
STEPS_AHEAD = 6  # of which batches are loaded: see data/prefetch.py


@dataclass(frozen=True)
class Need:
    """The memory of a training, in bytes.

    Attributes:
        weights: Of the trained models, with their buffers.
        gradients: Of the weights.
        optimizer: Moments.
        average: The moving average of the weights.
        frozen: Weights of models that are used and not trained.
        batches: Batches that are loaded, and what further backward passes of a step keep of theirs.
        activations: What one backward pass needs besides.
        context: What the GPU's libraries take.
        images: Images in one backward pass.
        parameters: Number of trained parameters, without those of a discriminator.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    frozen: float
    batches: float
    activations: float
    context: float
    images: int
    parameters: int

    @property
    def fixed(self) -> float:
        """All but activations and batches."""
        return self.weights + self.gradients + self.optimizer + self.average + self.frozen + self.context

    @property
    def total(self) -> float:
        return self.fixed + self.batches + self.activations

    @property
    def per_image(self) -> float:
        """Activations of an image."""
        return self.activations / self.images


def need_of(stage: str, recipe: Recipe, clip: ClipEncoder, gpu: bool) -> Need:
    """Count the memory of a training.

    Args:
        stage: `vqgan` or `transformer`.
        recipe: The settings of all stages.
        clip: The CLIP.
        gpu: Whether it trains on a GPU.

    Returns:
        The memory of one process.
    """
    train: TrainConfig = getattr(recipe, stage).train
    train = train.model_copy(update={"precision": _precision(train.precision, gpu)})
    task: _Vqgan | _Transformer = (_Vqgan if stage == "vqgan" else _Transformer)(recipe, clip)
    with fake_tensors(gpu) as tally:
        need = _count(fake(task, task.modules()), train, tally)
    return replace(need, context=CONTEXT if gpu else 0.0)


def _precision(precision: Precision, gpu: bool) -> Precision:
    if gpu and not torch.cuda.is_available():
        return "bf16" if precision == "auto" else precision
    return resolved(precision, "cuda" if gpu else "cpu")


def _count(task: "_Vqgan | _Transformer", train: TrainConfig, tally: Tally) -> Need:
    task.live = lambda: tally.live
    every = train.passes()
    rows, passes = train.batch_size // every, min(every, COUNTED)
    optimizers: Optimizers = task.optimizers()
    trained = [task.model, *task.extras.values()]
    frozen = tally.live - sum(map(_bytes, trained))
    average = ExponentialAverage(task.model, train.ema_decay).state if train.ema_decay else {}
    moments = _moments(optimizers)
    gradients = sum(_size(p) for module in trained for p in module.parameters())
    loaded = tally.live
    batches = [task.few(rows) for _ in range(passes)]
    loaded = tally.live - loaded
    task.model.train()
    tally.restart()
    before = tally.live
    train_step(task, optimizers, batches, train.steps - 1, train)
    kept = (task.live_after - before - sum(_size(p) for p in task.model.parameters())) / passes
    return Need(
        weights=sum(map(_bytes, trained)),
        gradients=gradients,
        optimizer=moments,
        average=sum(map(_size, average.values())),
        frozen=frozen,
        batches=loaded / passes * every * STEPS_AHEAD + kept * (every - passes),
        activations=tally.peak - before - gradients,
        context=0.0,
        images=rows,
        parameters=sum(p.numel() for p in task.model.parameters()),
    )


def _moments(optimizers: Optimizers) -> int:
    """Make the state of the optimizers, as a first step does, and measure it."""
    every = [optimizer for several in optimizers.values() for optimizer in several]
    for optimizer in every:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.empty_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    states = [state for optimizer in every for state in optimizer.state.values()]
    return sum(_size(value) for state in states for value in state.values() if isinstance(value, Tensor))


def _bytes(module: nn.Module) -> int:
    return sum(map(_size, [*module.parameters(), *module.buffers()]))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _nothing() -> int:
    return 0


def _without_weights(clip: ClipEncoder) -> ClipEncoder:
    """A copy that shares the model and computes on a CPU, without what reads images and texts."""
    clip.blocks, clip.dim  # noqa: B018 (cached in the copy: fake tensors tell neither)
    shared = copy.copy(clip)
    shared.device, shared.preprocess, shared.tokenizer = torch.device("cpu"), None, None
    shared.__dict__.pop("mean_std", None)  # real tensors, which are made anew
    return shared


def _vqgan(recipe: Recipe) -> Vqgan:
    with torch.device("meta"):
        return Vqgan(recipe.vqgan.model)


class _Vqgan(VqganTask):
    """A training of the VQGAN without images, whose discriminator has joined.

    Attributes:
        live: Gives the bytes at present.
        live_after: The bytes after the backward passes of the first loss; 0 before.
    """

    def __init__(self, recipe: Recipe, clip: ClipEncoder) -> None:
        self.config = config = recipe.vqgan
        self.live, self.live_after = _nothing, 0
        self.model = self.vqgan = _vqgan(recipe)
        self.vqgan.set_recompute(config.recompute)
        with torch.device("meta"):
            self.discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
        self.extras = {"discriminator": self.discriminator}
        self.clip = _without_weights(clip)
        self.distance = ClipFeatureDistance(self.clip, config.perceptual_blocks)
        if config.lpips_weights:
            self.distance = Lpips(config.lpips_weights)

    def modules(self) -> list[nn.Module]:
        """All models."""
        return [self.vqgan, self.discriminator, self.clip.model, self.distance]

    def few(self, rows: int) -> Tensor:
        """A batch of so many rows."""
        size = self.config.model.image_size
        return torch.empty(rows, 3, size, size, dtype=torch.uint8)

    def losses(self, batch: Tensor, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        for loss in super().losses(batch, progress):
            yield loss
            self.live_after = self.live_after or self.live()

    def after_step(self, step: int) -> Metrics:
        return {}  # what the codebook learns depends on values, and takes little


class _Transformer(TransformerTask):
    """A training of the transformer without token shards; its attributes are those of `_Vqgan`."""

    def __init__(self, recipe: Recipe, clip: ClipEncoder) -> None:
        self.config = config = recipe.transformer
        self.live, self.live_after = _nothing, 0
        shape = recipe.vqgan.model
        with torch.device("meta"):
            self.model = self.transformer = Transformer(
                config.model, shape.quantizer.codebook_size, shape.grid, clip.dim, config.gap
            )
        self.transformer.recompute = config.recompute
        self.extras = {}
        self.vqgan, self.clip = _vqgan(recipe).eval().requires_grad_(False), _without_weights(clip)

    def modules(self) -> list[nn.Module]:
        """All models."""
        return [self.transformer, self.vqgan, self.clip.model]

    def few(self, rows: int) -> Batch:
        """A batch of so many rows."""
        config, count = self.config, self.transformer.positions
        raster, dim = config.model.order == "raster", self.transformer.embedding_dim
        codes = torch.zeros(rows, count, dtype=torch.long)
        return Batch(
            codes,
            codes[:, :-1].clone() if raster else codes.clone(),
            torch.empty(rows, dim),
            torch.empty(rows, dim),
            torch.empty(rows, config.model.neighbours, dim),
            torch.zeros(rows, dtype=torch.bool),
            None if raster else self._layout(rows, count),
        )

    def _layout(self, rows: int, count: int) -> Layout:
        tokens = draw_order(np.random.default_rng(0), self.config.model.order, count, 0.0)
        one = Layout.stack([tokens])
        return Layout(*(part.repeat(rows, 1) for part in (one.positions, one.targets, one.steps)))

    def losses(self, batch: Batch, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        for loss in super().losses(batch, progress):
            yield loss
            self.live_after = self.live_after or self.live()
