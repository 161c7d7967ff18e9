"""What a visitor of the page may ask for: pictures from a text, from a picture, or with a part anew."""

from typing import Any, Protocol

import numpy as np
from PIL import Image

from clipgen_core.data.pixels import to_rgb
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.engine import OnStep
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated, not_read


class Subject(Protocol):
    """One request.

    Attributes:
        kind: text, picture or edit.
        label: Names it in the history.
        recorded: What is written into its pictures.
    """

    kind: str
    label: str

    @property
    def recorded(self) -> dict[str, Any]: ...

    def sample(self, generator: TextToImage, on_step: OnStep, **parameters: Any) -> list[Generated]:
        """Generate its pictures, the best first.

        Args:
            generator: The model.
            on_step: See `TextToImage.generate_scored`.
            parameters: Keyword arguments of the call, `n` and `seed` among them.

        Returns:
            The pictures.
        """

    def notes(self, generator: TextToImage) -> list[str]:
        """Sentences on how it was understood."""


class FromText:
    """Pictures of what a prompt says."""

    kind = "text"

    def __init__(self, prompt: str) -> None:
        if not prompt:
            raise ClipgenError("Enter a prompt first.")
        self.prompt, self.label = prompt, prompt[:40]

    @property
    def recorded(self) -> dict[str, Any]:
        return {"prompt": self.prompt}

    def sample(self, generator: TextToImage, on_step: OnStep, **parameters: Any) -> list[Generated]:
        (row,) = generator.generate_scored([self.prompt], on_step=on_step, **parameters)
        return row

    def notes(self, generator: TextToImage) -> list[str]:
        return not_read([self.prompt], generator.dropped_tokens([self.prompt]))


class FromPicture:
    """Variations of a picture."""

    kind, label = "picture", "variation"

    def __init__(self, picture: Image.Image | None) -> None:
        if picture is None:
            raise ClipgenError("Choose a picture first.")
        self.picture = picture

    @property
    def recorded(self) -> dict[str, Any]:
        return {"picture": True}

    def sample(self, generator: TextToImage, on_step: OnStep, **parameters: Any) -> list[Generated]:
        (row,) = generator.variations(self.picture, on_step=on_step, **parameters)
        return row

    def notes(self, generator: TextToImage) -> list[str]:
        return []


class Edit:
    """A picture with a part anew."""

    kind, label = "edit", "edit"

    def __init__(self, drawn: dict[str, Any] | None, prompt: str) -> None:
        """`drawn` is what Gradio's image mask gives: the picture, and layers whose paint is opaque."""
        if not drawn or drawn["background"] is None:
            raise ClipgenError("Choose a picture first.")
        self.picture = to_rgb(drawn["background"])
        painted = np.zeros((self.picture.height, self.picture.width), dtype=bool)
        for layer in drawn["layers"]:
            painted |= np.asarray(layer.convert("RGBA"))[..., 3] > 0
        if not painted.any():
            raise ClipgenError("Paint over the part that is to change first.")
        self.painted, self.prompt = painted, prompt or None

    @property
    def recorded(self) -> dict[str, Any]:
        return {"edited": True, "prompt": self.prompt}

    def sample(self, generator: TextToImage, on_step: OnStep, **parameters: Any) -> list[Generated]:
        return generator.edit(self.picture, self.painted, self.prompt, on_step=on_step, **parameters)

    def notes(self, generator: TextToImage) -> list[str]:
        return FromText(self.prompt).notes(generator) if self.prompt else []
