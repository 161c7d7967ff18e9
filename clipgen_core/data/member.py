"""An image of a file that holds many, or what prevents reading it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from clipgen_core.data.columns import NONE


class Member(NamedTuple):
    """An image of an archive, or a problem in the place of images.

    Attributes:
        name: Unique in the archive; "" for the archive itself.
        data: The bytes of the image.
        problem: Why they could not be read.
        reason: Of the reject that a problem becomes.
        lost: How many images the problem stands for; 0 if that is not known.
        columns: The metadata of the image.
        offset: Where its bytes begin in the archive; None if they are not in it as they are.
        unread: A file of metadata that cannot be read, and why; "" if there is none.
    """

    name: str
    data: bytes = b""
    problem: str | None = None
    reason: str = "damaged"
    lost: int = 1
    columns: Mapping[str, Any] = NONE
    offset: int | None = None
    unread: str = ""
