"""TextToImage: prompts in, pictures out. What users and the model registry load.

A generator is a folder with generator.json, which names its parts: CLIP, VQGAN, transformer and
the table of image embeddings. A transformer checkpoint names the same parts in its config.json.
"""

import copy
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from clipgen_core.data.pixels import to_images
from clipgen_core.data.tables import nearest, open_table, vectors
from clipgen_core.device import fast_dtype
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_transformer, load_vqgan
from clipgen_core.generation.parts import Parts, copy_parts, read_parts
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.settings.sampling import SamplingConfig

MAX_PROMPT_LENGTH = 1000
MAX_PICTURES = 256


@dataclass(frozen=True)
class Generated:
    """One picture, its CLIP score (cosine with the prompt) and its codes [grid, grid]."""

    image: Image.Image
    clip_score: float
    codes: np.ndarray


class TextToImage:
    """A trained generator; safe to call from several threads.

    Examples:
        >>> generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
        >>> generator.generate(["a red heart"], n=4, seed=1)[0][0].save("heart.png")
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
        self.gap = copy.deepcopy(self.transformer.gap)  # statistics stay in fp32
        self.transformer.to(fast_dtype(self.device.type))
        self.embeddings: lance.LanceDataset | None = None
        if parts.embeddings:
            self.embeddings = open_table(parts.embeddings, parts.embeddings_version)
        self._one_at_a_time = threading.Lock()

    @classmethod
    def from_pretrained(cls, source: str) -> "TextToImage":
        """From a generator folder, a transformer checkpoint or a registry URI (`models:/...`).

        Raises:
            ClipgenError: nothing usable there; the message says what is missing.
        """
        if source.startswith("models:/"):
            from clipgen_core.tracking import download_registered

            source = str(download_registered(source))
        return cls(read_parts(source))

    def save_pretrained(self, folder: Path) -> None:
        """Write a self-contained generator folder: weights, CLIP and embeddings table."""
        copy_parts(self.parts, folder)

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        **sampling: Any,
    ) -> list[list[Image.Image]]:
        """`n` pictures a prompt, best CLIP score first; `sampling` overrides SamplingConfig fields.

        The same prompt and seed give the same pictures, whatever else is in the batch.
        """
        made = self.generate_scored(prompts, n, seed, **sampling)
        return [[one.image for one in row] for row in made]

    def generate_scored(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        on_step: Callable[[torch.Tensor], None] | None = None,
        **sampling: Any,
    ) -> list[list[Generated]]:
        """As `generate`, with scores and codes.

        `candidates` pictures are sampled for each one returned; CLIP keeps the best. `on_step` sees the codes
        of all candidates as they are sampled; what it raises ends the sampling.
        """
        check_prompts(prompts)
        config = self._sampling(n, sampling)
        texts = self.embed_text(prompts)
        conditions = [self.conditions(text, config) for text in texts]
        return self._sampled(prompts, texts, conditions, n, seed, config, on_step)

    def variations(
        self,
        pictures: Sequence[Image.Image],
        n: int = 1,
        seed: int = 0,
        on_step: Callable[[torch.Tensor], None] | None = None,
        **sampling: Any,
    ) -> list[list[Generated]]:
        """`n` pictures like each of `pictures`, RGB of any size, the likest by CLIP first.

        Their own embeddings are the condition, as in training: there is no gap to cross.
        """
        config = self._sampling(n, sampling)
        own = self.embed_images(pictures)
        conditions = [self._beside(self._on_device(row), row).unsqueeze(0) for row in own]
        names = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        return self._sampled(names, own, conditions, n, seed, config, on_step)

    def _sampled(
        self,
        names: Sequence[str],
        targets: np.ndarray,
        conditions: Sequence[torch.Tensor],
        n: int,
        seed: int,
        config: SamplingConfig,
        on_step: Callable[[torch.Tensor], None] | None,
    ) -> list[list[Generated]]:
        """The best of the candidates by their cosine with targets [rows, d]; one caller at a time.

        The candidates of a row take its conditions in turn.
        """
        tries = n * config.candidates
        seeds = [picture_seed(name, seed, i) for name in names for i in range(tries)]
        rows = torch.stack([own[i % len(own)] for own in conditions for i in range(tries)])
        with self._one_at_a_time:
            codes = sample_codes(self.transformer, rows, seeds, config, on_step=on_step)
            images = self.decode(codes)
            scores = (self.embed_images(images) * targets.repeat(tries, axis=0)).sum(axis=1)
        side = self.vqgan.config.grid
        made = [
            Generated(image, float(score), grid.reshape(side, side))
            for image, score, grid in zip(images, scores, codes.cpu().numpy(), strict=True)
        ]
        rows_of = [made[i : i + tries] for i in range(0, len(made), tries)]
        return [sorted(row, key=lambda g: -g.clip_score)[:n] for row in rows_of]

    def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts to float32 [n, d], rows of length 1."""
        return self.clip.encode_texts(list(prompts))

    def embed_images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures to float32 [n, d], rows of length 1, in the same space."""
        return self.clip.encode_images(pictures)

    def conditions(self, text: np.ndarray, config: SamplingConfig) -> torch.Tensor:
        """What the transformer is given for a text embedding [d]: float32 [choices, 1 + neighbours, d].

        Text and image embeddings lie in different parts of CLIP's space, and the transformer has
        seen image embeddings only; see SamplingConfig.condition for the ways across.
        """
        if config.condition == "nearest":
            found = vectors(nearest(self.table, text, config.neighbours))
            return torch.stack([self._beside(self._on_device(one), text) for one in found])
        if config.condition == "retrieval":
            return self._beside(self._retrieved(text, config), text).unsqueeze(0)
        ready = self.gap.text if config.condition == "text" else self.gap.shifted
        return self._beside(self._on_device(text), text, ready).unsqueeze(0)

    def _beside(
        self,
        own: torch.Tensor,
        query: np.ndarray,
        ready: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """An embedding made ready, and the query's neighbours beside it where the model wants any."""
        rows = [(ready or self.gap.image)(own)]
        if count := self.transformer.config.neighbours:
            found = self._on_device(vectors(nearest(self.table, query, count)))
            rows += list(self.gap.image(found))
        return torch.stack(rows)

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.copy()).to(self.device)

    def _retrieved(self, text: np.ndarray, config: SamplingConfig) -> torch.Tensor:
        found = nearest(self.table, text, config.neighbours)
        cosine = torch.from_numpy(found["cosine"].to_numpy().copy())
        weight = (cosine / config.neighbour_temperature).softmax(dim=0).float()
        return F.normalize(weight @ torch.tensor(vectors(found)), dim=0).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.gap.image_mean.device

    @property
    def table(self) -> lance.LanceDataset:
        """The image embeddings that prompts are matched with."""
        if self.embeddings is None:
            raise ClipgenError(
                "this model has no table of image embeddings to retrieve from: "
                "use --condition text, or save it again with the embeddings of your pictures"
            )
        return self.embeddings

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> list[Image.Image]:
        """Codes int64 [n, t] to pictures."""
        side = self.vqgan.config.grid
        grids = codes.view(-1, side, side)
        return [image for part in grids.split(64) for image in to_images(self.vqgan.decode(part))]

    def decode_partly(self, codes: torch.Tensor) -> list[Image.Image]:
        """Pictures of grids that are not sampled to their end [n, 1..t]: rows that are begun, grey below."""
        done, side = codes.shape[1], self.vqgan.config.grid
        filled = torch.cat([codes, codes[:, -1:].expand(-1, side**2 - done)], dim=1)
        images = self.decode(filled)
        begun = -(-done // side) * self.vqgan.config.image_size // side
        for image in images:
            image.paste((128, 128, 128), (0, begun, image.width, image.height))
        return images

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        """(picture id, cosine) of the `k` pictures nearest to an embedding [d]."""
        found = nearest(self.table, query, k)
        return list(zip(found["id"].to_pylist(), found["cosine"].to_pylist(), strict=True))

    def _sampling(self, n: int, given: dict[str, Any]) -> SamplingConfig:
        try:
            config = SamplingConfig(**(self.parts.sampling.model_dump() | given))
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            raise ClipgenError(f"sampling setting {name}: {problem['msg']}") from error
        if not 1 <= n * config.candidates <= MAX_PICTURES:
            raise ClipgenError(
                f"n x candidates is {n * config.candidates}: choose between 1 and {MAX_PICTURES}"
            )
        return config


def check_prompts(prompts: Sequence[str]) -> None:
    for prompt in prompts:
        if not prompt.strip():
            raise ClipgenError("a prompt is empty: say what the picture should show")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise ClipgenError(
                f"a prompt has {len(prompt)} characters: at most {MAX_PROMPT_LENGTH} are allowed"
            )


def picture_seed(prompt: str, seed: int, index: int) -> int:
    """The seed of the index-th candidate of a prompt."""
    digest = hashlib.sha256(json.dumps([prompt, seed, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big")
