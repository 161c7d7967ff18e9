"""A judge of pictures made for prompts: a CLIP, and Inception where its weights are at hand.

Knows pictures and prompts; does not know what made the pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgen_core.judging.inception import Inception
from clipgen_core.judging.metrics import (
    BLURS,
    blurred,
    bootstrap,
    cmmd,
    frechet_distance,
    inception_score,
    manifold_scores,
)
from clipgen_core.models.clip import ClipEncoder

RECALLS = (1, 5)


@dataclass(frozen=True)
class Scored:
    """Pictures, one a prompt, and what the judge says of each.

    clip_score: cosine with the own prompt [n]; better: how many other prompts fit better [n]; embedded
    [n, d].
    """

    texts: Sequence[str]
    pictures: list[Image.Image]
    embedded: np.ndarray
    clip_score: np.ndarray
    better: np.ndarray

    def figures(self) -> dict[str, float]:
        """Means over the prompts and half the width of their 95 % bootstrap interval."""
        each = {"clip_score": self.clip_score}
        each |= {f"recall@{k}": (self.better < k).astype(float) for k in RECALLS}
        made: dict[str, float] = {}
        for name, values in each.items():
            interval = bootstrap(values)
            made |= {name: interval.mean, f"{name}/half_width": interval.half_width}
        return made


class Judge:
    """Scores pictures by retrieval among `names`, and sets of pictures by their distance to real ones.

    Args:
        names: all prompts that a picture is matched with.
        inception: a file of Inception weights; without it there is no FID of Inception's space.
    """

    def __init__(self, clip: ClipEncoder, names: Sequence[str], inception: str | None = None) -> None:
        self.clip, self.names = clip, list(dict.fromkeys(names))
        self.inception = Inception(inception) if inception else None

    @cached_property
    def named(self) -> np.ndarray:
        return self.clip.encode_texts(self.names)

    def score(self, texts: Sequence[str], pictures: list[Image.Image]) -> Scored:
        """How well each picture fits its text, which is one of the names."""
        embedded = self.clip.encode_images(pictures)
        return self.score_embedded(texts, pictures, embedded)

    def score_embedded(
        self, texts: Sequence[str], pictures: list[Image.Image], embedded: np.ndarray
    ) -> Scored:
        cosine = embedded @ self.named.T
        own = cosine[np.arange(len(texts)), [self.names.index(text) for text in texts]]
        return Scored(texts, pictures, embedded, own, (cosine > own[:, None]).sum(axis=1))

    def reference(self, pictures: list[Image.Image], embedded: np.ndarray | None = None) -> "Reference":
        """Real pictures that sets are compared with; `embedded` where this judge has seen them [n, d]."""
        return Reference(self, pictures, embedded)


class Reference:
    """Real pictures, in the judge's spaces, sharp and blurred."""

    def __init__(self, judge: Judge, pictures: list[Image.Image], embedded: np.ndarray | None) -> None:
        self.judge = judge
        self.seen = self._spaces(pictures, embedded)

    def distances(self, pictures: list[Image.Image], embedded: np.ndarray | None = None) -> dict[str, float]:
        """FID (sharp, and blurred by 1, 2, 4, 8 pixels) and CMMD in CLIP space, precision, recall, density
        and coverage; with Inception also its FIDs and the Inception score."""
        other = self._spaces(pictures, embedded)
        made = {name: frechet_distance(self.seen[name], other[name]) for name in other if "fid" in name}
        real, seen = self.seen["fid_clip"].numpy(), other["fid_clip"].numpy()
        made |= {"cmmd": cmmd(real, seen), **manifold_scores(real, seen)}
        if "logits" in other:
            made["inception_score"] = inception_score(other["logits"])
        return made

    def _spaces(self, pictures: list[Image.Image], embedded: np.ndarray | None) -> dict[str, Tensor]:
        spaces: dict[str, Tensor] = {}
        for radius in (0, *BLURS):
            name, shown = f"_{radius}" if radius else "", blurred(pictures, radius) if radius else pictures
            known = embedded if embedded is not None and not radius else self.judge.clip.encode_images(shown)
            spaces[f"fid_clip{name}"] = torch.from_numpy(known)
            if self.judge.inception:
                features, logits = self.judge.inception.look(shown)
                spaces[f"fid{name}"] = features
                if not radius:
                    spaces["logits"] = logits
        return spaces
