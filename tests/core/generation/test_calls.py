"""Calling a generator with the names of diffusers' pipelines."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage


@pytest.fixture(scope="module")
def generator(checkpoint: str) -> TextToImage:
    return TextToImage.from_pretrained(checkpoint, device="cpu", dtype=torch.float32)


def test_a_call_gives_the_images_of_generate_as_one_list(generator: TextToImage) -> None:
    prompts = ["a red disc", "a blue square"]
    images = generator(prompts, num_images_per_prompt=3, seed=4, candidates=2)
    rows = generator.generate_scored(prompts, n=3, seed=4, candidates=2)
    flat = [one for row in rows for one in row]
    assert isinstance(images, list) and images.images == list(images)
    assert [one.tobytes() for one in images] == [one.image.tobytes() for one in flat]
    assert images.clip_scores == [one.clip_score for one in flat]
    assert all((a == b.codes).all() for a, b in zip(images.codes, flat, strict=True))
    assert generator([]) == [] and generator([], output_type="np").images == []


def test_arrays_and_tensors_hold_the_pixels(generator: TextToImage) -> None:
    pil, arrays, tensors = (
        generator("a red disc", num_images_per_prompt=2, output_type=kind) for kind in ("pil", "np", "pt")
    )
    assert arrays.images.shape == (2, 32, 32, 3) and arrays.images.dtype == np.float32
    assert tensors.images.shape == (2, 3, 32, 32) and tensors.images.dtype == torch.float32
    for image, array, tensor in zip(pil, arrays, tensors, strict=True):
        assert (np.round(array * 255) == np.asarray(image)).all()
        assert (tensor.permute(1, 2, 0).numpy() == array).all()
    with pytest.raises(ClipgenError, match="output_type is 'latent': choose 'pil', 'np' or 'pt'"):
        generator("a disc", output_type="latent")  # type: ignore[arg-type]


def test_the_callback_sees_every_step_and_can_end_the_sampling(
    generator: TextToImage, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []

    def see(owner: TextToImage, step: int, known: int, given: Mapping[str, Tensor]) -> None:
        assert owner is generator and int((given["codes"] >= 0).sum()) == known * len(given["codes"])
        seen.append((step, known))

    generator("a red disc", callback_on_step_end=see)
    assert seen == [(step, step + 1) for step in range(generator.transformer.positions)]
    assert "sampling" not in "".join(capsys.readouterr())

    def stop(*_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generator("a red disc", callback_on_step_end=stop)
    generator("a red disc", progress_bar=True)
    assert "sampling" in "".join(capsys.readouterr())


def test_a_generator_moves_and_stays_the_same_object(checkpoint: str) -> None:
    generator = TextToImage.from_pretrained(checkpoint, dtype=torch.float32)
    before = generator.generate("a red disc", seed=2)[0][0].tobytes()
    transformer = generator.transformer
    assert generator.to("cpu", torch.float32) is generator and generator.transformer is transformer
    assert generator.to(torch.bfloat16) is generator  # type: ignore[arg-type]
    assert generator.dtype == torch.bfloat16 and str(generator.device) == "cpu"
    assert generator.to(dtype=torch.float32).generate("a red disc", seed=2)[0][0].tobytes() == before


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", "", 3.5])
def test_devices_that_are_not_there_are_refused(generator: TextToImage, device: str) -> None:
    transformer = generator.transformer
    with pytest.raises(ClipgenError, match=r"the device .* cannot be used .*: choose 'cpu'"):
        generator.to(device or "x")
    assert generator.transformer is transformer


def test_dtypes_that_do_not_work_are_refused(generator: TextToImage) -> None:
    for dtype in (torch.float16, torch.int8, "bf16"):
        with pytest.raises(ClipgenError, match=r"choose torch.bfloat16 or torch.float32"):
            generator.to(dtype=dtype)  # type: ignore[arg-type]
