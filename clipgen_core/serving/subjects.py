"""What a visitor of the page may ask for: pictures from a text, from a picture, or with a part anew."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated, not_read
from clipgen_core.generation.sampling import OnStep
from clipgen_core.serving.uploads import decoded, opaque


class Subject(ABC):
    """One request.

    Attributes:
        kind: text, picture or edit.
        label: Says what its pictures show.
        recorded: What is written into its pictures.
        prompt: What the pictures should show; empty if it was not said.
    """

    kind: str
    label: str
    recorded: dict[str, Any]
    prompt: str = ""

    def sample(self, generator: TextToImage, on_step: OnStep, **parameters: Any) -> list[Generated]:
        """Generate its pictures.

        Args:
            generator: The model.
            on_step: See `TextToImage.generate_scored`.
            parameters: Keyword arguments of the generator's call, `n` and `seed` among them.

        Returns:
            The pictures, the best first.
        """
        return self._sample(generator, {**parameters, "on_step": on_step})

    @abstractmethod
    def _sample(self, generator: TextToImage, parameters: dict[str, Any]) -> list[Generated]: ...

    def notes(self, generator: TextToImage) -> list[str]:
        """Sentences on how the prompt was understood."""
        return not_read([self.prompt], generator.dropped_tokens([self.prompt])) if self.prompt else []


class FromText(Subject):
    """Pictures of what a prompt says."""

    kind = "text"

    def __init__(self, prompt: str) -> None:
        if not prompt.strip():
            raise ClipgenError("Enter a prompt first.")
        self.prompt, self.label = prompt, prompt
        self.recorded = {"prompt": prompt}

    def _sample(self, generator: TextToImage, parameters: dict[str, Any]) -> list[Generated]:
        (row,) = generator.generate_scored(self.prompt, **parameters)
        return row


class FromPicture(Subject):
    """Variations of a picture."""

    kind, label = "picture", "a variation of the picture"

    def __init__(self, picture: bytes | None) -> None:
        if picture is None:
            raise ClipgenError("Choose a picture first.")
        self.picture, self.recorded = decoded("picture", picture), {"picture": True}

    def _sample(self, generator: TextToImage, parameters: dict[str, Any]) -> list[Generated]:
        (row,) = generator.variations(self.picture, **parameters)
        return row


class Edit(Subject):
    """A picture with a part anew."""

    kind, label = "edit", "the edited picture"

    def __init__(self, drawn: dict[str, Any] | None, prompt: str) -> None:
        """`drawn` is what the page sends: files of the picture, and of layers whose paint is opaque."""
        if not drawn or drawn["background"] is None:
            raise ClipgenError("Choose a picture first.")
        self.picture = decoded("picture", drawn["background"])
        painted = np.zeros((self.picture.height, self.picture.width), dtype=bool)
        for layer in drawn["layers"]:
            painted |= opaque("paint", layer, self.picture.size)
        if not painted.any():
            raise ClipgenError("Paint over the part that is to change first.")
        self.painted, self.prompt = painted, prompt
        self.recorded = {"edited": True, "prompt": prompt or None}

    def _sample(self, generator: TextToImage, parameters: dict[str, Any]) -> list[Generated]:
        return generator.edit(self.picture, self.painted, self.prompt or None, **parameters)
