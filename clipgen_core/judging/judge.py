"""Scores images with CLIP, and represents them by features of CLIP, and of Inception if available.

Knows images and prompts, but not what generated the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from clipgen_core.judging.inception import Inception
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.models.clip import ClipEncoder

RECALLS = (1, 5)
CLIP, INCEPTION, LOGITS = "clip", "inception", "logits"  # the spaces of features
Features = dict[str, np.ndarray]  # float32 [n, d], by space


@dataclass(frozen=True)
class Scored:
    """Images for prompts, one a prompt, with their scores.

    Attributes:
        texts: The prompts.
        images: Their images.
        embeddings: CLIP embeddings of the images, float32 [n, d], of length 1.
        clip_score: Cosine of each image with its prompt, float32 [n].
        rank: Number of other prompts whose cosine with the image is higher than its own prompt's, int64 [n].
        above_others: By how much `clip_score` is above the mean cosine of the image with the other texts,
            float32 [n].
    """

    texts: Sequence[str]
    images: list[Image.Image]
    embeddings: np.ndarray
    clip_score: np.ndarray
    rank: np.ndarray
    above_others: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Means over the prompts, half the width of their 95 % bootstrap intervals as `*/half_width`, and the
        mean cosine with the other prompts as `other_prompts`."""
        values = {"clip_score": self.clip_score}
        values |= {f"recall@{k}": (self.rank < k).astype(float) for k in RECALLS}
        metrics: dict[str, float] = {}
        for name, of_each in values.items():
            interval = bootstrap(of_each)
            metrics |= {name: interval.mean, f"{name}/half_width": interval.half_width}
        return metrics | {"other_prompts": float((self.clip_score - self.above_others).mean())}


class Judge:
    """Scores images by their prompts, and computes the features by which sets of images are compared.

    Args:
        clip: The CLIP that scores.
        names: All prompts among which an image's own prompt is ranked.
        inception: A file of Inception weights; without it, there are features of CLIP only.

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
        columns = [self.names.index(text) for text in texts]
        own, of_texts = cosine[np.arange(len(texts)), columns], cosine[:, columns].mean(axis=1)
        gain = (own - of_texts) * len(texts) / max(len(texts) - 1, 1)  # the mean of all texts has its own
        return Scored(texts, images, embeddings, own, (cosine > own[:, None]).sum(axis=1), gain)

    def features(self, images: list[Image.Image], embeddings: np.ndarray | None = None) -> Features:
        """The features of images in every space of the judge.

        Args:
            images: RGB images of one size.
            embeddings: Their embeddings by the judge's CLIP, float32 [n, d]; computed by default.

        Returns:
            Float32 [n, d] by space: CLIP, and with Inception weights also INCEPTION and LOGITS.
        """
        features = {CLIP: self.clip.encode_images(images) if embeddings is None else embeddings}
        if self.inception:
            of_inception, logits = self.inception.features_and_logits(images)
            features |= {INCEPTION: of_inception.numpy(), LOGITS: logits.numpy()}
        return features
