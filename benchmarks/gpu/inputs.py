"""What the measurements run on: untrained models of the real shapes, random images, codes and embeddings."""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from benchmarks.gpu.spent import matrix_peak
from benchmarks.shards import write_shards
from clipgen_core.data.decode import decode_stored
from clipgen_core.data.prefetch import pool_size
from clipgen_core.models.clip import LOCAL, ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.recipes import RECIPES, Recipe
from clipgen_core.settings.clip import Config as ClipConfig
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages.clip import save_local_dir
from clipgen_core.training.checkpoint import Checkpoints, Saved
from clipgen_core.training.provenance import Provenance, TrainingState

TEXTS = ["a red heart", "a green apple"]  # like prompts
VIT_B_32 = ClipConfig(
    image_size=224,
    patch_size=32,
    embed_dim=512,
    vision_width=768,
    vision_layers=12,
    text_width=64,
    text_layers=1,
    train=TrainConfig(steps=1, batch_size=1, learning_rate=1e-3),
)


@dataclass(frozen=True)
class Sizes:
    """Shapes and amounts.

    recipes: Their transformers are trained; the first one's VQGAN, too, and its images are encoded.
    clip: The architecture that embeds and measures perceptual distance.
    jpeg_side: Of the images to decode, in pixels.
    jpegs: How many of them there are.
    rows: Of the token shards.
    batches: Images at once in sampling.
    steps: In which a model of any order samples.
    rounds: How often each thing is timed.
    matrix: Side of the matrices whose product is the peak.
    copied: Bytes of the copy.
    compiled: Whether compiled models are measured, too, which takes longest.
    """

    recipes: Mapping[str, Recipe] = field(
        default_factory=lambda: {name: RECIPES[name] for name in ("l", "b", "paper")}
    )
    clip: ClipConfig = VIT_B_32
    jpeg_side: int = 320
    jpegs: int = 4096
    rows: int = 65_536
    batches: tuple[int, ...] = (1, 8, 64)
    steps: int = 20
    rounds: int = 10
    matrix: int = 8192
    copied: int = 2**30
    compiled: bool = True


@dataclass(frozen=True)
class Inputs:
    """The sizes, the device, a folder for what the measurements read and write, and a free port."""

    sizes: Sizes
    device: torch.device
    folder: Path
    port: int

    @cached_property
    def peak(self) -> float:
        """Operations a second of a large matrix product."""
        return matrix_peak(self.device, self.sizes.matrix, self.sizes.rounds)

    @property
    def clip(self) -> str:
        """The reference of an untrained CLIP."""
        folder = self.folder / "clip"
        if not folder.exists():
            save_local_dir(open_clip.CLIP(**self.sizes.clip.open_clip_config()), self.sizes.clip, str(folder))
        return f"{LOCAL}{folder}"

    def vqgan(self, recipe: Recipe) -> str:
        """A checkpoint of an untrained VQGAN of a recipe's shape."""
        config = recipe.vqgan.model_dump(mode="json")
        provenance = Provenance(config=config, images_digest="none", clip=self.clip)
        checkpoints = Checkpoints(url=f"{self.folder}/vqgan/{provenance.digest}", provenance=provenance)
        if newest := checkpoints.latest():
            return newest.url
        weights = Vqgan(recipe.vqgan.model).state_dict()
        return checkpoints.save(Saved(weights=weights, state=TrainingState(step=1)))

    def shards(self, recipe: Recipe) -> str:
        """Token shards of random codes for a recipe's transformer."""
        model, vqgan = recipe.vqgan.model, self.vqgan(recipe)
        folder = self.folder / "tokens" / vqgan.split("/")[-2]
        if not folder.exists():
            write_shards(
                folder,
                self.sizes.rows,
                codes=model.quantizer.codebook_size,
                grid=model.grid,
                dim=self.sizes.clip.embed_dim,
                clip=self.clip,
                clip_key=ClipEncoder(self.clip).key,
                vqgan=vqgan,
            )
        return str(folder)

    def transformer(self, recipe: Recipe, order: str) -> Transformer:
        """An untrained transformer for sampling, on the CPU.

        Args:
            recipe: Gives its shape.
            order: In which it generates.

        Returns:
            The model, frozen and in evaluation mode.
        """
        shape = recipe.transformer.model.model_copy(update={"order": order})
        codes, grid = recipe.vqgan.model.quantizer.codebook_size, recipe.vqgan.model.grid
        return Transformer(shape, codes, grid, self.sizes.clip.embed_dim).eval().requires_grad_(False)

    def jpegs(self) -> list[bytes]:
        """JPEGs of smooth random pictures; there are 64 different ones."""
        rng, made = np.random.default_rng(0), []
        for _ in range(64):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            picture = coarse.resize((self.sizes.jpeg_side, self.sizes.jpeg_side), Image.Resampling.BICUBIC)
            picture.save(file := io.BytesIO(), "JPEG", quality=90)
            made.append(file.getvalue())
        return [made[i % len(made)] for i in range(self.sizes.jpegs)]


class Pictures:
    """JPEGs in the place of an images table, of which the training of the VQGAN asks rows."""

    def __init__(self, jpegs: list[bytes]) -> None:
        self._jpegs, self._decoders = jpegs, ThreadPoolExecutor(pool_size())
        self.train, self.validation = np.arange(8, len(jpegs)), np.arange(8)

    def map(self, call: Callable[[int, Image.Image], Any], rows: np.ndarray) -> list[Any]:
        """As `ImageTable.map`.

        Args:
            call: The function of (position in `rows`, RGB image).
            rows: Row numbers, int64 [n].

        Returns:
            The n results, in order.
        """
        data = [self._jpegs[row] for row in rows]
        return list(self._decoders.map(lambda i: call(i, decode_stored(data[i])), range(len(data))))
