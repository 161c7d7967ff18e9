"""Settings of the stage evaluation, and what promotion asks for."""

from pydantic import Field

from clipgen_core.schema import Frozen


class Thresholds(Frozen):
    """What a candidate must reach.

    min_prompts: fewer say nothing; tolerance: the CLIP score may be worse than the champion's by this much,
    with 97.5 % confidence; min_codebook_usage; max_copies: the share of generated pictures that repeat a
    training picture.
    """

    min_prompts: int = Field(default=30, gt=0)
    tolerance: float = Field(default=0.03, ge=0)
    min_codebook_usage: float = Field(default=0.5, ge=0, le=1)
    max_copies: float = Field(default=0.5, ge=0, le=1)


class Config(Frozen):
    """shown: prompts of the grid, the first twelve if none; scored: how many prompts of each split are
    generated and scored; judge: a CLIP to score with, the conditioning one if None; inception: a file of
    Inception weights; pictures: the folder of the prompts' pictures; reference: a folder of pictures that no
    model has seen, for the distances between sets (the prompts' own pictures if None); copy_share: a picture
    with this share of its codes in common with a training picture counts as its copy; thresholds: what
    promotion asks for."""

    shown: tuple[str, ...] = ()
    pictures_shown: int = Field(default=4, gt=0)
    scored: int = Field(default=64, gt=1)
    candidates: int = Field(default=4, gt=0)
    reconstructions: int = Field(default=12, gt=0)
    batch_prompts: int = Field(default=16, gt=0)
    seed: int = 0
    judge: str | None = None
    inception: str | None = None
    pictures: str | None = None
    reference: str | None = None
    reference_pictures: int = Field(default=1000, gt=1)
    copy_share: float = Field(default=0.9, gt=0, le=1)
    thresholds: Thresholds = Thresholds()
