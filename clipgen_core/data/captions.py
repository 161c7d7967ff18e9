"""Captions and keywords of images, from a CSV file or an images table. Read by the CLIP stage alone."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clipgen_core import filesystem
from clipgen_core.data.prompts import NAMES, folder_of, read_rows, relative, require_files
from clipgen_core.errors import ClipgenError

COMBINATIONS = 6  # of an image's keywords with each other and with its first caption
NAMED = 0.7  # the share of them that hold the caption


@dataclass(frozen=True)
class Captioned:
    """What a captions file says of an image; at least one caption."""

    captions: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)


def read_captions(url: str) -> dict[str, list[str]]:
    """The captions of each image file: those that the file gives, then those that `combined` makes."""
    return every_caption(read_captioned(url))


def every_caption(read: Mapping[str, Captioned]) -> dict[str, list[str]]:
    """The captions of each image file, and after them those that `combined` makes of its keywords."""
    return {file: own.captions + combined(file, own.captions, own.keywords) for file, own in read.items()}


def read_captioned(url: str) -> dict[str, Captioned]:
    """The captions and keywords of each image file, from a CSV file with the columns `file` and `caption`.

    It may have a column `keywords`, separated by commas. The names of the files are relative to the CSV
    file's folder. Of an images table, the images' ids stand for files. `names:FOLDER` takes what the names of
    the image files in a folder say for captions. ClipgenError if a row lacks a file or a caption, or fewer
    than two images have one.
    """
    if url.startswith(NAMES):
        return _of_names(url.removeprefix(NAMES))
    if url.endswith(".lance"):
        return _of_table(url)
    read = defaultdict[str, Captioned](Captioned)
    for line, row in read_rows(url, "captions", ("file", "caption")):
        if empty := [name for name in ("file", "caption") if not row[name].strip()]:
            raise ClipgenError(
                f"captions file {url} has no {empty[0]} in line {line}: add one or take the line out"
            )
        own = read[relative(folder_of(url), row["file"])]
        own.captions.append(row["caption"])
        own.keywords.extend(filter(None, map(str.strip, (row.get("keywords") or "").split(","))))
    if len(read) < 2:
        raise ClipgenError(f"captions file {url} names {len(read)} images: at least 2 are needed")
    return dict(read)


def _of_names(folder: str) -> dict[str, Captioned]:
    from clipgen_core.data.filenames import captions_of_names

    return {file: Captioned([caption]) for file, caption in captions_of_names(folder).items()}


def _of_table(url: str) -> dict[str, Captioned]:
    from clipgen_core.data.captioned import captions_of

    read = {image_id: Captioned(captions) for image_id, captions in captions_of(url)}
    if len(read) < 2:
        raise ClipgenError(f"{len(read)} images of {url} have captions: at least 2 are needed")
    return read


def combined(file: str, captions: Sequence[str], keywords: Sequence[str]) -> list[str]:
    """Captions that join an image's keywords with each other and with its first caption.

    A CLIP that has read them finds images by words in an order that no caption has. See `benchmarks.reading`.

    Args:
        file: The image's name, which seeds the choice.
        captions: The image's own captions.
        keywords: Words that fit the image. Those that the first caption holds are not used.

    Returns:
        At most COMBINATIONS texts, none of them twice and none of `captions`.
    """
    known = captions[0].lower().split()
    words = [word for word in dict.fromkeys(keywords) if word.lower() not in known]
    draw = random.Random(file)
    made = []
    for _ in range(COMBINATIONS if words else 0):
        parts = draw.sample(words, min(len(words), draw.choice((1, 2))))
        parts += [captions[0]] if draw.random() < NAMED else []
        draw.shuffle(parts)
        made.append(" ".join(parts))
    return [text for text in dict.fromkeys(made) if text not in captions]


def require_captioned(url: str, files: Iterable[str]) -> None:
    """Check that the images exist that a captions file names.

    Args:
        url: The captions file.
        files: Their names, as `read_captions` gives them.

    Raises:
        ClipgenError: One does not exist, or lies outside the file's folder.
    """
    if url.endswith(".lance"):
        return  # its images are beside the captions
    require_files(f"captions file {url}", [filesystem.inside(folder_of(url), file) for file in files])
