"""What a device computes, beside the same on the CPU: models, losses, codebooks, samples, trainings.

`pytest -m gpu` runs these tests on a GPU, without Lance, Dagster and MLflow. On other machines they run with
the CPU as the device, which shows that the tests themselves are right.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.agreement import processes, resuming
from benchmarks.gpu.inputs import Inputs
from benchmarks.timing import Row
from clipgen_core.data.transfer import Transfer, moved
from clipgen_core.device import fast_dtype, fp32_products
from clipgen_core.generation.batch import Mode
from clipgen_core.generation.sampling import Sampler
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.settings.models import QuantizerConfig, TransformerConfig, VqganConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.training.losses import (
    ClipFeatureDistance,
    adaptive_weight,
    code_cross_entropy,
    embedding_reconstruction,
    gradient_penalty,
    hinge_generator,
)
from tests.benchmarks.test_gpu import tiny_inputs

CODES, GRID, DIM, ROWS = 16, 4, 32, 4
POSITIONS = GRID * GRID
ORDERS = ("raster", "annealed", "any")
KINDS = {
    "ema": QuantizerConfig(codebook_size=CODES, code_dim=8),
    "cosine": QuantizerConfig(kind="cosine", codebook_size=CODES, code_dim=8),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=CODES, code_dim=8),
    "ibq": QuantizerConfig(kind="ibq", codebook_size=CODES, code_dim=8),
    "fsq": QuantizerConfig(kind="fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3)),
}
Model = TypeVar("Model", bound=nn.Module)
gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
)


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def on(device: torch.device, model: Model) -> Model:
    """A copy there."""
    return copy.deepcopy(model).to(device)


def close(one: Tensor, other: Tensor, relative: float = 1e-3) -> bool:
    """Whether two results differ by little of their length."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    return bool((one - other).norm() <= relative * other.norm().clamp(min=1e-6))


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([one.grad.flatten().cpu() for one in model.parameters() if one.grad is not None])


def transformer(order: str = "raster", **shape: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, layers=2, heads=2, order=order, **shape)  # type: ignore[arg-type]
    model = Transformer(config, CODES, GRID, DIM).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def vqgan(quantizer: QuantizerConfig) -> Vqgan:
    """A VQGAN whose codebook has started."""
    torch.manual_seed(0)
    shape = VqganConfig(image_size=32, channels=(32, 32), blocks=1, patch=4, quantizer=quantizer)
    model = Vqgan(shape).train()
    model(images())
    ((features, codes),) = model.quantizer.passes
    model.quantizer.learn(features, codes, seed=0)
    return model.eval()


def images() -> Tensor:
    return torch.rand(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def embeddings() -> Tensor:
    return F.normalize(torch.randn(ROWS, 1, DIM, generator=torch.Generator().manual_seed(2)), dim=-1)


def codes(positions: int = POSITIONS) -> Tensor:
    return torch.randint(CODES, (ROWS, positions), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [{}, {"norm": "layer", "feed_forward": "gelu", "positions": "learned"}])
def test_logits_and_gradients_of_the_transformer(shape: dict[str, Any], device: torch.device) -> None:
    def step(model: Transformer, where: torch.device) -> tuple[Tensor, Tensor]:
        logits = model(codes(POSITIONS - 1).to(where), embeddings().to(where))
        code_cross_entropy(logits, codes().to(where)).backward()
        return logits, gradients(model)

    model = transformer(**shape)
    results = zip(step(on(device, model), device), step(model, torch.device("cpu")), strict=True)
    assert all(close(there, here) for there, here in results)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_pictures_and_gradients_of_the_vqgan(kind: str, device: torch.device) -> None:
    model, there = vqgan(KINDS[kind]), vqgan(KINDS[kind]).to(device)
    expected, encoded = model.encode(images()), there.encode(images().to(device)).cpu()
    assert (encoded == expected).float().mean() >= 0.95  # a feature between two codes may fall to either
    assert close(there.decode(expected.to(device)), model.decode(expected))
    for one, where in ((model, torch.device("cpu")), (there, device)):
        one.decoder(one.quantizer.lookup(expected.to(where))).square().mean().backward()
    assert close(gradients(there), gradients(model))


@pytest.mark.parametrize("kind", ["ema", "cosine"])
def test_a_codebook_learns_the_same_in_full_fp32(kind: str, device: torch.device) -> None:
    config = KINDS[kind].model_copy(update={"replace_below": 0.5})
    features = torch.randn(ROWS, 8, 4, 4, generator=torch.Generator().manual_seed(4))
    learned = []
    for where in (torch.device("cpu"), device):
        quantizer = vqgan(config).quantizer.to(where).train()
        quantizer.passes.clear()
        with fp32_products(where, "high"):  # as in a training
            quantizer(features.to(where))
            ((rows, own),) = quantizer.passes
            figures = quantizer.learn(rows, own, seed=1)
        learned.append((quantizer.codebook, own, figures))
    (vectors, own, figures), (vectors_there, own_there, figures_there) = learned
    assert torch.equal(own_there.cpu(), own)
    assert {k: float(v) for k, v in figures_there.items()} == {k: float(v) for k, v in figures.items()}
    assert close(vectors_there, vectors, 1e-5)


def test_losses_and_their_gradients(clip_reference: str, device: torch.device) -> None:
    model, judge = vqgan(KINDS["ema"]), PatchDiscriminator(16)
    logits = torch.randn(ROWS, POSITIONS, CODES, generator=torch.Generator().manual_seed(5))

    def losses(where: torch.device) -> tuple[list[Tensor], Tensor]:
        clip, own, discriminator = ClipEncoder(clip_reference, str(where)), on(where, model), on(where, judge)
        real = images().to(where).requires_grad_()
        picture = own.decode(codes().view(ROWS, GRID, GRID).to(where))
        asked = logits.to(where).requires_grad_()
        distance = ClipFeatureDistance(clip)(picture, images().to(where))
        adversarial = hinge_generator(discriminator(picture))
        embedded = embedding_reconstruction(asked, embeddings()[:, 0].to(where), own, clip)
        embedded.backward()
        assert asked.grad is not None
        weight = adaptive_weight(distance, adversarial, own.decoder.last_layer)
        penalty = gradient_penalty(discriminator(real), real)
        return [distance, adversarial, embedded, weight, penalty], asked.grad

    (there, gradient_there), (here, gradient) = losses(device), losses(torch.device("cpu"))
    assert all(close(one, other, 5e-3) for one, other in zip(there, here, strict=True))
    assert close(gradient_there, gradient, 5e-3)


@pytest.mark.parametrize("mode", ["eager", "fixed"])
@pytest.mark.parametrize("order", ORDERS)
def test_samples_have_the_same_codes(order: str, mode: Mode, device: torch.device) -> None:
    model = transformer(order)
    config = SamplingConfig(guidance_scale=2.0, steps=6 if order == "any" else 0)
    there = on(device, model)
    sampler = Sampler(there, mode)
    for seeds, std in ((range(ROWS), 0.3), (range(7, 7 + ROWS), 0.2)):
        torch.manual_seed(len(seeds))
        for one, other in zip(model.parameters(), there.parameters(), strict=True):
            nn.init.normal_(one, std=std)
            other.data.copy_(one)  # in place: recorded steps see the new weights
        expected = Sampler(model, "eager")(embeddings(), seeds, config)
        assert torch.equal(sampler(embeddings().to(device), seeds, config).cpu(), expected)


def test_a_batch_arrives_as_it_left(device: torch.device) -> None:
    transfer, batch = Transfer(device), (codes(), [images(), {"kept": 1}])
    arrived = transfer.end(transfer.begin(batch))
    assert arrived[0].device == arrived[1][0].device == device and arrived[1][1] == {"kept": 1}
    assert torch.equal(arrived[0].cpu(), batch[0]) and torch.equal(arrived[1][0].cpu(), images())
    assert moved(codes(), device).device == device


@pytest.mark.slow
@pytest.mark.parametrize("part", [resuming, processes], ids=lambda part: part.__name__)
def test_trainings_that_go_on_or_spread_end_with_the_same_weights(
    part: Callable[[Inputs], Iterator[Row]],
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clipgen_core.stages.transformer.default_device", lambda: str(device))
    (row,) = part(tiny_inputs(tmp_path, device))
    assert row.value <= (1e-3 if fast_dtype(device) is torch.float32 else 1e-2)
