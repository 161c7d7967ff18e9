"""What may be requested of a generator, and what it answers with. Knows no model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipgen_core.errors import ClipgenError
from clipgen_core.settings.sampling import SamplingConfig

MAX_PROMPT_LENGTH = 1000
MAX_IMAGES = 256


@dataclass(frozen=True)
class Generated:
    """A generated image, its CLIP score (cosine with the prompt) and its codes, int64 [grid, grid]."""

    image: Image.Image
    clip_score: float
    codes: np.ndarray


def check_count(n: int, config: SamplingConfig) -> None:
    """Refuse a request for no image, or for too many at once.

    Args:
        n: Images for each prompt.
        config: Says how many candidates are sampled for each.

    Raises:
        ClipgenError: Fewer than 1 or more than MAX_IMAGES would be sampled.
    """
    if not 1 <= n * config.candidates <= MAX_IMAGES:
        raise ClipgenError(f"n x candidates is {n * config.candidates}: choose between 1 and {MAX_IMAGES}")


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that are empty or too long.

    Raises:
        ClipgenError: One is.
    """
    for prompt in prompts:
        if not prompt.strip():
            raise ClipgenError("a prompt is empty: say what the image should show")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise ClipgenError(
                f"a prompt has {len(prompt)} characters: at most {MAX_PROMPT_LENGTH} are allowed"
            )


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
