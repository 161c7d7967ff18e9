"""What a generator makes from images: variations, edits of a part, and extensions beyond the border."""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from clipgen_core.generation import editing, requests
from clipgen_core.generation.arguments import refusing_unknown
from clipgen_core.generation.engine import Engine, Request
from clipgen_core.generation.sampling import OnStep
from clipgen_core.settings.sampling import SamplingConfig


class ImageToImage(Engine):
    """Generates from images; see `TextToImage`."""

    @refusing_unknown
    def variations(
        self,
        images: Image.Image | Sequence[Image.Image],
        n: int = 1,
        seed: int = 0,
        *,
        strength: float = 1.0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
    ) -> list[list[requests.Generated]]:
        """Generate images like given ones, which are conditioned on as in training.

        Args:
            images: RGB images of any size, or one. An empty list gives an empty list.
            n: Variations of each image.
            seed: Another seed gives other variations.
            strength: The share of codes that are generated anew; the others stay. Below 1, the model must be
                of any order.
            on_step: See `TextToImage.generate_scored`.
            steps, temperature, top_k, top_p, guidance_scale, candidates: See `TextToImage.generate`.

        Returns:
            For each image `n` generated ones, those most like it by CLIP first.

        Raises:
            ClipgenError: An input is no image, or as `TextToImage.generate`.
        """
        images, seed = requests.checked_images(images), requests.checked_seed(seed)
        config = self.parts.sampling.override(
            steps=steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
        )
        n, strength = requests.checked_count(n, config), requests.checked_strength(strength)
        asked = Request([_digest(one) for one in images], *self.of_images(images), n, seed, config)
        kept = []
        if strength < 1:
            encode = partial(editing.in_part, self.vqgan, strength=strength, seed=seed)
            kept = [self.worker.run(partial(encode, one)) for one in images]
        return self.sample(asked, kept=kept, on_step=on_step)

    @refusing_unknown
    def edit(
        self,
        image: Image.Image,
        mask: Image.Image | np.ndarray,
        prompt: str | None = None,
        n: int = 1,
        seed: int = 0,
        *,
        on_step: OnStep | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
    ) -> list[requests.Generated]:
        """Generate a part of an image anew (inpainting). Where a part stays, the model must be of any order.

        Args:
            image: Of any size; its central square is used, at the model's resolution.
            mask: Of the image's size: white, or True in an array, where the image is to change; a grey of
                32 of 255, or lighter, counts as white. Codes that the mask touches are generated, the others
                and their pixels stay.
            prompt: What the whole image should show; what it shows now by default.
            n: Images to generate.
            seed: Another seed gives other images.
            on_step: See `TextToImage.generate_scored`.
            steps, temperature, top_k, top_p, guidance_scale, candidates: See `TextToImage.generate`.

        Returns:
            `n` generated images, the best CLIP score first.

        Raises:
            ClipgenError: The model is not of any order, the mask does not fit, or as `TextToImage.generate`.
        """
        image = requests.the_one(requests.checked_images(image), "images")
        config = self.parts.sampling.override(
            steps=steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
        )
        kept = self.worker.run(lambda: editing.outside(self.vqgan, image, mask))
        (row,) = self.sample(self._asked(kept.image, prompt, n, seed, config), kept=[kept], on_step=on_step)
        return row

    @refusing_unknown
    def extend(
        self,
        image: Image.Image,
        prompt: str | None = None,
        n: int = 1,
        seed: int = 0,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
    ) -> list[requests.Generated]:
        """Generate what lies beyond the border of an image (outpainting). The model must be of any order.

        Args:
            image: Of any size; its central square is used, at the model's resolution.
            prompt: What the whole image should show; what it shows now by default.
            n: Images to generate.
            seed: Another seed gives other images.
            left, right, top, bottom: Pixels to add at each side, at the model's resolution; rounded up to
                whole codes. The extended image may have four times the model's pixels a side at most.
            on_step: See `TextToImage.generate_scored`.
            steps, temperature, top_k, top_p, guidance_scale, candidates: See `TextToImage.generate`.

        Returns:
            `n` generated images, the best CLIP score first.

        Raises:
            ClipgenError: The model is not of any order, the margins do not fit, or as `TextToImage.generate`.
        """
        image = requests.the_one(requests.checked_images(image), "images")
        margins = requests.checked_margins(left=left, right=right, top=top, bottom=bottom)
        config = self.parts.sampling.override(
            steps=steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
        )
        kept = self.worker.run(lambda: editing.beyond(self.vqgan, image, margins))
        return self.sample_beyond(self._asked(image, prompt, n, seed, config), kept, on_step)

    def _asked(
        self, image: Image.Image, prompt: str | None, n: int, seed: int, config: SamplingConfig
    ) -> Request:
        """A request for images like one, or for what a prompt says."""
        n, seed = requests.checked_count(n, config), requests.checked_seed(seed)
        if prompt is None:
            return Request([_digest(image)], *self.of_images([image]), n, seed, config)
        prompt = requests.the_one(requests.checked_prompts(prompt), "prompts")
        name = f"{prompt} {_digest(image)}"
        return Request([name], *self.of_texts([prompt], config), n, seed, config)


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
