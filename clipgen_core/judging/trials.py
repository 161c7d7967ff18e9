"""A trial: for the prompts of one split, images of every kind that is compared.

Knows prompts and generators; knows neither scores nor the report.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from clipgen_core import filesystem
from clipgen_core.data.decode import decode
from clipgen_core.data.images import image_by_id
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.prompts import Prompt, by_split
from clipgen_core.data.tables import open_table
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.judging.copies import TrainingImages
from clipgen_core.judging.judge import Judge, Scored
from clipgen_core.progress import track
from clipgen_core.settings.evaluation import Config

GENERATED, CHAMPION, RECONSTRUCTED, REAL = "generated", "champion", "reconstructed", "real"
ENCODED_AT_ONCE = 64


class Trial:
    """The images of one split's prompts, of every kind, in the order of the prompts.

    Args:
        config: How many prompts are drawn, and how images are generated.
        split: The name of the split.
        prompts: All prompts of the split, each text once.
        generator: The model that is judged.
        champion: The model in use, if there is one.
        training: The training images of the model that is judged.

    Attributes:
        real_ids: Ids of the prompts' own images.
    """

    def __init__(
        self,
        config: Config,
        split: str,
        prompts: list[Prompt],
        generator: TextToImage,
        champion: TextToImage | None,
        training: TrainingImages,
    ) -> None:
        self.split = split
        self.prompts = _draw(prompts, config)
        self.texts = [prompt.text for prompt in self.prompts]
        self.real_ids, real = _real_images(self.prompts, generator, training.images)
        self.generated = _generate(generator, self.texts, config, f"generating ({split})")
        self.nearest = training.nearest(self.generated)
        self.images = {GENERATED: [one.image for one in self.generated]}
        if champion:
            others = _generate(champion, self.texts, config, f"generating by the champion ({split})")
            self.images[CHAMPION] = [one.image for one in others]
        self.images |= {RECONSTRUCTED: reconstruct(generator, real), REAL: real}

    def scored(self, judge: Judge) -> dict[str, Scored]:
        """The judge's scores of each kind of images."""
        return {kind: judge.score(self.texts, images) for kind, images in self.images.items()}


def trials(
    config: Config,
    prompts: Iterable[Prompt],
    generator: TextToImage,
    champion: TextToImage | None,
    training: TrainingImages,
) -> list[Trial]:
    """One trial for each split of the prompts.

    Args:
        config: Of the evaluation.
        prompts: Of all splits.
        generator: The model that is judged.
        champion: The model in use, if there is one.
        training: The training images of the model that is judged.

    Returns:
        Trials, in the order in which the splits first occur.
    """
    splits = by_split(prompts).items()
    return [Trial(config, split, own, generator, champion, training) for split, own in splits]


@torch.no_grad()
def reconstruct(generator: TextToImage, images: list[Image.Image]) -> list[Image.Image]:
    """Images through the VQGAN's codes and back.

    Args:
        generator: Whose VQGAN is meant.
        images: RGB, of the VQGAN's size.

    Returns:
        RGB images of the same size.
    """
    device = next(generator.vqgan.parameters()).device
    codes = [generator.vqgan.encode(part.to(device)) for part in to_tensor(images).split(ENCODED_AT_ONCE)]
    return generator.decode(torch.cat(codes).flatten(1))


def _draw(prompts: list[Prompt], config: Config) -> list[Prompt]:
    """`scored` prompts, by a seeded draw."""
    order = np.random.default_rng(config.seed).permutation(len(prompts))[: config.scored]
    return [prompts[i] for i in order]


def _generate(generator: TextToImage, texts: list[str], config: Config, label: str) -> list[Generated]:
    """The best of the candidates for each text."""
    generated: list[Generated] = []
    with track(label, len(texts), "prompts") as meter:
        for start in range(0, len(texts), config.batch_prompts):
            batch = texts[start : start + config.batch_prompts]
            rows = generator.generate_scored(batch, seed=config.seed, candidates=config.candidates)
            generated += [row[0] for row in rows]
            meter.advance(len(batch))
    return generated


def _real_images(
    prompts: Sequence[Prompt], generator: TextToImage, images: str
) -> tuple[list[str], list[Image.Image]]:
    """The ids and images of all prompts, of the VQGAN's size."""
    pairs = [_real_image(prompt, generator, images) for prompt in prompts]
    return [id for id, _ in pairs], [image for _, image in pairs]


def _real_image(prompt: Prompt, generator: TextToImage, images: str) -> tuple[str, Image.Image]:
    """The prompt's own image; the stored image nearest to it if it names none."""
    size = generator.vqgan.config.image_size
    if prompt.file and prompt.image:
        return prompt.image, fit_square(image_by_id(open_table(prompt.file), prompt.image), size)
    if prompt.file:
        data = filesystem.read_bytes(prompt.file)
        return hashlib.sha256(data).hexdigest(), fit_square(decode(data).image, size)
    nearest = generator.search(generator.embed_text([prompt.text])[0], 1)[0][0]
    return nearest, fit_square(image_by_id(open_table(images), nearest), size)
