"""The error that says why an image cannot be used."""

from clipgen_core.settings.images import Accepted


class Rejected(Exception):
    """An image that cannot be used.

    Args:
        reason: Empty, not_an_image, unsupported, damaged, too_large, too_long or too_small.
        detail: An explanation for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def require_size(accepted: Accepted, width: int, height: int) -> None:
    """Refuse an image by its size, before it is decoded.

    Args:
        accepted: Which images are accepted.
        width: In pixels.
        height: In pixels.

    Raises:
        Rejected: The image is too large, too long or too small.
    """
    size = f"{width}x{height}"
    if width * height > accepted.max_pixels:
        raise Rejected("too_large", f"{size} is more than images.max_pixels: {accepted.max_pixels:,}")
    if min(width, height) < accepted.min_side:
        raise Rejected("too_small", f"{size} has a side below images.min_side: {accepted.min_side}")
    if max(width, height) > accepted.max_aspect * min(width, height):
        raise Rejected(
            "too_long",
            f"{size} is longer than images.max_aspect: {accepted.max_aspect:g} times its short side",
        )
