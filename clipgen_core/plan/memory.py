"""The memory that a training needs, counted by one of its steps on fake tensors, in seconds.

The step is that of training/task.py, with the losses of the stage. What is not counted: what a library
allocates inside one operation, and what the allocator loses by fragments.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clipgen_core.device import resolved
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan.tally import Tally, fake, fake_tensors
from clipgen_core.plan.tasks import TransformerWithoutShards, VqganWithoutImages
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import Precision, TrainConfig
from clipgen_core.training.optim import ExponentialAverage
from clipgen_core.training.task import Optimizers, train_step

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
    task = (VqganWithoutImages if stage == "vqgan" else TransformerWithoutShards)(
        recipe, _without_weights(clip), "meta"
    )
    with fake_tensors(gpu) as tally:
        need = _count(fake(task, task.modules()), train, tally)
    return replace(need, context=CONTEXT if gpu else 0.0)


def _precision(precision: Precision, gpu: bool) -> Precision:
    if gpu and not torch.cuda.is_available():
        return "bf16" if precision == "auto" else precision
    return resolved(precision, "cuda" if gpu else "cpu")


def _count(task: VqganWithoutImages | TransformerWithoutShards, train: TrainConfig, tally: Tally) -> Need:
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


def _without_weights(clip: ClipEncoder) -> ClipEncoder:
    """A copy that shares the model and computes on a CPU, without what reads images and texts."""
    clip.blocks, clip.dim  # noqa: B018 (cached in the copy: fake tensors tell neither)
    shared = copy.copy(clip)
    shared.device, shared.preprocess, shared.tokenizer = torch.device("cpu"), None, None
    for computed in ("mean_std", "_fast"):  # real tensors, which are made anew if they are needed
        shared.__dict__.pop(computed, None)
    return shared
