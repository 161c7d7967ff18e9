"""Which kinds of image files are read, and by which package. Knows the first bytes of a file only."""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for

READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # by Pillow itself
SNIFFED = 1024  # bytes that tell the kind of a file
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif3", b"msf1")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes
PPM = re.compile(rb"P[1-7fF]\s+[#\dW]")
TGA = re.compile(
    rb"\0\0[\x02\x03\x0a\x0b]\0{5}.{4}(?!\0\0)..(?!\0\0)..[\x08\x0f\x10\x18\x20][\0-\x3f]", re.DOTALL
)
PCX = re.compile(rb"\x0a[\0\2-\5][\0\1][\1\2\4\x08].{60}\0[\1-\4]", re.DOTALL)
SGI = re.compile(rb"\x01\xda[\0\1][\1\2]\0[\1-\3]")
EPS = re.compile(rb"%!PS[^\r\n]* EPSF")
XBM = re.compile(rb"\s*#define\s+\w+_width\s+\d+\s+#define\s+\w+_height\s")
SVG = re.compile(rb"<(!DOCTYPE )?svg[\s>]", re.IGNORECASE)
IMAGE_NAME = re.compile(
    r"\.(jpe?g|jfif|jpe|png|apng|webp|gif|bmp|dib|tiff?|p[bgpn]m|pfm|avif|jp2|j2k|heic|heif|jxl)$",
    re.IGNORECASE,
)
RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0", b"MMOR", b"\0MRM")

PLUGINS = {  # kind -> the module that lets Pillow open it, Pillow's name of the format
    "HEIC": ("pillow_heif", "HEIF"),
    "JPEG XL": ("pillow_jxl", "JXL"),
}
EXTRAS = {"HEIC": "heif", "JPEG XL": "jxl", "camera RAW": "raw", "TIFF": "geo"}
FIRST_BYTES = {  # kind -> what a file of it begins with
    "PSD": (b"8BPS",),
    "OpenEXR": (b"v/1\x01",),
    "Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "FITS": (b"SIMPLE  =",),
    "JPEG XR": (b"II\xbc",),
    "QOI": (b"qoif",),
    "DDS": (b"DDS ",),
    "XCF": (b"gimp xcf",),
    "PAM": (b"P7\n",),
    "XV thumbnail": (b"P7 332",),
    "EPS": (b"\xc5\xd0\xd3\xc6",),
    "XPM": (b"/* XPM */",),
    "ICNS": (b"icns",),
    "DCX": (b"\xb1\x68\xde\x3a",),
    "BLP": (b"BLP1", b"BLP2"),
    "FTEX": (b"FTEX",),
    "MSP": (b"DanM", b"LinS"),
    "PIXAR": (b"\x80\xe8\0\0",),
    "Sun raster": (b"\x59\xa6\x6a\x95",),
    "WMF": (b"\xd7\xcd\xc6\x9a",),
    "MNG": (b"\x8aMNG\r\n", b"\x8bJNG\r\n"),
    "JBIG2": (b"\x97JB2\r\n",),
    "DPX": (b"SDPX", b"XPDS", b"\x80\x2a\x5f\xd7"),
    "DjVu": (b"AT&TFORM",),
    "KTX": (b"\xabKTX ",),
    "BPG": (b"BPG\xfb",),
    "FLIF": (b"FLIF",),
    "farbfeld": (b"farbfeld",),
    "NRRD": (b"NRRD000",),
    "VIPS": (b"\xb6\xa6\xf2\x08", b"\x08\xf2\xa6\xb6"),
    "MIFF": (b"id=ImageMagick",),
}
STARTS: dict[str, Callable[[bytes], bool]] = {  # kind -> whether a file that begins so is of it
    "HEIC": lambda head: head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS,
    "JPEG XL": lambda head: head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "camera RAW": lambda head: (
        head.startswith(RAW_STARTS)
        or (head.startswith(TIFF) and head[8:10] == b"CR")
        or head[4:12] == b"ftypcrx "
    ),
    "SVG": lambda head: head.lstrip().startswith(b"<") and bool(SVG.search(head)),
    "DICOM": lambda head: head[128:132] == b"DICM",
    "ICO": lambda head: head.startswith((b"\0\0\1\0", b"\0\0\2\0")) and head[4:6] != b"\0\0",
    "TGA": lambda head: bool(TGA.match(head)),
    "PCX": lambda head: bool(PCX.match(head)),
    "SGI": lambda head: bool(SGI.match(head)),
    "EPS": lambda head: bool(EPS.match(head)),
    "XBM": lambda head: bool(XBM.match(head)),
    "IM": lambda head: head.startswith(b"Image type: ") and head[511:512] == b"\x1a",
    "FLI": lambda head: head[4:6] in (b"\x11\xaf", b"\x12\xaf") and head[14:16] in (b"\0\0", b"\3\0"),
    "GIMP brush": lambda head: head[4:8] in (b"\0\0\0\1", b"\0\0\0\2") and head[20:24] == b"GIMP",
    "EMF": lambda head: head.startswith(b"\1\0\0\0") and head[40:44] == b" EMF",
    "ILBM": lambda head: head.startswith(b"FORM") and head[8:12] in (b"ILBM", b"PBM "),
    "PFM in colour": lambda head: bool(re.match(rb"PF\s", head)),
    "OS/2 bitmap array": lambda head: head.startswith(b"BA") and head[14:16] in (b"BM", b"IC", b"PT", b"CI"),
    "AVIF": lambda head: head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"),
}


def looks_like_image(name: str, head: bytes) -> bool:
    """Whether a file is meant as an image; others, such as labels, are counted apart.

    Args:
        name: Its name; a file that is named as an image is one, even if it is damaged.
        head: Its first SNIFFED bytes.

    Returns:
        Whether it is.
    """
    return is_image_name(name) or starts_as_image(head)


def is_image_name(name: str) -> bool:
    return bool(IMAGE_NAME.search(name))


def starts_as_image(head: bytes) -> bool:
    """Whether the first bytes are those of an image of any kind."""
    return (
        head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", *TIFF, *JPEG2000))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS)
        or bool(PPM.match(head))
        or unread_kind(head) is not None
    )


def unread_kind(data: bytes) -> str | None:
    """The kind of an image file that Pillow alone does not read; None for other files."""
    head = data[:SNIFFED]
    for kind, starts in STARTS.items():
        if starts(head):
            return kind
    return next((kind for kind, first in FIRST_BYTES.items() if head.startswith(first)), None)


@functools.cache
def opened_by_plugin(kind: str | None) -> tuple[str, ...]:
    """Pillow's name of a kind that a plugin opens, if its package is installed; empty for other kinds."""
    if kind not in PLUGINS:
        return ()
    module, name = PLUGINS[kind]
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        return ()
    if hasattr(plugin, "register_heif_opener"):
        plugin.register_heif_opener()
    return (name,)


def way_out(kind: str) -> str:
    """What to do to have images of a kind read: the end of a sentence."""
    extra = EXTRAS.get(kind)
    if extra is None:
        return ": convert it, or set images.decoder"
    more = "set images.bands or images.scale, and " if kind == "TIFF" else ""
    return f": {more}pip install 'clipgen[{extra}]'"


@functools.cache
def function_of(address: str) -> Callable[[bytes], Any]:
    """The function that a setting names.

    Args:
        address: `package.module:function`.

    Returns:
        The function.

    Raises:
        ClipgenError: There is none.
    """
    module, _, name = address.partition(":")
    try:
        with needed_for(f"the decoder {address}"):
            found: Callable[[bytes], Any] = getattr(importlib.import_module(module), name)
    except (AttributeError, ValueError) as error:
        raise ClipgenError(
            f"there is no decoder {address!r}: name a function as package.module:function"
        ) from error
    return found
