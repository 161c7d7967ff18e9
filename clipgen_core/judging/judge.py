"""Scores generated images with a CLIP that took no part in generating them, and with Inception if available.

Knows images and prompts, but not what generated the images.
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
    """Images for prompts, one a prompt, with their scores.

    Attributes:
        texts: The prompts.
        images: Their images.
        embeddings: CLIP embeddings of the images, float32 [n, d], of length 1.
        clip_score: Cosine of each image with its prompt, float32 [n].
        rank: Number of other prompts whose cosine with the image is higher than its own prompt's, int64 [n].
    """

    texts: Sequence[str]
    images: list[Image.Image]
    embeddings: np.ndarray
    clip_score: np.ndarray
    rank: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Means over the prompts, and half the width of their 95 % bootstrap intervals as `*/half_width`."""
        values = {"clip_score": self.clip_score}
        values |= {f"recall@{k}": (self.rank < k).astype(float) for k in RECALLS}
        metrics: dict[str, float] = {}
        for name, of_each in values.items():
            interval = bootstrap(of_each)
            metrics |= {name: interval.mean, f"{name}/half_width": interval.half_width}
        return metrics


class Judge:
    """Scores images by their prompts, and sets of images by their distance to a reference set.

    Args:
        clip: The CLIP that scores.
        names: All prompts among which an image's own prompt is ranked.
        inception: A file of Inception weights; without it, distances are computed in CLIP space only.

    Raises:
        ClipgenError: The Inception weights cannot be used.
    """

    def __init__(self, clip: ClipEncoder, names: Sequence[str], inception: str | None = None) -> None:
        self.clip, self.names = clip, list(dict.fromkeys(names))
        self.inception = Inception(inception) if inception else None

    @cached_property
    def name_embeddings(self) -> np.ndarray:
        """CLIP embeddings of the names, float32 [m, d], of length 1."""
        return self.clip.encode_texts(self.names)

    def score(self, texts: Sequence[str], images: list[Image.Image]) -> Scored:
        """Score how well each image fits its prompt.

        Args:
            texts: The prompts, all of which are among the judge's names.
            images: RGB images of any size, one a prompt.

        Returns:
            The images with their scores.
        """
        return self.score_embedded(texts, images, self.clip.encode_images(images))

    def score_embedded(
        self, texts: Sequence[str], images: list[Image.Image], embeddings: np.ndarray
    ) -> Scored:
        """As `score`, for images whose embeddings are available.

        Args:
            texts: The prompts, all of which are among the judge's names.
            images: RGB images of any size, one a prompt.
            embeddings: Their embeddings by the judge's CLIP, float32 [n, d], of length 1.

        Returns:
            The images with their scores.
        """
        cosine = embeddings @ self.name_embeddings.T
        own = cosine[np.arange(len(texts)), [self.names.index(text) for text in texts]]
        return Scored(texts, images, embeddings, own, (cosine > own[:, None]).sum(axis=1))

    def reference(self, images: list[Image.Image], embeddings: np.ndarray | None = None) -> "Reference":
        """Prepare a reference set, with which sets of images are compared.

        Args:
            images: RGB images of one size.
            embeddings: Their embeddings by the judge's CLIP, float32 [n, d]; computed by default.

        Returns:
            The reference set.
        """
        return Reference(self, images, embeddings)


class Reference:
    """A reference set of real images, represented in the judge's feature spaces, sharp and blurred.

    Args:
        judge: The judge.
        images: RGB images of one size.
        embeddings: Their embeddings by the judge's CLIP, float32 [n, d]; computed by default.
    """

    def __init__(self, judge: Judge, images: list[Image.Image], embeddings: np.ndarray | None) -> None:
        self.judge = judge
        self.features = self._features(images, embeddings)

    def distances(self, images: list[Image.Image], embeddings: np.ndarray | None = None) -> dict[str, float]:
        """Compare a set of images with the reference set.

        Args:
            images: RGB images of the reference set's size.
            embeddings: Their embeddings by the judge's CLIP, float32 [m, d]; computed by default.

        Returns:
            FID (sharp, and blurred by 1, 2, 4 and 8 pixels), CMMD, precision, recall, density and coverage in
            CLIP space; with Inception also the FIDs in its space and the Inception score.
        """
        features = self._features(images, embeddings)
        metrics = {
            name: frechet_distance(self.features[name], features[name]) for name in features if "fid" in name
        }
        real, other = self.features["fid_clip"].numpy(), features["fid_clip"].numpy()
        metrics |= {"cmmd": cmmd(real, other), **manifold_scores(real, other)}
        if "logits" in features:
            metrics["inception_score"] = inception_score(features["logits"])
        return metrics

    def _features(self, images: list[Image.Image], embeddings: np.ndarray | None) -> dict[str, Tensor]:
        """Features by the name of the FID that is computed from them, and Inception's logits."""
        features: dict[str, Tensor] = {}
        for radius in (0, *BLURS):
            name, shown = f"_{radius}" if radius else "", blurred(images, radius) if radius else images
            of_clip = embeddings if not radius else None
            if of_clip is None:
                of_clip = self.judge.clip.encode_images(shown)
            features[f"fid_clip{name}"] = torch.from_numpy(of_clip)
            if self.judge.inception:
                features[f"fid{name}"], logits = self.judge.inception.features_and_logits(shown)
                if not radius:
                    features["logits"] = logits
        return features
