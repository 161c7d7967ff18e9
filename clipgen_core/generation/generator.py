"""TextToImage: prompts in, images out. What users and the model registry load.

A generator is a folder with generator.json, which names its parts: CLIP, VQGAN, transformer and
the table of image embeddings. A transformer checkpoint names the same parts in its config.json.
"""

import copy
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgen_core import logs, tracking
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.device import fast_dtype
from clipgen_core.errors import ClipgenError
from clipgen_core.generation import requests
from clipgen_core.generation.conditioning import Conditioner
from clipgen_core.generation.decoding import decode, decode_partly
from clipgen_core.generation.load import load_transformer, load_vqgan
from clipgen_core.generation.parts import Parts, copy_parts, read_parts
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.settings.sampling import Condition, SamplingConfig

OnStep = Callable[[Tensor], None]


class TextToImage:
    """A trained generator; safe to call from several threads.

    Examples:
        >>> generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
        >>> generator.generate(["a red heart"], n=4, seed=1)[0][0].save("heart.png")

    Args:
        parts: Where CLIP, VQGAN, transformer and image embeddings are.

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

    @classmethod
    def from_pretrained(cls, source: str) -> "TextToImage":
        """Load a generator.

        Args:
            source: A generator folder, a transformer checkpoint (`step-N`), or a registered model
                (`models:/NAME@ALIAS`, `models:/NAME/VERSION`), found at MLFLOW_TRACKING_URI.

        Raises:
            ClipgenError: Nothing usable is there; the message says what is missing.
        """
        if source.startswith("models:/"):
            source = str(tracking.download_registered(source))
        return cls(read_parts(source))

    def save_pretrained(self, folder: Path) -> None:
        """Write a self-contained generator folder: weights, CLIP and embeddings table."""
        copy_parts(self.parts, folder)

    def generate(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
        condition: Condition | None = None,
        neighbours: int | None = None,
        neighbour_temperature: float | None = None,
    ) -> list[list[Image.Image]]:
        """Generate images for prompts.

        The same prompt and seed give the same images, whatever else is in the batch.
        Settings that are None take the model's defaults (`generator.parts.sampling`).
        A log line says which prompts are longer than CLIP reads; see `dropped_tokens`.

        Args:
            prompts: What the images should show, at most 1000 characters each; a string is one prompt.
            n: Images for each prompt.
            seed: Another seed gives other images.
            temperature: Divides the logits; lower is safer, higher is more varied, 0 ignores the seed.
            top_k: Sample from the k likeliest codes only; 0 for all.
            top_p: Sample from the fewest codes that hold this probability; 1 for all.
            guidance_scale: Strength of classifier-free guidance; higher follows the prompt more, 1 is off.
            candidates: Images sampled for each one returned; CLIP keeps the best.
            condition: What stands for the prompt: its `text` embedding; that `shifted` by the difference of
                the mean text and image embeddings; by `retrieval` the mean of the nearest image embeddings;
                or the `nearest` ones in turn, one a candidate.
            neighbours: How many of the nearest image embeddings are used.
            neighbour_temperature: Of the softmax over their cosines that weighs the mean.

        Returns:
            For each prompt `n` RGB images, the best CLIP score first.

        Raises:
            ClipgenError: A prompt, the seed or a setting is not allowed, or too many are requested at once.
        """
        rows = self.generate_scored(
            prompts,
            n,
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
            condition=condition,
            neighbours=neighbours,
            neighbour_temperature=neighbour_temperature,
        )
        return [[one.image for one in row] for row in rows]

    def generate_scored(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        *,
        on_step: OnStep | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
        condition: Condition | None = None,
        neighbours: int | None = None,
        neighbour_temperature: float | None = None,
    ) -> list[list[requests.Generated]]:
        """Generate images with their CLIP scores and codes; see `generate`.

        Args:
            prompts, n, seed: See `generate`.
            on_step: Called with the codes of all candidates sampled so far, int64 [rows, 1..t]; an error
                that it raises ends the sampling.
            temperature, top_k, top_p, guidance_scale, candidates: See `generate`.
            condition, neighbours, neighbour_temperature: See `generate`.

        Returns:
            For each prompt `n` generated images, the best CLIP score first.

        Raises:
            ClipgenError: As `generate`.
        """
        prompts, seed = requests.checked_prompts(prompts), requests.checked_seed(seed)
        config = self.parts.sampling.override(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
            condition=condition,
            neighbours=neighbours,
            neighbour_temperature=neighbour_temperature,
        )
        n = requests.checked_count(n, config)
        for sentence in requests.not_read(prompts, self.dropped_tokens(prompts)):
            logs.line(sentence)
        texts = self.embed_text(prompts)
        conditions = [self.conditioner.of_text(text, config) for text in texts]
        return self._sample(prompts, texts, conditions, n, seed, config, on_step)

    def variations(
        self,
        images: Image.Image | Sequence[Image.Image],
        n: int = 1,
        seed: int = 0,
        *,
        on_step: OnStep | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
    ) -> list[list[requests.Generated]]:
        """Generate images like given ones, which are conditioned on as in training; see `generate`.

        Args:
            images: RGB images of any size, or one. An empty list gives an empty list.
            n: Variations of each image.
            seed: Another seed gives other variations.
            on_step: See `generate_scored`.
            temperature, top_k, top_p, guidance_scale, candidates: See `generate`.

        Returns:
            For each image `n` generated ones, those most like it by CLIP first.

        Raises:
            ClipgenError: An input is no image, or as `generate`.
        """
        images, seed = requests.checked_images(images), requests.checked_seed(seed)
        config = self.parts.sampling.override(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
        )
        n = requests.checked_count(n, config)
        embedded = self.embed_images(images)
        conditions = [self.conditioner.of_image(row) for row in embedded]
        names = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        return self._sample(names, embedded, conditions, n, seed, config, on_step)

    def _sample(
        self,
        names: Sequence[str],
        targets: np.ndarray,
        conditions: Sequence[Tensor],
        n: int,
        seed: int,
        config: SamplingConfig,
        on_step: OnStep | None,
    ) -> list[list[requests.Generated]]:
        """The best `n` candidates of each name by their cosine with targets [names, d]; one caller at a time.

        The candidates of a name take its conditions in turn.
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
        """Images of grids that are not complete, int64 [n, 1..t]: the rows begun so far, grey below."""
        return decode_partly(self.vqgan, codes)
