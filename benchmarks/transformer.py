"""Training the transformer at the `paper` shape."""

import statistics
from collections.abc import Callable

import open_clip
import torch

from benchmarks.baseline import PlainGpt, train_step
from benchmarks.timing import Row, in_turn, matmul_peak, ratio
from clipgen_core.device import autocast, default_device
from clipgen_core.models.shapes import TRANSFORMERS, VQGANS
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.settings.models import TransformerConfig
from clipgen_core.training.losses import code_cross_entropy
from clipgen_core.training.optim import adamw
from clipgen_core.training.task import attention_for

CODES, GRID, DIM = 16384, 16, 512
T = GRID * GRID


def training(layers: int, batch: int) -> list[Row]:
    """Operations a second of a whole training step as a share of a matrix product's of the same type."""
    model, step = _our_step(layers, batch)
    peak = matmul_peak()
    ours, best = in_turn(step, peak, rounds=5, warm_up=2)
    width = model.config.width
    matrices = layers * 12 * width**2 + CODES * width
    operations = 3 * batch * T * (2 * matrices + layers * 4 * T * width)
    speed = operations / statistics.median(ours)
    reached = ratio([operations / s for s in ours], [2 * 2048**3 / s for s in best])
    detail = (
        f"{layers} layers, batch {batch}, {batch / statistics.median(ours):.2f} images/s, "
        f"{speed / 1e9:.0f} of {2 * 2048**3 / statistics.median(best) / 1e9:.0f} GFLOP/s"
    )
    return [Row("training", "share of the matmul peak", reached, "", ">= 0.65", detail)]


def images_per_second(layers: int, batch: int) -> float:
    """How fast the trainer eats."""
    _, step = _our_step(layers, batch)
    return batch / statistics.median(in_turn(step, rounds=3)[0])


def against_encoding(layers: int, batch: int) -> list[Row]:
    """Images a second from stored codes against encoding them on every step."""
    device = default_device()
    plain = PlainGpt(_shape(layers), CODES, T, DIM).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.95), foreach=False)
    vqgan = Vqgan(VQGANS["paper"]).to(device, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    clip = open_clip.create_model("ViT-B-32", pretrained=None).to(device).eval()
    pictures, clip_pictures = (torch.randn(batch, 3, s, s, device=device) for s in (256, 224))

    def baseline() -> None:
        train_step(plain, optimizer, vqgan, clip, pictures, clip_pictures)

    _, ours = _our_step(layers, batch)
    slow, fast = in_turn(baseline, ours, rounds=3)
    detail = (
        f"{layers} layers, batch {batch}: {batch / statistics.median(fast):.2f} against "
        f"{batch / statistics.median(slow):.2f} images/s"
    )
    return [Row("against_encoding", "images/s, ours / baseline", ratio(slow, fast), "x", ">= 10", detail)]


def _shape(layers: int) -> TransformerConfig:
    """The `paper` shape without dropout, for both sides."""
    return TRANSFORMERS["paper"].model_copy(update={"layers": layers, "dropout": 0.0})


def _our_step(layers: int, batch: int) -> tuple[Transformer, Callable[[], None]]:
    """A training step as the loop makes it: clipped, fused AdamW, from codes and embeddings."""
    device = torch.device(default_device())
    model = Transformer(_shape(layers), CODES, GRID, DIM).to(device)
    optimizer = adamw([model], 1e-4)
    codes = torch.randint(CODES, (batch, T), device=device)
    embedding = torch.nn.functional.normalize(torch.randn(batch, 1, DIM, device=device), dim=-1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device.type), attention_for(device):
            loss = code_cross_entropy(model(codes[:, :-1], embedding), codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return model, step
