"""A trial: for the prompts of one split, images of every kind that is compared.

Knows prompts and generators; knows neither scores nor the report.
"""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

from clipgen_core import filesystem
from clipgen_core.data.images import images_by_id
from clipgen_core.data.pixels import decode, fit_square, to_tensor
from clipgen_core.data.prompts import Prompt, by_split
from clipgen_core.data.tables import open_table
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.judging.copies import nearest_training
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
        images: The images table.
    """

    def __init__(
        self,
        config: Config,
        split: str,
        prompts: list[Prompt],
        generator: TextToImage,
        champion: TextToImage | None,
        images: str,
    ) -> None:
        self.split = split
        self.prompts = _draw(prompts, config)
        self.texts = [prompt.text for prompt in self.prompts]
        self.generated = _generate(generator, self.texts, config, f"generating ({split})")
        self.nearest = nearest_training(generator, self.generated, images)
        real = [_real_image(prompt, generator, images) for prompt in self.prompts]
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
    images: str,
) -> list[Trial]:
    """One trial for each split of the prompts.

    Args:
        config: Of the evaluation.
        prompts: Of all splits.
        generator: The model that is judged.
        champion: The model in use, if there is one.
        images: The images table.

    Returns:
        Trials, in the order in which the splits first occur.
    """
    splits = by_split(prompts).items()
    return [Trial(config, split, own, generator, champion, images) for split, own in splits]


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


def _real_image(prompt: Prompt, generator: TextToImage, images: str) -> Image.Image:
    """The prompt's own image; the stored image nearest to it if it names none."""
    if prompt.file:
        image = decode(filesystem.read_bytes(prompt.file)).image
    else:
        nearest = generator.search(generator.embed_text([prompt.text])[0], 1)[0][0]
        (image,) = images_by_id(open_table(images), [nearest]).values()
    return fit_square(image, generator.vqgan.config.image_size)
