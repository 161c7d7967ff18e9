"""ClipEncoder: pictures and prompts to L2-normalised embeddings in one space, by open_clip.

Knows models and their preprocessing; knows nothing of tables or training.
"""

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipgen_core.device import default_device, fast_dtype
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for
from clipgen_core.storage import local_copy

HUB, LOCAL = "hub:", "local-dir:"
BATCH = 256


class ClipEncoder:
    """A CLIP by reference.

    Args:
        reference: `hub:MODEL/PRETRAINED` (open_clip's own names, e.g.
            `hub:ViT-B-32/laion2b_s34b_b79k`) or `local-dir:FOLDER` (open_clip's format:
            open_clip_config.json and open_clip_model.safetensors).
        device: where it runs; by default the GPU when there is one.

    Raises:
        ClipgenError: an unknown name, a missing or damaged file, or no network.
    """

    def __init__(self, reference: str, device: str | None = None) -> None:
        self.reference = reference
        self.device = torch.device(device or default_device())
        self.model, self.preprocess, self.tokenizer = _load(reference)
        self.model.eval().requires_grad_(False).to(self.device)
        self.visual: Any = self.model.visual
        self.key = f"{_safe_name(reference)}-{_digest(self.model)}"

    @property
    def dim(self) -> int:
        projection: Any = self.model.text_projection
        return int(projection.shape[-1])

    @property
    def mean_std(self) -> tuple[Tensor, Tensor]:
        """The channel means and deviations of the preprocessing, each [3, 1, 1]."""
        mean, std = (
            torch.tensor(v, device=self.device) for v in (self.visual.image_mean, self.visual.image_std)
        )
        return mean.view(3, 1, 1), std.view(3, 1, 1)

    @cached_property
    def _fast(self) -> Any:
        """The model with weights of the fast type, for embeddings: autocast spends more time on casting
        weights, batch by batch, than on products (2.6 times as fast on CPUs with AMX, as near to fp32)."""
        dtype = fast_dtype(self.device.type)
        return self.model if dtype is torch.float32 else copy.deepcopy(self.model).to(dtype)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size to float32 [n, d], rows of length 1."""
        return self._run(self._see, images, lambda some: torch.stack([self.preprocess(one) for one in some]))

    def encode_prepared(self, pictures: Tensor) -> np.ndarray:
        """Pictures that `preprocess` made, float32 [n, 3, h, w], as `encode_images`."""
        return self._run(self._see, pictures, lambda some: some)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Prompts to float32 [n, d], rows of length 1."""
        return self._run(self._fast.encode_text, texts, lambda some: self.tokenizer(list(some)))

    def _see(self, pictures: Tensor) -> Tensor:
        embedding: Tensor = self._fast.encode_image(pictures.to(fast_dtype(self.device.type)))
        return embedding

    @torch.no_grad()
    def _run(self, tower: Any, items: Any, prepare: Callable[[Any], Tensor]) -> np.ndarray:
        rows = []
        for start in range(0, len(items), BATCH):
            batch = prepare(items[start : start + BATCH]).to(self.device)
            rows.append(F.normalize(tower(batch).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def embed(self, pictures: Tensor) -> Tensor:
        """Embeddings [n, d] of length 1, differentiable in the pictures, float [n, 3, h, w] in [-1, 1]."""
        model: Any = self.model
        embedding: Tensor = F.normalize(model.encode_image(self._prepared(pictures)).float(), dim=-1)
        return embedding

    def features(self, pictures: Tensor, blocks: int | None = None) -> list[Tensor]:
        """The outputs of the image tower's first `blocks` blocks (all if None), differentiable in the
        pictures, float [n, 3, h, w] in [-1, 1]."""
        indices = list(range(blocks)) if blocks else None
        out = self.visual.forward_intermediates(
            self._prepared(pictures), indices=indices, stop_early=True, intermediates_only=True
        )
        features: list[Tensor] = out["image_intermediates"]
        return features

    def _prepared(self, pictures: Tensor) -> Tensor:
        """Resized and normalised as the weights expect."""
        size = self.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if tuple(pictures.shape[-2:]) != (height, width):
            pictures = F.interpolate(
                pictures, (height, width), mode="bilinear", antialias=True, align_corners=False
            )
        mean, std = self.mean_std
        return ((pictures + 1) / 2 - mean) / std


def _load(reference: str) -> tuple[nn.Module, Any, Any]:
    name, pretrained = _parse(reference)
    logging.getLogger().addFilter(_drop_open_clip_chatter)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        with needed_for(f"the tokenizer of {reference}"):
            tokenizer = open_clip.get_tokenizer(name)
    except ClipgenError:
        raise
    except Exception as error:
        if pretrained:
            raise ClipgenError(
                f"CLIP {reference!r} could not be fetched ({first_line(error)}): check the network, "
                f"or give a downloaded model as {LOCAL}FOLDER"
            ) from error
        raise ClipgenError(
            f"CLIP {reference!r} cannot be read ({first_line(error)}): the folder needs "
            "open_clip_config.json and open_clip_model.safetensors that belong together"
        ) from error
    return model, preprocess, tokenizer


def _parse(reference: str) -> tuple[str, str | None]:
    if reference.startswith(LOCAL):
        folder = local_copy(reference.removeprefix(LOCAL))
        for file in ("open_clip_config.json", "open_clip_model.safetensors"):
            if not (folder / file).is_file():
                raise ClipgenError(f"CLIP folder {folder} has no {file}: check the path")
        return f"{LOCAL}{folder}", None
    model, _, pretrained = reference.removeprefix(HUB).partition("/")
    if not reference.startswith(HUB) or not pretrained:
        raise ClipgenError(f"CLIP reference {reference!r} is neither {HUB}MODEL/PRETRAINED nor {LOCAL}FOLDER")
    if (model, pretrained) not in open_clip.list_pretrained():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "no weights"
        raise ClipgenError(f"open_clip knows {known} for {model!r}, not {pretrained!r}: choose one")
    return model, pretrained


def _drop_open_clip_chatter(record: logging.LogRecord) -> bool:
    return "open_clip" not in record.pathname or record.levelno > logging.ERROR


def _safe_name(reference: str) -> str:
    if reference.startswith(LOCAL):
        folder = local_copy(reference.removeprefix(LOCAL))
        config = json.loads((folder / "open_clip_config.json").read_text())
        vision = config["model_cfg"].get("vision_cfg", {})
        return f"local-{vision.get('image_size', '')}px"
    return re.sub(r"[^\w.-]+", "-", reference.removeprefix(HUB))


def _digest(model: nn.Module) -> str:
    """12 hex digits over names and values of all weights."""
    combined = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        combined.update(name.encode())
        combined.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else str(value.item()).encode()
        )
    return combined.hexdigest()[:12]
