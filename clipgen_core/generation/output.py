"""What calling a generator returns, and tells while it works: images in the type that was asked for.

Knows generated images and the settings they come from; knows nothing of how they are generated.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.requests import Generated
from clipgen_core.progress import Meter
from clipgen_core.settings.sampling import SamplingConfig

if TYPE_CHECKING:
    from clipgen_core.generation.engine import Engine

OutputType = Literal["pil", "np", "pt"]
OnStepEnd = Callable[[Any, int, int, Mapping[str, Tensor]], Any]


class Images(list[Any]):
    """A list of images: those of the first prompt, the best CLIP score first, then those of the next.

    They are PIL images, arrays float32 [h, w, 3] or tensors float32 [3, h, w], both in [0, 1].

    Args:
        rows: The generated images of each prompt.
        output_type: "pil", "np" or "pt".

    Attributes:
        clip_scores: The CLIP score of each image.
        codes: The codes of each image, int64 [grid, grid].
    """

    def __init__(self, rows: Sequence[Sequence[Generated]], output_type: OutputType) -> None:
        generated = [one for row in rows for one in row]
        super().__init__(_as(output_type, one) for one in generated)
        self.output_type = output_type
        self.clip_scores = [one.clip_score for one in generated]
        self.codes = [one.codes for one in generated]

    @property
    def images(self) -> Any:
        """All images: as a list, as one array [n, h, w, 3], or as one tensor [n, 3, h, w]."""
        if self.output_type == "pil" or not self:
            return list(self)
        return np.stack(self) if self.output_type == "np" else torch.stack(self)


def checked_output_type(output_type: OutputType) -> OutputType:
    """Refuse an output type that is not known.

    Raises:
        ClipgenError: It is another one.
    """
    if output_type not in get_args(OutputType):
        raise ClipgenError(f"output_type is {output_type!r}: choose 'pil', 'np' or 'pt'")
    return output_type


def _as(output_type: OutputType, one: Generated) -> Any:
    if output_type == "pil":
        return one.image
    pixels = np.asarray(one.image, np.float32) / 255
    return pixels if output_type == "np" else torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def settings_used(generator: "Engine", given: Mapping[str, Any], *, of_text: bool) -> dict[str, Any]:
    """The settings by which images are sampled, so that the same images can be generated again.

    Args:
        generator: The model; its defaults are used where nothing is given.
        given: Arguments of `TextToImage.generate`, `variations`, `edit` or `extend`.
        of_text: Whether a prompt is given. Other requests have no condition and neighbours.

    Returns:
        All sampling settings that are used, by their names.

    Raises:
        ClipgenError: A value is not allowed.
    """
    chosen = {name: given.get(name) for name in SamplingConfig.model_fields}
    config = generator.parts.sampling.override(**chosen)
    model, unused = generator.transformer, set[str]()
    if not of_text:
        unused = {"condition", "neighbours", "neighbour_temperature"}
    elif config.condition in ("text", "shifted"):
        unused = {"neighbours", "neighbour_temperature"}
    elif config.condition == "nearest":
        unused = {"neighbour_temperature"}
    steps = config.steps or (model.positions if model.raster else 2 * model.grid)
    return config.model_copy(update={"steps": steps}).model_dump(exclude=unused)


def told(generator: object, callback: OnStepEnd | None, meter: Meter) -> Callable[[Tensor], None]:
    """An `on_step` that shows the progress and calls the callback of diffusers' form.

    Args:
        generator: The first argument of the callback.
        callback: See `TextToImage.__call__`.
        meter: Counts the known codes of an image.

    Returns:
        The `on_step`.
    """
    steps = itertools.count()

    def on_step(codes: Tensor) -> None:
        known = int((codes >= 0).sum()) // max(len(codes), 1)
        meter.advance(known - meter.done)
        if callback:
            callback(generator, next(steps), known, {"codes": codes})

    return on_step
