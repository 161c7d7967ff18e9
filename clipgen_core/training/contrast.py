"""Batches and targets of contrastive training. Knows captions; knows neither images nor the model."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipgen_core.data.keys import keys_of_texts
from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.schema import VALIDATION_SHARE

SOME = 16  # images that are held out where 2 % of all would be fewer
WORDS = 4096  # the most frequent ones tell which captions are alike


def distinct_batches(
    captions: list[list[str]], size: int, seed: int, epoch: int
) -> list[list[tuple[int, str]]]:
    """The batches of an epoch.

    No two images of a batch share a caption, so the duplicate of a caption is never a negative. Where
    captions repeat so often that `size` images have to wait for another batch, the first of them fill the
    batch up: `soft_targets` makes their captions positives of each other.

    Args:
        captions: Of each image.
        size: Images a batch; the last ones may be smaller if captions repeat.
        seed: Of the training.
        epoch: Which one.

    Returns:
        For each batch (row of the image, one of its captions).
    """
    rng = np.random.default_rng([seed, epoch])
    waiting = deque(int(i) for i in rng.permutation(len(captions)))
    first = list(islice(waiting, size))
    batches = []
    while waiting:
        chosen: list[int] = []
        taken, later = set[str](), deque[int]()
        while waiting and len(chosen) < size and len(later) < size:
            i = waiting.popleft()
            if taken.isdisjoint(captions[i]):
                chosen.append(i)
                taken.update(captions[i])
            else:
                later.append(i)
        if len(later) == size:
            chosen += [later.popleft() for _ in range(size - len(chosen))]
        batches.append(chosen)
        waiting.extendleft(reversed(later))
    read = [[(i, captions[i][int(rng.integers(len(captions[i])))]) for i in batch] for batch in batches]
    full = [batch for batch in read if 2 * len(batch) > size]
    return full or [[(i, captions[i][0]) for i in first]]


def require_variety(named: str, captions: Iterable[Sequence[str]], tokenizer: Any, enough: int) -> int:
    """Refuse captions that a CLIP reads as one.

    Args:
        named: The file that they are from, for the message.
        captions: Of each image.
        tokenizer: Of the CLIP, one of open_clip's, which cuts long captions off.
        enough: Where counting ends. With fewer different captions, one batch could hold all of them.

    Returns:
        How many captions differ, at most one more than `enough`.

    Raises:
        ClipgenError: All are the same.
    """
    read, every = set[tuple[int, ...]](), dict.fromkeys(text for own in captions for text in own)
    for text in every:
        read.add(tuple(tokenizer([text])[0].tolist()))
        if len(read) > enough:
            break
    if len(read) == 1:
        raise ClipgenError(
            f"all captions in {named} are the same to a CLIP that reads {tokenizer.context_length} tokens "
            f"({next(iter(every))!r}), so it cannot learn from them: give the images captions that differ"
        )
    return len(read)


def word_vectors(captions: list[list[str]]) -> Any:
    """TF-IDF vectors of the words of each image's captions: sparse [images, WORDS], rows of length 1."""
    with needed_for("training a CLIP"):
        from sklearn.feature_extraction.text import TfidfVectorizer
    words = TfidfVectorizer(analyzer=str.split, binary=True, max_features=WORDS, dtype=np.float32)
    return words.fit_transform(" ".join(own).lower() for own in captions)


def soft_targets(words: Tensor, soften: float, alike: Tensor | None = None) -> Tensor:
    """Soft targets of the contrastive loss (after SoftCLIP, arXiv:2303.17561).

    Args:
        words: Word vectors of the captions [n, WORDS].
        soften: The share that goes to other texts of the batch, by the cosine of their word vectors.
        alike: Which captions are the same, bool [n, n]; each is the same as itself only by default.

    Returns:
        Probabilities [n, n], rows of sum 1. 1 - `soften` goes to each image's own text, in equal parts to
        all texts that are the same.
    """
    own = torch.eye(len(words), device=words.device) if alike is None else alike.float()
    related = (words @ words.T).masked_fill(own > 0, 0)
    related = soften * related / related.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return related + own / own.sum(dim=1, keepdim=True) * (1 - related.sum(dim=1, keepdim=True))


def same_rows(rows: Tensor) -> Tensor:
    """Which rows of an integer tensor [n, k] are equal, bool [n, n]; `unique` would make the CPU wait."""
    alike = torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device)
    for column in rows.unbind(1):
        alike &= column.unsqueeze(0) == column.unsqueeze(1)
    return alike


def held_out_rows(files: list[str]) -> list[int]:
    """The images that are left out of training, chosen by their names.

    Args:
        files: The names.

    Returns:
        Rows, ascending: 2 % of them, or more where that would be fewer than SOME; none of fewer than 16
        images.
    """
    count = max(int(VALIDATION_SHARE * len(files)), min(SOME, len(files) // 8))
    return sorted(np.argsort(keys_of_texts(files), kind="stable")[:count].tolist()) if count > 1 else []
