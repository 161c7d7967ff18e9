"""Settings of the stage images."""

from pydantic import Field

from clipgen_core.schema import Frozen


class Config(Frozen):
    """What is taken: pictures with at least `min_side` and at most `max_pixels` pixels.

    A commit has at most batch_size pictures and about batch_bytes; retry_rejects reads files again that
    had unusable pictures, although they did not change."""

    min_side: int = Field(default=16, gt=0)
    max_pixels: int = Field(default=2**26, gt=0)
    batch_size: int = Field(default=4096, gt=0)
    batch_bytes: int = Field(default=2**28, gt=0)
    readers: int = Field(default=8, gt=0)
    retry_rejects: bool = False
