import pytest
import torch

from clipgen_core.device import autocast, fast_dtype


@pytest.mark.parametrize(("tiles", "fast"), [(True, torch.bfloat16), (False, torch.float32)])
def test_half_precision_where_the_machine_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, fast: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: tiles)
    assert fast_dtype("cpu") is fast_dtype("cuda") is fast
    a = torch.ones(2, 2)
    for precision, dtype in (("auto", fast), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast("cpu", precision):  # type: ignore[arg-type]
            assert (a @ a).dtype is dtype
