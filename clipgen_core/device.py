"""Where the work runs, and in which floating point."""

import torch

from clipgen_core.settings.training import Precision


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device_type: str) -> torch.dtype:
    """bf16 on GPUs that have it (from Ampere on) and on CPUs with matrix tiles (AMX), else fp32: without
    tiles a product in bf16 takes twice as long (144 against 278 GFLOP/s on two cores of a Xeon whose AMX
    is masked)."""
    if device_type == "cpu":
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def autocast(device_type: str, precision: Precision = "auto") -> torch.autocast:
    """bf16 where asked for, or where it is fast."""
    fast = fast_dtype(device_type) is torch.bfloat16
    return torch.autocast(device_type, torch.bfloat16, precision == "bf16" or (precision == "auto" and fast))
