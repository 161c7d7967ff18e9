"""TextToImage: prompts in, pictures out. What users and the model registry load.

A generator is a folder with generator.json, which names its parts: CLIP, VQGAN, transformer and
the table of image embeddings. A transformer checkpoint names the same parts in its config.json.
"""

import copy
import hashlib
import json
import shutil
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

from clipgen_core import storage
from clipgen_core.data.pictures import to_images
from clipgen_core.data.tables import nearest, open_table, vectors
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.load import load_transformer, load_vqgan
from clipgen_core.models.clip import LOCAL, ClipEncoder
from clipgen_core.sampling import SamplingConfig, sample_codes
from clipgen_core.schema import Frozen
from clipgen_core.training.checkpoint import read_config

FILE = "generator.json"
MAX_PROMPT_LENGTH = 1000
MAX_PICTURES = 256


class Parts(Frozen):
    """Where the parts of a generator are: absolute, or relative to the folder of generator.json."""

    clip: str
    clip_key: str
    vqgan: str
    transformer: str
    embeddings: str | None = None
    embeddings_version: int | None = None
    sampling: SamplingConfig = SamplingConfig()


@dataclass(frozen=True)
class Generated:
    """One picture, its CLIP score (cosine with the prompt) and its codes [grid, grid]."""

    image: Image.Image
    clip_score: float
    codes: np.ndarray


class TextToImage:
    """A trained generator.

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
        self.transformer.to(torch.bfloat16)
        self.embeddings: lance.LanceDataset | None = None
        if parts.embeddings:
            self.embeddings = open_table(parts.embeddings, parts.embeddings_version)

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
        on_step: Callable[[int], None] | None = None,
        **sampling: Any,
    ) -> list[list[Generated]]:
        """As `generate`, with scores and codes.

        `candidates` pictures are sampled for each one returned; CLIP keeps the best.
        """
        config = self._sampling(prompts, n, sampling)
        texts = self.clip.encode_texts(list(prompts))
        tries = n * config.candidates
        conditions = torch.stack([self.condition(text, config) for text in texts])
        seeds = [picture_seed(p, seed, i) for p in prompts for i in range(tries)]
        rows = conditions.repeat_interleave(tries, dim=0)
        codes = sample_codes(self.transformer, rows, seeds, config, on_step=on_step)
        images = self.decode(codes)
        scores = (self.clip.encode_images(images) * texts.repeat(tries, axis=0)).sum(axis=1)
        side = self.vqgan.config.grid
        made = [
            Generated(image, float(score), grid.reshape(side, side))
            for image, score, grid in zip(images, scores, codes.cpu().numpy(), strict=True)
        ]
        rows_of = [made[i : i + tries] for i in range(0, len(made), tries)]
        return [sorted(row, key=lambda g: -g.clip_score)[:n] for row in rows_of]

    def condition(self, text: np.ndarray, config: SamplingConfig) -> torch.Tensor:
        """What the transformer is given for a text embedding [d]: float32 [1 + neighbours, d].

        Text and image embeddings lie in different parts of CLIP's space, and the transformer has
        seen image embeddings only; see SamplingConfig.condition for the ways across.
        """
        gap, own = self.gap, torch.from_numpy(text).to(self.device)
        if config.condition == "text":
            rows = [gap.text(own)]
        elif config.condition == "shifted":
            rows = [gap.shifted(own)]
        else:
            rows = [gap.image(self._retrieved(text, config))]
        if beside := self.transformer.config.neighbours:
            found = torch.tensor(vectors(nearest(self.table, text, beside)), device=self.device)
            rows += list(gap.image(found))
        return torch.stack(rows)

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

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        """(picture id, cosine) of the `k` pictures nearest to an embedding [d]."""
        found = nearest(self.table, query, k)
        return list(zip(found["id"].to_pylist(), found["cosine"].to_pylist(), strict=True))

    def _sampling(self, prompts: Sequence[str], n: int, given: dict[str, Any]) -> SamplingConfig:
        for prompt in prompts:
            if not prompt.strip():
                raise ClipgenError("a prompt is empty: say what the picture should show")
            if len(prompt) > MAX_PROMPT_LENGTH:
                raise ClipgenError(
                    f"a prompt has {len(prompt)} characters: at most {MAX_PROMPT_LENGTH} are allowed"
                )
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


def picture_seed(prompt: str, seed: int, index: int) -> int:
    """The seed of the index-th candidate of a prompt."""
    digest = hashlib.sha256(json.dumps([prompt, seed, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def copy_parts(parts: Parts, folder: Path) -> None:
    """Copy everything a generator is made of into one folder; no model is loaded for it."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = parts.clip
    if clip.startswith(LOCAL):
        shutil.copytree(storage.local_copy(clip.removeprefix(LOCAL)), folder / "clip")
        clip = f"{LOCAL}clip"
    for name in ("vqgan", "transformer"):
        checkpoint = storage.local_copy(getattr(parts, name))
        shutil.copytree(checkpoint, folder / name, ignore=shutil.ignore_patterns("training.pt"))
    if parts.embeddings:
        rows = open_table(parts.embeddings, parts.embeddings_version).to_table()
        lance.write_dataset(rows, str(folder / "embeddings.lance"))
    copied = Parts(
        clip=clip,
        clip_key=parts.clip_key,
        vqgan="vqgan",
        transformer="transformer",
        embeddings="embeddings.lance" if parts.embeddings else None,
        sampling=parts.sampling,
    )
    (folder / FILE).write_text(copied.model_dump_json(indent=2))


def read_parts(source: str) -> Parts:
    """The parts of a generator folder or of a transformer checkpoint."""
    if not storage.exists(source):
        raise ClipgenError(f"there is no model at {source}: check the path or train one")
    if storage.exists(f"{source}/{FILE}"):
        try:
            parts = Parts.model_validate_json(storage.read_bytes(f"{source}/{FILE}"))
        except ValidationError as error:
            raise ClipgenError(f"{source}/{FILE} is damaged ({first_line(error)})") from error
        return _absolute(parts, source)
    made_from = read_config(source)
    if "tokens" not in made_from:
        raise ClipgenError(f"{source} is no transformer checkpoint: name its folder step-N")
    tokens = made_from["tokens"]
    return Parts(
        clip=tokens["clip"],
        clip_key=tokens["clip_key"],
        vqgan=tokens["vqgan"],
        transformer=source,
        embeddings=tokens["embeddings"],
        embeddings_version=tokens["embeddings_version"],
        sampling=SamplingConfig.model_validate(made_from["config"]["sampling"]),
    )


def _absolute(parts: Parts, folder: str) -> Parts:
    inside = {
        name: f"{folder}/{value}"
        for name in ("vqgan", "transformer", "embeddings")
        if (value := getattr(parts, name)) and "://" not in value and not value.startswith("/")
    }
    if parts.clip.startswith(LOCAL) and not parts.clip.startswith(f"{LOCAL}/"):
        inside["clip"] = f"{LOCAL}{folder}/{parts.clip.removeprefix(LOCAL)}"
    return parts.model_copy(update=inside)
