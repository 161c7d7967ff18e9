"""Named full configurations. A number that two stages share stands here once.

demo   64 px emoji on two CPU cores in under 25 minutes: recognisable pictures for most names
quick  the demo's shape in under 3 minutes: every stage runs, the pictures mean nothing
base   256 px photographs on one GPU with a public CLIP: a starting point for your own pictures
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.models.quantizer import QuantizerConfig
from clipgen_core.models.transformer import TransformerConfig
from clipgen_core.models.vqgan import VqganConfig
from clipgen_core.sampling import SamplingConfig
from clipgen_core.schema import Frozen
from clipgen_core.stages import clip, embeddings, evaluation, images, tokens, transformer, vqgan
from clipgen_core.training.loop import TrainConfig


class Recipe(Frozen):
    """One configuration for every stage."""

    clip: clip.Config
    images: images.Config
    embeddings: embeddings.Config
    vqgan: vqgan.Config
    tokens: tokens.Config
    transformer: transformer.Config
    evaluation: evaluation.Config


def configure(recipe: str, stage: str, overrides: Mapping[str, Any]) -> Any:
    """A stage's config from a recipe, single fields overridden by dotted names.

    >>> configure("demo", "vqgan", {"train.steps": 10})

    Raises:
        ClipgenError: an unknown recipe or field, or a value that does not fit.
    """
    if recipe not in RECIPES:
        raise ClipgenError(f"there is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    config: Frozen = getattr(RECIPES[recipe], stage)
    values = config.model_dump()
    for name, value in overrides.items():
        *parents, last = name.split(".")
        target: Any = values
        for parent in parents:
            target = target.get(parent)
            if not isinstance(target, dict):
                raise ClipgenError(f"{stage} has no setting {name!r}: see clipgen_core.recipes")
        target[last] = value
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise ClipgenError(f"{stage} setting {name!r}: {problem['msg']}") from error


def demo(*, clip_steps: int = 340, vqgan_steps: int = 230, transformer_steps: int = 520) -> Recipe:
    return Recipe(
        clip=clip.Config(
            image_size=64,
            vision_width=192,
            text_width=192,
            context_length=16,
            patch_dropout=0.5,
            train=TrainConfig(
                steps=clip_steps,
                batch_size=160,
                learning_rate=2e-3,
                weight_decay=0.1,
                betas=(0.9, 0.98),
                optimizer="muon",
                warmup_share=0.1,
            ),
        ),
        images=images.Config(),
        embeddings=embeddings.Config(),
        vqgan=vqgan.Config(
            model=VqganConfig(
                image_size=64,
                channels=(64, 128, 192),
                blocks=2,
                patch=2,
                quantizer=QuantizerConfig(codebook_size=256, code_dim=16),
            ),
            train=TrainConfig(steps=vqgan_steps, batch_size=32, learning_rate=4e-4),
            adversarial_from=0.75,
        ),
        tokens=tokens.Config(views=1),
        transformer=transformer.Config(
            model=TransformerConfig(width=320, layers=6, heads=5, dropout=0.0),
            train=TrainConfig(
                steps=transformer_steps, batch_size=64, learning_rate=4e-3, optimizer="muon", ema_decay=0.99
            ),
            sampling=SamplingConfig(temperature=0.5, guidance_scale=2.0, candidates=8),
            corrupt=0.4,
        ),
        evaluation=evaluation.Config(shown=DOZEN, candidates=8),
    )


def quick() -> Recipe:
    """The demo with a handful of steps."""
    full = demo(clip_steps=12, vqgan_steps=8, transformer_steps=8)
    return full.model_copy(
        update={
            "evaluation": evaluation.Config(
                shown=DOZEN, pictures_shown=1, scored=8, candidates=1, reconstructions=6
            ),
        }
    )


def base() -> Recipe:
    """256 px, f16, with a public CLIP: bf16 on one GPU of 24 GB."""
    return Recipe(
        clip=demo().clip,
        images=images.Config(min_side=64),
        embeddings=embeddings.Config(),
        vqgan=vqgan.Config(
            model=VqganConfig(
                image_size=256,
                channels=(128, 128, 256, 256, 512),
                quantizer=QuantizerConfig(codebook_size=4096, code_dim=32),
            ),
            train=TrainConfig(
                steps=100_000,
                batch_size=16,
                learning_rate=1e-4,
                log_every=50,
                validate_every=2_000,
                checkpoint_every=2_000,
            ),
            discriminator_layers=3,
        ),
        tokens=tokens.Config(views=2),
        transformer=transformer.Config(
            model=TransformerConfig(width=768, layers=12, heads=12, dropout=0.1),
            train=TrainConfig(
                steps=100_000,
                batch_size=64,
                learning_rate=3e-4,
                ema_decay=0.999,
                log_every=50,
                validate_every=2_000,
                checkpoint_every=2_000,
            ),
            corrupt=0.2,
        ),
        evaluation=evaluation.Config(),
    )


DOZEN = (
    "a red heart",
    "a green apple",
    "a smiling face",
    "a star",
    "a blue car",
    "a tree",
    "a cat face",
    "a house",
    "the sun",
    "a pizza",
    "a sailboat",
    "a rose",
)
RECIPES: dict[str, Recipe] = {"demo": demo(), "quick": quick(), "base": base()}
