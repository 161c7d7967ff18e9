"""ClipEncoder: images and texts to L2-normalised embeddings in one space, by open_clip.

Knows models and their preprocessing; knows nothing of tables or training.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipgen_core.device import default_device, fast_dtype
from clipgen_core.models.clip_files import absolute, key, load
from clipgen_core.schema import LOCAL

__all__ = ["LOCAL", "ClipEncoder"]

BATCH = 256


class ClipEncoder:
    """A frozen CLIP model.

    Args:
        reference: `hub:MODEL/PRETRAINED` (open_clip's own names, for example
            `hub:ViT-B-32/laion2b_s34b_b79k`), `hf-hub:ORG/NAME` (a repository of the Hugging Face Hub in
            open_clip's format) or `local-dir:FOLDER` (the same files in a folder: open_clip_config.json, and
            open_clip_model.safetensors or open_clip_pytorch_model.bin).
        device: The device that it runs on; by default the GPU if there is one.
        dtype: The type in which images are embedded; by default bf16 where it is faster. Texts are embedded
            in fp32: in bf16, their nearest images depended on the texts that were embedded with them.

    Attributes:
        reference: The same, with an absolute path to a folder.
        key: Name and digest of the weights, which names the embeddings table of this CLIP.

    Raises:
        ClipgenError: The name is unknown, a file is missing or damaged, a package that the model needs is not
            installed, or the network is not available.
    """

    def __init__(self, reference: str, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        self.reference = absolute(reference)
        self.device = torch.device(device or default_device())
        self.dtype = dtype or fast_dtype(self.device)
        self.model, self.preprocess, self.tokenizer = load(reference)
        self.model.eval().requires_grad_(False).to(self.device)
        self.visual: Any = self.model.visual
        self.key = key(reference, self.model)

    @cached_property
    def dim(self) -> int:
        """Width d of the embeddings. Each class of models keeps it elsewhere, so one image is embedded."""
        with torch.no_grad():
            return int(self.embed(self._blank()).shape[-1])

    @cached_property
    def blocks(self) -> int:
        """Number of blocks of the image tower whose outputs `features` can give."""
        with torch.no_grad():
            return len(self.features(self._blank()))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the image tower takes, in pixels."""
        size = self.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @cached_property
    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the channels in the preprocessing, each float32 [3, 1, 1]."""
        mean, std = (
            torch.tensor(v, device=self.device) for v in (self.visual.image_mean, self.visual.image_std)
        )
        return mean.view(3, 1, 1), std.view(3, 1, 1)

    @cached_property
    def _fast(self) -> Any:
        """The model with its weights cast once: autocast would spend more time on casting the weights for
        each batch than on matrix products (2.6 times as fast on CPUs with AMX, and as close to fp32)."""
        return self.model if self.dtype is torch.float32 else copy.deepcopy(self.model).to(self.dtype)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed RGB images of any size; returns float32 [n, d], rows of length 1."""
        return self._run(
            self._encode, images, lambda batch: torch.stack([self.preprocess(image) for image in batch])
        )

    def encode_prepared(self, images: Tensor) -> np.ndarray:
        """As `encode_images`, for images that `preprocess` has returned, float32 [n, 3, h, w]."""
        return self._run(self._encode, images, lambda batch: batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; returns float32 [n, d], rows of length 1."""
        return self._run(self.model.encode_text, texts, lambda batch: self.tokenizer(list(batch)))

    def dropped_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each text are not read, as the text is longer than the context."""
        return [max(0, self._tokens(text) - self.tokenizer.context_length) for text in texts]

    def _tokens(self, text: str) -> int:
        """Tokens of a whole text, with those that mark its begin and end."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            return len(tokenizer.encode(text)) + 2
        clean = getattr(tokenizer, "clean_fn", str)
        return len(tokenizer.tokenizer(clean(text), verbose=False).input_ids)

    def _encode(self, images: Tensor) -> Tensor:
        embedding: Tensor = self._fast.encode_image(images.to(self.dtype))
        return embedding

    @torch.no_grad()
    def _run(self, tower: Any, items: Any, prepare: Callable[[Any], Tensor]) -> np.ndarray:
        rows = []
        for start in range(0, len(items), BATCH):
            batch = prepare(items[start : start + BATCH]).to(self.device)
            rows.append(F.normalize(tower(batch).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images with gradients: float [n, 3, h, w] in [-1, 1] to float32 [n, d], rows of length 1."""
        model: Any = self.model
        embedding: Tensor = F.normalize(model.encode_image(self._preprocessed(images)).float(), dim=-1)
        return embedding

    def features(self, images: Tensor, blocks: int | None = None) -> list[Tensor]:
        """The outputs of the image tower's blocks, with gradients.

        Args:
            images: Float [n, 3, h, w] in [-1, 1].
            blocks: Number of blocks, counted from the input; all by default.

        Returns:
            One tensor a block, float [n, c, h', w'].
        """
        indices = list(range(blocks)) if blocks else None
        out = self.visual.forward_intermediates(
            self._preprocessed(images), indices=indices, stop_early=True, intermediates_only=True
        )
        features: list[Tensor] = out["image_intermediates"]
        return features

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, *self.image_size, device=self.device)

    def _preprocessed(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], resized and normalised as the weights expect."""
        size = self.image_size
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = self.mean_std
        return ((images + 1) / 2 - mean) / std
