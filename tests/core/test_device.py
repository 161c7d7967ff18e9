from pathlib import Path

import pytest
import torch

from clipgen_core import device
from clipgen_core.device import autocast, default_device, fast_dtype, resolved


@pytest.mark.parametrize(("speedup", "fast"), [(4.2, torch.bfloat16), (0.5, torch.float32)])
def test_half_precision_where_the_machine_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, speedup: float, fast: torch.dtype
) -> None:
    monkeypatch.setattr(device, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: speedup > 1)
    assert fast_dtype("cpu") is fast_dtype("cuda:1") is fast_dtype(torch.device("cuda", 1)) is fast
    assert resolved("auto", "cpu") == {torch.bfloat16: "bf16", torch.float32: "fp32"}[fast]
    a = torch.ones(2, 2)
    for precision, dtype in (("auto", fast), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast("cpu", precision):  # type: ignore[arg-type]
            assert (a @ a).dtype is dtype


def test_a_gpu_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert default_device() == "cuda:3"
    assert autocast(default_device(), "bf16").device == "cuda"
    assert resolved("auto", default_device()) == "bf16"


def test_the_speed_is_measured_once_per_machine_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measure = device.bf16_speedup.__wrapped__
    torch.manual_seed(0)
    speedup = measure()
    after = torch.rand(1)
    assert torch.equal(torch.manual_seed(0) and torch.rand(1), after), "the measurement drew random numbers"
    assert 0 < speedup < 100
    assert f"bf16 is {speedup:.2f} times as fast as fp32" in capfd.readouterr().err
    monkeypatch.setattr(device, "_measure_bf16_speedup", lambda: pytest.fail("measured again"))
    assert measure() == speedup and not capfd.readouterr().err
    (file,) = tmp_path.rglob("bf16.json")
    file.write_text("damaged")
    monkeypatch.setattr(device, "_measure_bf16_speedup", lambda: 1.5)
    assert measure() == 1.5 == measure()


def test_where_the_cache_cannot_be_written_the_speed_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(device, "_measure_bf16_speedup", lambda: 2.5)
    assert device.bf16_speedup.__wrapped__() == 2.5
