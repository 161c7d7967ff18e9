"""Encoding and decoding 256 px images by the `paper` VQGAN as the stages run it (channels last, in the
fast floating point) against the same network in fp32, channels first."""

import statistics

import torch

from benchmarks.timing import Row, in_turn, ratio
from clipgen_core.device import autocast, default_device
from clipgen_core.models.shapes import VQGANS
from clipgen_core.models.vqgan import Vqgan


@torch.no_grad()
def vqgan(batch: int) -> list[Row]:
    device = default_device()
    ours = Vqgan(VQGANS["paper"]).to(device).eval()
    plain = Vqgan(VQGANS["paper"]).to(device, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    plain.load_state_dict(ours.state_dict())
    pictures = torch.rand(batch, 3, 256, 256, device=device) * 2 - 1
    last = pictures.to(memory_format=torch.channels_last)

    def fast() -> None:
        with autocast(device):
            ours.decode(ours.encode(last))

    slow_times, fast_times = in_turn(lambda: plain.decode(plain.encode(pictures)), fast, rounds=3)
    detail = (
        f"batch {batch}: {batch / statistics.median(fast_times):.2f} against "
        f"{batch / statistics.median(slow_times):.2f} images/s"
    )
    return [
        Row(
            "vqgan",
            "encode + decode, fp32 channels first / ours",
            ratio(slow_times, fast_times),
            "x",
            ">= 2",
            detail,
        )
    ]
