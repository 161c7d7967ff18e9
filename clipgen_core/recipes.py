"""Named full configurations. A number that two stages share stands here once.

demo   64 px emoji, 20 minutes on two CPU cores
long   the demo with more codes, a deeper CLIP and up to three times the steps
quick  the demo's shape in under 3 minutes: every stage runs, the pictures mean nothing
paper  256 px as CLIP-GEN: VQGAN f16 with 16,384 codes of 256 dimensions, GPT-2 of 24 layers (0.3 B)
b l xl 256 px as LlamaGen: VQGAN f16 with 16,384 codes of 8 dimensions, decoders of 0.1 B, 0.3 B, 0.8 B

The 256 px recipes take a public CLIP, are written for GPUs under bf16, and train their VQGAN from
scratch unless vqgan.start_from names an imported one, which is the better start.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.models.shapes import TRANSFORMERS, VQGANS
from clipgen_core.schema import Frozen
from clipgen_core.settings import clip, duplicates, embeddings, evaluation, images, tokens, transformer, vqgan
from clipgen_core.settings.evaluation import Thresholds
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.training import TrainConfig


class Recipe(Frozen):
    """One configuration for every stage."""

    clip: clip.Config
    images: images.Config
    embeddings: embeddings.Config
    duplicates: duplicates.Config
    vqgan: vqgan.Config
    tokens: tokens.Config
    transformer: transformer.Config
    evaluation: evaluation.Config


def named(recipe: str) -> Recipe:
    """A recipe by name.

    Raises:
        ClipgenError: there is none.
    """
    if recipe not in RECIPES:
        raise ClipgenError(f"there is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def configure(recipe: str, stage: str, overrides: Mapping[str, Any]) -> Any:
    """A stage's config from a recipe, single fields overridden by dotted names.

    >>> configure("demo", "vqgan", {"train.steps": 10})

    Raises:
        ClipgenError: an unknown recipe or field, or a value that does not fit.
    """
    config: Frozen = getattr(named(recipe), stage)
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


def demo(*, clip_steps: int = 700, vqgan_steps: int = 560, transformer_steps: int = 660) -> Recipe:
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
        duplicates=duplicates.Config(),
        vqgan=vqgan.Config(
            model=VQGANS["demo"],
            train=TrainConfig(steps=vqgan_steps, batch_size=16, learning_rate=4e-4, checkpoint_every=280),
            perceptual_blocks=3,
            adversarial_from=0.75,
        ),
        tokens=tokens.Config(views=1),
        transformer=transformer.Config(
            model=TRANSFORMERS["nano"],
            train=TrainConfig(
                steps=transformer_steps, batch_size=64, learning_rate=4e-3, optimizer="muon", ema_decay=0.99
            ),
            sampling=SamplingConfig(
                temperature=0.6, guidance_scale=1.5, candidates=4, condition="nearest", neighbours=3
            ),
            corrupt=0.4,
        ),
        evaluation=evaluation.Config(shown=DOZEN, scored=96, candidates=4),
    )


def quick() -> Recipe:
    """The demo with a handful of steps."""
    full = demo(clip_steps=12, vqgan_steps=8, transformer_steps=8)
    return full.model_copy(
        update={
            "evaluation": evaluation.Config(
                shown=DOZEN,
                pictures_shown=1,
                scored=16,
                candidates=1,
                reconstructions=6,
                thresholds=Thresholds(min_codebook_usage=0, max_copies=1),
            ),
        }
    )


def long() -> Recipe:
    """The demo trained on past the best held-out loss: pictures get sharper by reciting what was seen,
    so that copies are no reason to refuse it."""
    full = demo(clip_steps=800, vqgan_steps=1800, transformer_steps=1900)
    deeper = full.clip.model_copy(update={"text_layers": 3})
    quantizer = VQGANS["demo"].quantizer.model_copy(update={"codebook_size": 512})
    model = VQGANS["demo"].model_copy(update={"quantizer": quantizer})
    judged = full.evaluation.model_copy(update={"thresholds": Thresholds(max_copies=1)})
    trained = full.vqgan.model_copy(update={"model": model})
    return full.model_copy(update={"clip": deeper, "vqgan": trained, "evaluation": judged})


def large(vqgan_shape: str, transformer_shape: str) -> Recipe:
    """256 px, with the schedule of LlamaGen (arXiv:2406.06525, appendix): AdamW, bf16, EMA."""
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
                steps=300_000, batch_size=256, learning_rate=1e-4, ema_decay=0.9999, patience=10, **seldom
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
    "paper": large("paper", "paper"),
    "b": large("modern", "b"),
    "l": large("modern", "l"),
    "xl": large("modern", "xl"),
}
