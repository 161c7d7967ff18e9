"""Settings of the stage evaluation, and the thresholds of promotion."""

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen
from clipgen_core.settings.sampling import MAX_IMAGES, MAX_PROMPT_LENGTH


class Thresholds(Frozen):
    """What a candidate must reach to become the champion."""

    min_prompts: int = Field(default=30, gt=0)
    """Fewest scored prompts, over all splits. With fewer, the scores are too uncertain to promote a model."""
    min_above_shuffled: float = Field(default=0.0, ge=-2, le=2)
    """By how much the mean CLIP score must be above that of the same images with the other prompts of their
    split, with 97.5 % confidence. An image that no prompt has shaped is at 0."""
    tolerance: float = Field(default=0.03, ge=0, allow_inf_nan=False)
    """By how much the mean CLIP score may be below the champion's, with 97.5 % confidence."""
    min_codebook_usage: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of the VQGAN's codes that are in use."""
    max_copies: float = Field(default=0.5, ge=0, le=1)
    """Largest share of generated images that are memorised copies: see `copy_share`."""


class Config(Frozen):
    """What is generated for the report, what it is compared with, and by which models."""

    shown: tuple[str, ...] = ()
    """Prompts of the report's first grid. If empty: the first twelve of the prompts file."""
    images_shown: int = Field(default=4, gt=0)
    """Images shown for each prompt of that grid."""
    scored: int = Field(default=64, gt=1)
    """Prompts of each split to generate and score, drawn at random if there are more."""
    candidates: int = Field(default=4, gt=0)
    """Images sampled for each one that is kept. CLIP keeps the one nearest to the prompt."""
    reconstructions: int = Field(default=12, gt=0)
    """Stored images that the report shows next to the VQGAN's reconstructions of them."""
    batch_prompts: int = Field(default=16, gt=0)
    """Prompts to generate in one batch. Fewer need less memory."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the choice of prompts and of the generated images."""
    judge: str | None = None
    """CLIP that computes the scores: hub:MODEL/PRETRAINED or local-dir:FOLDER. Null: the CLIP that the model
    is conditioned on, which flatters the model. A champion that is conditioned on another CLIP can be
    compared only by a judge that conditions neither model."""
    inception: str | None = None
    """File of Inception v3 weights (torch-fidelity's). With it, FID and Inception score are computed too."""
    prompt_images: str | None = None
    """Folder that the file names of the prompts file are relative to. Null: the folder of a CSV file."""
    reference: str | None = None
    """Folder of held-out images: the reference set, with which sets of images are compared (KID, FID, CMMD,
    precision, recall). Null: images of the images table, held-out ones first, without the prompts' own."""
    reference_images: int | None = Field(default=None, gt=2)
    """Most images of the reference set. Null: ten for each dimension of the judge's embeddings. FID is
    computed with no fewer. The time of an evaluation grows with them."""
    copy_share: float = Field(default=0.9, gt=0, le=1)
    """Share of equal codes from which on an image counts as a memorised copy of a training image. All stored
    views of the training image are compared."""
    thresholds: Thresholds = Thresholds()
    """What a candidate must reach to become the champion."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.images_shown * self.candidates > MAX_IMAGES:
            raise ClipgenError(
                f"images_shown {self.images_shown} x candidates {self.candidates} is more than {MAX_IMAGES}: "
                "choose fewer"
            )
        if not all(text.strip() and len(text) <= MAX_PROMPT_LENGTH for text in self.shown):
            raise ClipgenError(
                f"a text of shown is empty or longer than {MAX_PROMPT_LENGTH} characters: change it"
            )
        return self
