"""The parts of a generator in memory, and what they do one by one."""

import copy
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.device import fast_dtype
from clipgen_core.errors import ClipgenError
from clipgen_core.generation import requests
from clipgen_core.generation.conditioning import Conditioner
from clipgen_core.generation.decoding import decode, decode_partly
from clipgen_core.generation.load import load_transformer, load_vqgan
from clipgen_core.generation.parts import Parts
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.settings.sampling import SamplingConfig

OnStep = Callable[[Tensor], None]


class Engine:
    """CLIP, VQGAN, transformer and image embeddings, loaded; safe to call from several threads.

    Args:
        parts: Where they are.

    Raises:
        ClipgenError: A part is missing, damaged, or not the one that the model was trained with.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.clip = ClipEncoder(parts.clip)
        if self.clip.key != parts.clip_key:
            raise ClipgenError(
                f"the CLIP at {parts.clip} is {self.clip.key}, but this model was trained with "
                f"{parts.clip_key}: restore the CLIP or train again"
            )
        self.vqgan = load_vqgan(parts.vqgan)
        self.transformer = load_transformer(parts.transformer)
        stored, version = parts.embeddings, parts.embeddings_version
        self.embeddings = EmbeddingTable(stored, version) if stored else None
        gap = copy.deepcopy(self.transformer.gap)  # its statistics stay in float32
        self.conditioner = Conditioner(gap, self.embeddings, self.transformer.config.neighbours)
        self.transformer.to(fast_dtype(self.device.type))
        self._one_at_a_time = threading.Lock()

    def sample(
        self,
        names: Sequence[str],
        targets: np.ndarray,
        conditions: Sequence[Tensor],
        n: int,
        seed: int,
        config: SamplingConfig,
        on_step: OnStep | None,
    ) -> list[list[requests.Generated]]:
        """Sample candidates, decode and rank them; one caller at a time.

        Args:
            names: One for each thing that is asked for; the random numbers come from it and the seed.
            targets: The embeddings to which the images should be near, float32 [names, d].
            conditions: Of each name, float [choices, 1 + neighbours, d]; its candidates take them in turn.
            n: Images to return for each name.
            seed: Of the request.
            config: The sampling settings.
            on_step: See `TextToImage.generate_scored`.

        Returns:
            For each name the best `n` candidates by their cosine with its target.
        """
        if not names:
            return []
        tries = n * config.candidates
        seeds = [requests.image_seed(name, seed, i) for name in names for i in range(tries)]
        rows = torch.stack([choices[i % len(choices)] for choices in conditions for i in range(tries)])
        with self._one_at_a_time:
            codes = sample_codes(self.transformer, rows, seeds, config, on_step=on_step)
            images = self.decode(codes)
            scores = (self.embed_images(images) * targets.repeat(tries, axis=0)).sum(axis=1)
        side = self.vqgan.config.grid
        return requests.ranked(images, scores, codes.cpu().numpy().reshape(-1, side, side), tries, n)

    def dropped_tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each prompt the CLIP does not read."""
        return self.clip.dropped_tokens(prompts)

    def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
        """CLIP embeddings of prompts, float32 [n, d], rows of length 1."""
        return self.clip.encode_texts(list(prompts))

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """CLIP embeddings of RGB images, float32 [n, d], rows of length 1, in the same space."""
        return self.clip.encode_images(images)

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The training images nearest to an embedding.

        Args:
            query: float32 [d].
            k: How many.

        Returns:
            (image id, cosine) of each, the nearest first.
        """
        found = self.conditioner.table.nearest(query, k)
        return list(zip(found.ids, found.cosine.tolist(), strict=True))

    @property
    def device(self) -> torch.device:
        return self.conditioner.gap.image_mean.device

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """The images of codes, int64 [n, t]."""
        return decode(self.vqgan, codes)

    def decode_partly(self, codes: Tensor) -> list[Image.Image]:
        """Images of grids that are not complete, int64 [n, t], -1 where a code is not known yet."""
        return decode_partly(self.vqgan, codes)
