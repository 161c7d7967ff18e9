"""What may be requested of a generator, and what it answers with. Knows no model."""

import hashlib
import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from clipgen_core.errors import ClipgenError
from clipgen_core.settings.sampling import MAX_IMAGES, MAX_PROMPT_LENGTH, SamplingConfig

Given = TypeVar("Given")


@dataclass(frozen=True)
class Generated:
    """A generated image, its CLIP score (cosine with the prompt) and its codes, int64 [grid, grid]."""

    image: Image.Image
    clip_score: float
    codes: np.ndarray


def checked_count(n: object, config: SamplingConfig) -> int:
    """Refuse a request for no image, or for too many at once.

    Args:
        n: Images for each prompt.
        config: Says how many candidates are sampled for each.

    Returns:
        The number as an int.

    Raises:
        ClipgenError: It is no integer, or fewer than 1 or more than MAX_IMAGES would be sampled.
    """
    count = checked_integer("n", n)
    if not 1 <= count * config.candidates <= MAX_IMAGES:
        product = f"{count} x {config.candidates}" if abs(count) < 10**9 else "out of range"
        raise ClipgenError(f"n x candidates is {product}: choose between 1 and {MAX_IMAGES}")
    return count


def checked_seed(seed: object) -> int:
    """The seed as an int: equal integers of any type give the same images.

    Raises:
        ClipgenError: It is no integer, or one of more than 64 bits.
    """
    number = checked_integer("seed", seed)
    if abs(number) >= 2**64:
        raise ClipgenError("the seed has more than 64 bits: choose a smaller one")
    return number


def checked_integer(name: str, value: object) -> int:
    """An integer of any type as an int.

    Args:
        name: What it is called.
        value: What was given.

    Returns:
        The integer.

    Raises:
        ClipgenError: It is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ClipgenError(f"{name} is {value!r}: give an integer") from None


def checked_prompts(prompts: str | Iterable[str]) -> list[str]:
    """The prompts as a list; a single string is one prompt.

    Args:
        prompts: A prompt, or several.

    Returns:
        All of them, as they were given.

    Raises:
        ClipgenError: One is empty, too long, or no text.
    """
    given = [prompts] if isinstance(prompts, str | bytes) else _listed(prompts, "prompts are", "a text")
    for prompt in given:
        if not isinstance(prompt, str):
            raise ClipgenError(f"a prompt is of type {type(prompt).__name__}: give a text")
        if not prompt.strip():
            raise ClipgenError("a prompt is empty: say what the image should show")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise ClipgenError(
                f"a prompt has {len(prompt)} characters: at most {MAX_PROMPT_LENGTH} are allowed"
            )
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ClipgenError(f"the prompt {prompt!r} is no valid Unicode: write it anew")
    return [str(prompt) for prompt in given]


def checked_images(images: Image.Image | Iterable[Image.Image]) -> list[Image.Image]:
    """The images as a list; a single one is a list of one.

    Args:
        images: An image, or several.

    Returns:
        All of them.

    Raises:
        ClipgenError: One is no image, or has no pixels.
    """
    given = [images] if isinstance(images, Image.Image) else _listed(images, "images are", "a PIL image")
    for image in given:
        if not isinstance(image, Image.Image):
            raise ClipgenError(f"an image is of type {type(image).__name__}: give a PIL image")
        if not min(image.size):
            raise ClipgenError(f"an image has {image.width}x{image.height} pixels: give one with some")
    return given


def the_one(given: Sequence[Given], what: str) -> Given:
    """What a method takes one of.

    Args:
        given: The checked values.
        what: What they are, in the plural.

    Returns:
        The only one.

    Raises:
        ClipgenError: There are none, or several.
    """
    if len(given) != 1:
        raise ClipgenError(f"{len(given)} {what} are given: give one, and call again for each other one")
    return given[0]


def checked_strength(strength: object) -> float:
    """The share of codes to generate anew.

    Raises:
        ClipgenError: It is no number above 0 and at most 1.
    """
    if not isinstance(strength, int | float | np.integer | np.floating) or not 0 < strength <= 1:
        raise ClipgenError(f"strength is {strength!r}: choose above 0 and at most 1")
    return float(strength)


def checked_margins(**margins: object) -> dict[str, int]:
    """The pixels to add at the sides of an image, by side.

    Raises:
        ClipgenError: One is no integer or negative, or none is positive.
    """
    pixels = {side: checked_integer(side, margin) for side, margin in margins.items()}
    for side, margin in pixels.items():
        if margin < 0:
            raise ClipgenError(f"{side} is {margin}: give the pixels to add at that side, 0 or more")
    if not any(pixels.values()):
        raise ClipgenError("no pixels are to be added: give their number at one side at least")
    return pixels


def checked_embedding(embedding: object, width: int) -> np.ndarray:
    """An embedding to search by.

    Args:
        embedding: Numbers, [d] or [1, d].
        width: The d of the model's CLIP.

    Returns:
        float32 [d].

    Raises:
        ClipgenError: It is something else.
    """
    try:
        row = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError):
        row = np.zeros(0, np.float32)
    if row.shape not in ((width,), (1, width)) or not np.isfinite(row).all() or not row.any():
        raise ClipgenError(
            f"the query of a search is of type {type(embedding).__name__}: give one prompt, "
            f"one PIL image, or one embedding of {width} numbers"
        )
    return row.reshape(width)


def _listed(values: Iterable[Given], what: str, wanted: str) -> list[Given]:
    try:
        return list(values)
    except TypeError:
        raise ClipgenError(f"the {what} of type {type(values).__name__}: give {wanted}, or several") from None


def ranked(
    images: Sequence[Image.Image], scores: np.ndarray, codes: np.ndarray, tries: int, n: int
) -> list[list[Generated]]:
    """Keep the best candidates of each prompt.

    Args:
        images: The candidates of all prompts, one prompt after the other.
        scores: CLIP score of each, float32 [images].
        codes: Codes of each, int64 [images, grid, grid].
        tries: Candidates of each prompt.
        n: How many of them to keep.

    Returns:
        For each prompt `n` generated images, the best CLIP score first.
    """
    generated = [
        Generated(image, float(score), grid) for image, score, grid in zip(images, scores, codes, strict=True)
    ]
    by_prompt = [generated[i : i + tries] for i in range(0, len(generated), tries)]
    return [sorted(row, key=lambda one: -one.clip_score)[:n] for row in by_prompt]


def not_read(prompts: Sequence[str], dropped: Sequence[int]) -> list[str]:
    """One sentence for each prompt that is longer than the CLIP reads.

    Args:
        prompts: The prompts.
        dropped: Number of tokens of each that the CLIP does not read.

    Returns:
        The sentences.
    """
    return [
        f"the CLIP does not read the last {count} tokens of the prompt {_shortened(prompt)!r}: shorten it"
        for prompt, count in zip(prompts, dropped, strict=True)
        if count
    ]


def _shortened(prompt: str, most: int = 60) -> str:
    return prompt if len(prompt) <= most else f"{prompt[:most]}…"


def image_seed(prompt: str, seed: int, index: int) -> int:
    """The seed of one candidate.

    Args:
        prompt: The prompt, or the digest of an image.
        seed: Of the request.
        index: Which candidate.

    Returns:
        A number of 64 bits.
    """
    digest = hashlib.sha256(json.dumps([prompt, seed, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big")
