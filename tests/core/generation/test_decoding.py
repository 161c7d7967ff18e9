import numpy as np
import pytest
import torch

from clipgen_core.generation import decoding
from clipgen_core.models.layout import NONE
from clipgen_core.models.vqgan import Vqgan
from tests.conftest import tiny_vqgan_config


@pytest.fixture(scope="module")
def vqgan() -> Vqgan:
    torch.manual_seed(0)
    return Vqgan(tiny_vqgan_config().model).eval().requires_grad_(False)


def test_images_are_decoded_in_parts_that_fit(vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, sizes = torch.randint(0, 4, (5, vqgan.config.grid**2)), list[int]()
    together = decoding.decode(vqgan, codes)
    monkeypatch.setattr(decoding, "MEMORY", 1)
    whole = vqgan.decode
    monkeypatch.setattr(vqgan, "decode", lambda part: sizes.append(len(part)) or whole(part))
    apart = decoding.decode(vqgan, codes)
    assert sizes == [1] * 5
    for one, other in zip(together, apart, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_previews_show_rows_that_are_complete_begun_and_waiting(vqgan: Vqgan) -> None:
    codes = torch.randint(0, 4, (4, vqgan.config.grid**2))
    codes[2, vqgan.config.grid :] = codes[3] = NONE
    complete, also, begun, waiting = decoding.decode_partly(vqgan, codes)
    whole = decoding.decode(vqgan, codes[:2])
    for one, other in zip((complete, also), whole, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    assert set(np.asarray(waiting).ravel().tolist()) == {128}
    assert set(np.asarray(begun)[-1].ravel().tolist()) == {128}
    assert len(set(np.asarray(begun)[0].ravel().tolist())) > 1
