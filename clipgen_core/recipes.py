"""Named full configurations, and new values for single settings of them.

demo   64 px emoji, 20 minutes on two CPU cores
long   the demo with more codes, a deeper CLIP and up to three times the steps
photos 64 px photographs in 16 x 16 codes, three quarters of an hour on two CPU cores
quick  the demo's architectures in under 3 minutes: every stage runs, the images show nothing yet
paper  256 px as CLIP-GEN: VQGAN f16 with 16,384 codes of 256 dimensions, GPT-2 of 24 layers (0.3 B)
b l xl 256 px as LlamaGen: VQGAN f16 with 16,384 codes of 8 dimensions, decoders of 0.1 B, 0.3 B, 0.8 B

The 256 px recipes use a public CLIP, are meant for GPUs with bf16, and train their VQGAN from scratch unless
`vqgan.start_from` names an imported one, which gives better images sooner.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.models.shapes import TRANSFORMERS, VQGANS
from clipgen_core.schema import Frozen
from clipgen_core.settings import (
    catalogue,
    clip,
    duplicates,
    embeddings,
    evaluation,
    images,
    tokens,
    transformer,
    vqgan,
)
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.training import TrainConfig

DEFAULT = "demo"


class Recipe(Frozen):
    """One configuration for every stage.

    >>> named("demo").override({"vqgan.train.steps": 10}).vqgan.train.steps
    10
    """

    clip: clip.Config
    """Training a small CLIP on captioned images, where no public one fits."""
    images: images.Config
    """Reading the images of a source into a table."""
    embeddings: embeddings.Config
    """Embedding all images by CLIP."""
    duplicates: duplicates.Config
    """Looking up near-duplicates among the embeddings."""
    vqgan: vqgan.Config
    """Training the VQGAN, which turns images into discrete codes and back."""
    tokens: tokens.Config
    """Encoding all images by the VQGAN into token shards."""
    transformer: transformer.Config
    """Training the transformer, which generates codes from a CLIP embedding."""
    evaluation: evaluation.Config
    """Generating and scoring images, and deciding whether a model may be promoted."""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        steps, codes = self.transformer.sampling.steps, self.vqgan.model.grid**2
        if steps > codes:
            raise ClipgenError(
                f"transformer.sampling.steps is {steps}, but an image has only {codes} codes: lower it"
            )
        return self

    def override(self, overrides: Mapping[str, Any]) -> "Recipe":
        """A recipe with other values for some settings; this one stays as it is.

        Args:
            overrides: The new values by dotted name, the stage first. All of them are validated together, so
                settings that depend on each other can change at once.

        Returns:
            A new frozen recipe.

        Raises:
            ClipgenError: There is no setting of that name, or its value is not allowed.
        """
        return catalogue.override(self, overrides)


def named(recipe: str) -> Recipe:
    """A recipe by name.

    Raises:
        ClipgenError: There is no recipe of that name.
    """
    if recipe not in RECIPES:
        raise ClipgenError(f"there is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def demo() -> Recipe:
    """64 px emoji, small enough for two CPU cores."""
    return Recipe(
        clip=clip.Config(
            image_size=64,
            vision_width=192,
            text_width=192,
            text_layers=1,
            context_length=16,
            patch_dropout=0.5,
            soften=0.3,
            train=TrainConfig(
                steps=700,
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
        duplicates=duplicates.Config(),
        vqgan=vqgan.Config(
            model=VQGANS["demo"],
            train=TrainConfig(steps=560, batch_size=16, learning_rate=4e-4, checkpoint_every=280),
            perceptual_blocks=3,
            adversarial_from=0.75,
        ),
        tokens=tokens.Config(views=1),
        transformer=transformer.Config(
            model=TRANSFORMERS["nano"],
            train=TrainConfig(steps=660, batch_size=64, learning_rate=4e-3, optimizer="muon", ema_decay=0.99),
            sampling=SamplingConfig(
                temperature=0.6, guidance_scale=1.5, candidates=4, condition="nearest", neighbours=3
            ),
            corrupt=0.4,
        ),
        evaluation=evaluation.Config(shown=DOZEN, scored=96, candidates=4),
    )


def quick() -> Recipe:
    """The demo with a handful of steps, and thresholds that every model reaches."""
    return demo().override(
        {
            "clip.train.steps": 4,
            "vqgan.train.steps": 4,
            "transformer.train.steps": 4,
            "evaluation.images_shown": 1,
            "evaluation.scored": 16,
            "evaluation.candidates": 1,
            "evaluation.reconstructions": 6,
            "evaluation.reference_images": 256,
            "evaluation.thresholds.min_prompts": 2,
            "evaluation.thresholds.min_above_shuffled": -2,
            "evaluation.thresholds.min_codebook_usage": 0,
            "evaluation.thresholds.max_copies": 1,
        }
    )


def long() -> Recipe:
    """The demo trained beyond the lowest validation loss: images get sharper as they become memorised copies,
    so copies do not prevent promotion."""
    return demo().override(
        {
            "clip.train.steps": 800,
            "clip.text_layers": 3,
            "vqgan.train.steps": 1800,
            "vqgan.model.quantizer.codebook_size": 512,
            "transformer.train.steps": 1900,
            "evaluation.thresholds.max_copies": 1,
        }
    )


def photos() -> Recipe:
    """64 px photographs. The demo's 8 x 8 codes leave them blurred; 16 x 16 are sharp after minutes, and
    most of the time goes to the transformer. `benchmarks.photos` made the comparison."""
    return demo().override(
        {
            "clip.train.steps": 350,
            "vqgan.model.channels": (96, 160),
            "vqgan.train.steps": 1000,
            "vqgan.train.checkpoint_every": 500,
            "transformer.train.batch_size": 32,
            "transformer.train.learning_rate": 3e-3,
            "transformer.train.steps": 1400,
            "transformer.train.checkpoint_every": 200,
            "transformer.sampling.temperature": 0.9,
            "transformer.sampling.guidance_scale": 2.0,
            "transformer.sampling.neighbours": 50,
        }
    )


def large(vqgan_shape: str, transformer_shape: str, micro_batch: int) -> Recipe:
    """256 px, with the schedule of LlamaGen (arXiv:2406.06525, appendix): AdamW, bf16, EMA.

    Args:
        vqgan_shape: A name in `clipgen_core.models.shapes.VQGANS`.
        transformer_shape: A name in `clipgen_core.models.shapes.TRANSFORMERS`.
        micro_batch: Of the transformer: as large as 60 GB allow.

    Returns:
        The recipe; its demo CLIP is used only where a CLIP is trained at all.
    """
    seldom = {"log_every": 50, "checkpoint_every": 5_000}
    return Recipe(
        clip=demo().clip,
        images=images.Config(min_side=64),
        embeddings=embeddings.Config(),
        duplicates=duplicates.Config(),
        vqgan=vqgan.Config(
            model=VQGANS[vqgan_shape],
            train=TrainConfig(
                steps=400_000,
                batch_size=128,
                micro_batch=32,
                learning_rate=1e-4,
                weight_decay=0.05,
                ema_decay=0.999,
                **seldom,
            ),
            adversarial=0.5,
            adversarial_from=0.05,
            discriminator_layers=3,
        ),
        tokens=tokens.Config(views=2),
        transformer=transformer.Config(
            model=TRANSFORMERS[transformer_shape],
            train=TrainConfig(
                steps=300_000,
                batch_size=256,
                micro_batch=micro_batch,
                learning_rate=1e-4,
                ema_decay=0.9999,
                patience=10,
                **seldom,
            ),
            sampling=SamplingConfig(temperature=1.0, top_k=500, top_p=0.95),
            corrupt=0.1,
            recompute=transformer_shape == "xl",
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
RECIPES: dict[str, Recipe] = {
    "demo": demo(),
    "quick": quick(),
    "long": long(),
    "photos": photos(),
    "paper": large("paper", "paper", micro_batch=128),
    "b": large("modern", "b", micro_batch=128),
    "l": large("modern", "l", micro_batch=64),
    "xl": large("modern", "xl", micro_batch=128),
}
