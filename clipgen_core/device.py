"""The device and the floating-point type that models run with."""

import torch

from clipgen_core.settings.training import Precision


def default_device() -> str:
    """The device type: cuda if a GPU is available, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device_type: str) -> torch.dtype:
    """bf16 on GPUs that support it (from Ampere on) and on CPUs with matrix tiles (AMX), else fp32.

    Without AMX, matrix products in bf16 take twice as long as in fp32 (144 against 278 GFLOP/s on two cores
    of a Xeon with AMX disabled).
    """
    if device_type == "cpu":
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def autocast(device_type: str, precision: Precision = "auto") -> torch.autocast:
    """The autocast context for a precision.

    Args:
        device_type: "cpu" or "cuda".
        precision: "bf16", "fp32", or "auto", which is bf16 where `fast_dtype` is.

    Returns:
        A context manager, to enter once.
    """
    fast = fast_dtype(device_type) is torch.bfloat16
    return torch.autocast(device_type, torch.bfloat16, precision == "bf16" or (precision == "auto" and fast))
