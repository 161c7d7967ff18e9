"""Prompts for an evaluation whose user names none: classes of ImageNet that the training images resemble.

Knows embeddings and names; knows nothing of scores.
"""

import numpy as np
import open_clip

from clipgen_core.data.prompts import Prompt
from clipgen_core.data.tables import open_table, vectors
from clipgen_core.generation.generator import TextToImage

SAMPLE = 4096  # training images that choose
TEMPLATE = "a photo of a {}"


def class_prompts(generator: TextToImage, count: int) -> list[Prompt]:
    """Classes by how many training images are nearest to them, then by the mean cosine to all.

    Args:
        generator: Its CLIP compares; its table of embeddings holds the training images. Without one, the
            first classes are taken.
        count: How many classes.

    Returns:
        Prompts without images.
    """
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    if generator.parts.embeddings:
        texts = generator.embed_text([TEMPLATE.format(name) for name in names])
        table = open_table(generator.parts.embeddings, generator.parts.embeddings_version)
        cosine = vectors(table.to_table(columns=["vector"], limit=SAMPLE)) @ texts.T
        votes = np.bincount(cosine.argmax(axis=1), minlength=len(names))
        names = [names[i] for i in np.lexsort((-cosine.mean(axis=0), -votes))]
    return [Prompt(name, "all", None) for name in names[:count]]
