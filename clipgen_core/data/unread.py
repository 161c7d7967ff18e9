"""Why Pillow does not open an image: the kind of JPEG or TIFF that it is, or that it is cut short.

Knows headers only; knows nothing of pixels or settings.
"""

import io
from collections.abc import Iterator

from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from clipgen_core.data.kinds import TIFF, starts_as_image, unread_kind, way_out
from clipgen_core.data.rejected import Rejected

COMPRESSION = 259  # a TIFF tag
BIG, WEBP = 43, 50001  # a TIFF file of 64-bit offsets; a compression that Pillow knows by name only
LOSSLESS, ARITHMETIC, JPEG_LS = (0xC3, 0xC7, 0xCB, 0xCF), (0xC9, 0xCA, 0xCD, 0xCE), 0xF7
FRAMES = {*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC}  # markers that begin a frame


def why_unread(data: bytes, read: tuple[str, ...]) -> Rejected:
    """Why Pillow does not open a file.

    Args:
        data: Its bytes.
        read: The formats that are read.

    Returns:
        The error to raise.
    """
    if kind := unread_kind(data):
        return Rejected("unsupported", kind + way_out(kind))
    if data.startswith(TIFF):
        tiff = _tiff(data)
        return Rejected("unsupported", tiff + way_out("TIFF")) if tiff else _cut("its tags")
    if jpeg := next(_jpegs(data), None):
        return Rejected("unsupported", jpeg + way_out(jpeg))
    if starts_as_image(data):
        return _cut("its header")
    return Rejected("not_an_image", f"none of {', '.join(read)}")


def undecoded(data: bytes) -> str | None:
    """What a file is that Pillow opens and does not decode, with what to do; None for other files."""
    webp = data.startswith(TIFF) and _compression(data) == WEBP
    return f"TIFF of compression {WEBP} (WebP){way_out('TIFF')}" if webp else None


def _cut(part: str) -> Rejected:
    return Rejected("damaged", f"{part} cannot be read: the file is cut short or damaged")


def _tiff(data: bytes) -> str:
    """The kind of a TIFF file; "" if its tags cannot be read."""
    compression = _compression(data)
    if compression is None:
        return ""
    named = f"TIFF of compression {compression}"
    return "TIFF of samples that Pillow does not read" if compression in COMPRESSION_INFO else named


def _compression(data: bytes) -> int | None:
    opened = io.BytesIO(data)
    try:
        tags = ImageFileDirectory_v2(opened.read(16 if BIG in data[2:4] else 8))
        opened.seek(tags.next)
        tags.load(opened)
        return int(tags.get(COMPRESSION, 1)) if len(tags) else None
    except Exception:  # Pillow has many for damaged tags
        return None


def _jpegs(data: bytes) -> Iterator[str]:
    """The kind of a JPEG file that is not read, by its first frame."""
    at = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:
            if marker == JPEG_LS:
                yield "JPEG-LS"
            elif data[at + 4] != 8:
                yield f"JPEG of {data[at + 4]} bits"
            elif marker in LOSSLESS or marker in ARITHMETIC:
                yield "lossless JPEG" if marker in LOSSLESS else "JPEG of arithmetic coding"
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
