"""The count of memory against real training steps, and what must and must not change it."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipgen_core.plan import UntrainedClip
from clipgen_core.plan.memory import Need, need_of
from clipgen_core.plan.tasks import TransformerWithoutShards
from clipgen_core.plan.verdict import USABLE, judge
from clipgen_core.recipes import Recipe, named
from clipgen_core.stages.vqgan import VqganTask
from clipgen_core.training.task import train_step
from tests.pipelines.test_assets import TINY

DEMO = named("demo").override({"vqgan.train.precision": "bf16", "transformer.train.precision": "bf16"})


@pytest.fixture(scope="module")
def clip() -> UntrainedClip:
    return UntrainedClip(DEMO.clip)


def allocated(task: Any, recipe_train: Any, few: Any) -> int:
    """The most bytes that a training step allocates at any time, as PyTorch's profiler sees it."""
    optimizers = task.optimizers()
    task.model.train()
    step = recipe_train.steps - 1
    train_step(task, optimizers, [few()], step, recipe_train)
    for optimizer in (one for several in optimizers.values() for one in several):
        optimizer.zero_grad()
    with torch.profiler.profile(profile_memory=True) as profiled:
        train_step(task, optimizers, [few()], step, recipe_train)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


def grown(need: Need) -> float:
    """What a step allocates besides what is there before it."""
    return need.gradients + need.activations


@pytest.mark.slow
def test_the_count_of_the_vqgan_is_that_of_a_real_step(clip: UntrainedClip) -> None:
    size, train = DEMO.vqgan.model.image_size, DEMO.vqgan.train
    task = VqganTask(DEMO.vqgan, SimpleNamespace(train=range(1000)), clip)  # type: ignore[arg-type]
    real = allocated(task, train, lambda: torch.rand(train.batch_size, 3, size, size) * 2 - 1)
    assert grown(need_of("vqgan", DEMO, clip, gpu=False)) == pytest.approx(real, rel=0.2)


@pytest.mark.slow
def test_the_count_of_the_transformer_is_that_of_a_real_step(clip: UntrainedClip) -> None:
    task, train = TransformerWithoutShards(DEMO, clip, "cpu"), DEMO.transformer.train
    real = allocated(task, train, lambda: task.few(train.batch_size))
    assert grown(need_of("transformer", DEMO, clip, gpu=False)) == pytest.approx(real, rel=0.2)


def of(stage: str, clip: UntrainedClip, gpu: bool = True, **changed: Any) -> Need:
    overrides = {f"{stage}.{name.replace('__', '.')}": value for name, value in changed.items()}
    return need_of(stage, TINY.override(overrides), clip, gpu)


@pytest.fixture(scope="module")
def tiny_clip() -> UntrainedClip:
    return UntrainedClip(TINY.clip)


def test_accumulating_and_recomputing_need_less(tiny_clip: UntrainedClip) -> None:
    for stage in ("vqgan", "transformer"):
        whole = of(stage, tiny_clip, train__batch_size=64)
        split = of(stage, tiny_clip, train__batch_size=64, train__micro_batch=16)
        again = of(stage, tiny_clip, train__batch_size=64, recompute=True)
        assert split.activations < 0.4 * whole.activations
        assert again.activations < 0.9 * whole.activations
        assert whole.fixed == split.fixed == again.fixed


@pytest.mark.parametrize("kind", ["ema", "cosine", "simvq", "ibq"])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_every_quantizer_is_counted(kind: str, gpu: bool, tiny_clip: UntrainedClip) -> None:
    assert of("vqgan", tiny_clip, gpu, model__quantizer__kind=kind).activations > 0


@pytest.mark.parametrize("order", ["raster", "annealed", "any"])
def test_every_order_is_counted(order: str, tiny_clip: UntrainedClip) -> None:
    assert of("transformer", tiny_clip, model__order=order, embedding_weight=0.1).activations > 0


def test_parameters_and_their_optimizer_are_counted_apart(tiny_clip: UntrainedClip) -> None:
    adamw, muon = (of("transformer", tiny_clip, train__optimizer=name) for name in ("adamw", "muon"))
    assert adamw.gradients == 4 * adamw.parameters
    assert adamw.optimizer == pytest.approx(8 * adamw.parameters, rel=0.01)
    assert muon.optimizer < 0.8 * adamw.optimizer  # one moment of the hidden matrices
    assert of("transformer", tiny_clip, train__ema_decay=0.0).average == 0
    assert of("vqgan", tiny_clip, gpu=False).context == 0


def test_what_fits_needs_nothing_and_what_cannot_fit_gets_no_advice(tiny_clip: UntrainedClip) -> None:
    recipe: Recipe = TINY.override({"transformer.train.batch_size": 4096})
    need = need_of("transformer", recipe, tiny_clip, gpu=True)
    assert judge("transformer", recipe, tiny_clip, memory=2 * need.total, gpu=True).fits
    nothing = judge("transformer", recipe, tiny_clip, memory=0.5 * need.fixed, gpu=True)
    assert not nothing.fits and not nothing.overrides
    little = need.fixed + need.batches + 0.3 * need.activations
    helped = judge("transformer", recipe, tiny_clip, memory=little / USABLE, gpu=True)
    assert helped.overrides["transformer.train.micro_batch"] < 4096 and helped.then.total <= little
