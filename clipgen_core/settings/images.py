"""Settings of the stage images."""

from pydantic import Field

from clipgen_core.schema import Frozen


class Config(Frozen):
    """Which images are accepted, and how the source is read."""

    min_side: int = Field(default=16, gt=0)
    """Smallest short side of an accepted image, in pixels. Smaller images are rejected."""
    max_pixels: int = Field(default=2**26, gt=0)
    """Largest width times height of an accepted image. Larger images are rejected before they are decoded."""
    batch_size: int = Field(default=4096, gt=0)
    """Most images in one commit. A killed run repeats at most one commit."""
    batch_bytes: int = Field(default=2**28, gt=0)
    """Bytes of image files after which a commit is made even if it holds fewer images."""
    readers: int = Field(default=8, gt=0)
    """Threads that read and decode image files."""
    retry_rejects: bool = False
    """Whether to read files with rejected images again although they have not changed."""
