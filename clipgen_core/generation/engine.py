"""The parts of a generator in memory, and what they do one by one."""

import copy
import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgen_core import logs
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.device import usable, usable_dtype
from clipgen_core.errors import ClipgenError
from clipgen_core.generation import requests
from clipgen_core.generation.conditioning import Conditioner
from clipgen_core.generation.decoding import decode, decode_partly
from clipgen_core.generation.editing import Kept, windows
from clipgen_core.generation.load import load_transformer, load_vqgan
from clipgen_core.generation.parts import Parts
from clipgen_core.generation.sampling import OnStep, Sampler
from clipgen_core.generation.worker import AT_ONCE, CALLER, Worker, parted
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.layout import NONE
from clipgen_core.settings.sampling import SamplingConfig

ONE_CALLERS_SHARE = 0.5  # of the rows that are sampled together
SQUARE = 224  # pixels: an image of other proportions is scored as a square of this side


@dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    names: One for each thing that is asked for; the random numbers come from it and the seed.
    targets: The embeddings to which the images should be near, float32 [names, d].
    conditions: Of each name, float [choices, 1 + neighbours, d]; its candidates take them in turn.
    n: Images to return for each name.
    seed: Another seed gives other images.
    config: The sampling settings.
    """

    names: Sequence[str]
    targets: np.ndarray
    conditions: Sequence[Tensor]
    n: int
    seed: int
    config: SamplingConfig

    @property
    def tries(self) -> int:
        """Candidates of each name."""
        return self.n * self.config.candidates

    @property
    def rows(self) -> Tensor:
        """The conditions of all candidates, float [names * tries, 1 + neighbours, d]."""
        return torch.stack(
            [choices[i % len(choices)] for choices in self.conditions for i in range(self.tries)]
        )

    def seeds(self, part: int = 0) -> list[int]:
        """The seeds of all candidates, for one part of what is sampled in several."""
        named = [name if part == 0 else f"{name}, part {part}" for name in self.names]
        return [requests.image_seed(name, self.seed, i) for name in named for i in range(self.tries)]


class Engine:
    """CLIP, VQGAN, transformer and image embeddings, loaded; safe to call from several threads.

    What is asked by several threads is sampled together. Each gets the images that it would get alone; in
    bf16 a few differ, as the rounding of a matrix product depends on how many rows it has.

    Args:
        parts: Where they are.
        compile, device, dtype: See `TextToImage.from_pretrained`.

    Raises:
        ClipgenError: A part is missing, damaged, or not the one that the model was trained with.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        compile: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.parts, self.compile = parts, compile
        place = usable(device)
        dtype = usable_dtype(dtype, place)
        self.clip = ClipEncoder(parts.clip, place, dtype)
        if self.clip.key != parts.clip_key:
            raise ClipgenError(
                f"the CLIP at {parts.clip} is {self.clip.key}, but this model was trained with "
                f"{parts.clip_key}: restore the CLIP or train again"
            )
        self.vqgan = load_vqgan(parts.vqgan, place)
        self.transformer = load_transformer(parts.transformer, place)
        stored, version = parts.embeddings, parts.embeddings_version
        self.embeddings = EmbeddingTable(stored, version) if stored else None
        gap = copy.deepcopy(self.transformer.gap)  # its statistics stay in float32
        self.conditioner = Conditioner(gap, self.embeddings, self.transformer.config.neighbours)
        self.transformer.to(dtype)
        on_gpu = self.device.type == "cuda"
        sampler = Sampler(self.transformer, "compiled" if compile and on_gpu else None, ONE_CALLERS_SHARE)
        self.worker = Worker(sampler)

    def sample(
        self, request: Request, *, kept: Sequence[Kept] = (), on_step: OnStep | None = None
    ) -> list[list[requests.Generated]]:
        """Sample candidates, decode and rank them.

        Args:
            request: What is asked for.
            kept: For each name an image of which a part stays; all have their new codes at the same places.
            on_step: See `TextToImage.generate_scored`.

        Returns:
            For each name the best candidates by their cosine with its target.
        """
        if not request.names:
            return []
        known = torch.stack([one.codes.flatten() for one in kept]) if kept else None
        known = None if known is None else known.repeat_interleave(request.tries, dim=0)
        codes = self._codes(request, request.seeds(), known, on_step)
        at_once, rows = max(AT_ONCE // request.tries, 1), list[list[requests.Generated]]()
        for start in range(0, len(request.names), at_once):
            part = range(len(request.names))[start : start + at_once]
            rows += self._ranked(request, codes, kept, part)
        return rows

    def _codes(
        self, request: Request, seeds: Sequence[int], known: Tensor | None, on_step: OnStep | None
    ) -> Tensor:
        """The codes of all candidates, int64 [names * tries, t]."""
        caller = CALLER.get() or uuid.uuid4().hex
        job = self.worker.sampler.job(request.rows, seeds, request.config, known=known, caller=caller)
        return self.worker.sample(job, on_step)

    def _ranked(
        self, request: Request, codes: Tensor, kept: Sequence[Kept], names: range
    ) -> list[list[requests.Generated]]:
        """The best candidates of some names."""
        tries, side = request.tries, self.vqgan.config.grid
        codes = codes[names.start * tries : names.stop * tries]
        images = self.decode(codes)
        if kept:
            images = [kept[names[i // tries]].join(image) for i, image in enumerate(images)]
        scores = self._scores(images, request.targets[names.start : names.stop], tries)
        return requests.ranked(images, scores, codes.cpu().numpy().reshape(-1, side, side), tries, request.n)

    def sample_beyond(
        self, request: Request, kept: Kept, on_step: OnStep | None = None
    ) -> list[requests.Generated]:
        """Sample the new part of an image that is larger than the model's, window by window.

        Args:
            request: What is asked for, under one name.
            kept: The larger image.
            on_step: Called with the codes of each window in turn.

        Returns:
            The best candidates by their cosine with the target; the whole image counts.
        """
        grid = self.vqgan.config.grid
        codes = kept.codes.repeat(request.tries, 1, 1)
        for number, (rows, columns) in enumerate(windows((kept.codes != NONE).cpu().numpy(), grid)):
            known = codes[:, rows, columns].flatten(1)
            sampled = self._codes(request, request.seeds(number), known, on_step)
            codes[:, rows, columns] = sampled.view(-1, grid, grid)

        images = [kept.join(image) for image in self.decode(codes)]
        scores = self._scores(
            [image.resize((SQUARE, SQUARE)) for image in images], request.targets, request.tries
        )
        (row,) = requests.ranked(images, scores, codes.cpu().numpy(), request.tries, request.n)
        return row

    def _scores(self, images: Sequence[Image.Image], targets: np.ndarray, tries: int) -> np.ndarray:
        return np.asarray((self.embed_images(images) * targets.repeat(tries, axis=0)).sum(axis=1))

    def of_texts(self, prompts: Sequence[str], config: SamplingConfig) -> tuple[np.ndarray, list[Tensor]]:
        """What prompts ask for. A log line says which of them are longer than CLIP reads.

        Args:
            prompts: The prompts.
            config: Says what stands for a prompt.

        Returns:
            Targets and conditions, as `Request` holds them.
        """
        texts = self._embed_texts(prompts)
        return texts, self.worker.run(lambda: [self.conditioner.of_text(text, config) for text in texts])

    def _embed_texts(self, prompts: Sequence[str]) -> np.ndarray:
        """As `embed_text`; a log line says which prompts are longer than CLIP reads."""
        for sentence in requests.not_read(prompts, self.dropped_tokens(prompts)):
            logs.line(sentence)
        return self.embed_text(prompts)

    def of_images(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, list[Tensor]]:
        """What asks for images like these: targets and conditions, as `Request` holds them."""
        embedded = self.embed_images(images)
        return embedded, self.worker.run(lambda: [self.conditioner.of_image(row) for row in embedded])

    def dropped_tokens(self, prompts: str | Sequence[str]) -> list[int]:
        """How many tokens at the end of each prompt the CLIP does not read.

        Raises:
            ClipgenError: As `TextToImage.generate`, of a prompt.
        """
        return self.clip.dropped_tokens(requests.checked_prompts(prompts))

    def embed_text(self, prompts: str | Sequence[str]) -> np.ndarray:
        """CLIP embeddings of one or several prompts, float32 [n, d], rows of length 1.

        Raises:
            ClipgenError: As `TextToImage.generate`, of a prompt.
        """
        return self.worker.together(self._embed_each_text, requests.checked_prompts(prompts))

    def _embed_each_text(self, given: list[list[str]]) -> list[np.ndarray]:
        return parted(self.clip.encode_texts(list(itertools.chain(*given))), given)

    def embed_images(self, images: Image.Image | Sequence[Image.Image]) -> np.ndarray:
        """CLIP embeddings of one or several RGB images, float32 [n, d], rows of length 1, in the same space.

        Raises:
            ClipgenError: An input is no image, or has no pixels.
        """
        return self.worker.together(self._embed_each_image, requests.checked_images(images))

    def _embed_each_image(self, given: list[list[Image.Image]]) -> list[np.ndarray]:
        return parted(self.clip.encode_images(list(itertools.chain(*given))), given)

    def search(self, query: str | Image.Image | np.ndarray, k: int = 10) -> list[tuple[str, float]]:
        """The training images nearest to a prompt, an image or an embedding.

        Args:
            query: One of them; an embedding is float32 [d], or [1, d] as `embed_text` and `embed_images`
                return it.
            k: How many.

        Returns:
            (image id, cosine) of each, the nearest first.

        Raises:
            ClipgenError: The query is none of these, k is no positive integer, or the model has no
                embeddings.
        """
        if (count := requests.checked_integer("k", k)) < 1:
            raise ClipgenError(f"k is {count}: give the number of images to find, 1 or more")
        embedded = self._embedded(query)
        found = self.worker.run(lambda: self.conditioner.table.nearest(embedded, count))
        return list(zip(found.ids, found.cosine.tolist(), strict=True))

    def _embedded(self, query: object) -> np.ndarray:
        """The embedding of what is searched for, float32 [d]."""
        if isinstance(query, str):
            return self._embed_texts(requests.checked_prompts(query))[0]
        if isinstance(query, Image.Image):
            return self.embed_images(query)[0]
        return requests.checked_embedding(query, self.conditioner.gap.image_mean.shape[0])

    @property
    def device(self) -> torch.device:
        return self.conditioner.gap.image_mean.device

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """The images of codes, int64 [n, t], or of grids of any size, [n, h, w]."""
        if codes.dim() == 3 and codes.shape[1:] != (self.vqgan.config.grid,) * 2:
            return self.worker.run(lambda: decode(self.vqgan, codes))
        return self.worker.together(self._decode_each, codes.flatten(1))

    def _decode_each(self, given: list[Tensor]) -> list[list[Image.Image]]:
        return parted(decode(self.vqgan, torch.cat(given)), given)

    def decode_partly(self, codes: Tensor) -> list[Image.Image]:
        """Images of grids that are not complete, int64 [n, t], -1 where a code is not known yet."""
        return self.worker.run(lambda: decode_partly(self.vqgan, codes))
