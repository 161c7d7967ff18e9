"""What the names of image files and of their folders say: captions and prompts for images that have none.

`names:FOLDER` stands for a captions or prompts file that nobody has to write. Words of a file's name come
first, then those of its folder: `tulips/red-macro-01.jpg` says "red macro tulips".
"""

import re
from collections import Counter

from clipgen_core.data.kinds import is_image_name
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError

SHORTEST = 3  # letters of a word; in other scripts, one sign may be a word
COMMON = 0.9  # of the files; a word that more of them have says nothing
ENOUGH = 0.5  # of the files must have a caption
PARTS = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
NUMBERED = re.compile(r"\d*([^\W\d_]+)\d*")  # a word with a number before or after it, but not within
HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}|[a-f]{10,}")  # no word of ten letters is made of these alone
USUAL = """
all archive burst camera captura collage copy crop cropped data dataset dcim download downloads dsc dscf
dscn edit edited export file files final frame gopr image images imagen img jpeg jpg large mvimg new
original output photo photos pic pics picture pictures png portrait pxl resized sample samples scan scans
screenshot small snap test thumb thumbnail tmp train training unnamed unsplash untitled val valid validation
video whatsapp
"""  # what cameras, programs and datasets call all of their files
SILENT = frozenset(USUAL.split())


def captions_of_names(folder: str) -> dict[str, str]:
    """A caption of each image file whose name or folder says something.

    Args:
        folder: A local path or an fsspec URL. Archives in it have no names of images.

    Returns:
        Captions by file name relative to the folder, at least two different ones.

    Raises:
        ClipgenError: The folder cannot be listed, or most names say nothing.
    """
    source = Source(folder)
    files = [file.path[len(source.root) + 1 :] for file in source.files() if is_image_name(file.path)]
    words = {file: words_of(file) for file in files}
    counts = Counter(word for own in words.values() for word in own)
    common = {word for word, count in counts.items() if count > COMMON * len(files)}
    read = {file: " ".join(word for word in own if word not in common) for file, own in words.items()}
    read = {file: caption for file, caption in read.items() if caption}
    if len(set(read.values())) < 2 or len(read) < ENOUGH * len(files):
        raise ClipgenError(
            f"the names of the files and folders in {folder} do not say what the images show: "
            "give a captions file, or a CLIP"
        )
    return read


def words_of(file: str) -> list[str]:
    """The words of a file's name and of the folder that holds it, in lower case, none twice.

    >>> words_of("shop/Tulips/red-macro_IMG_0012.jpg")
    ['red', 'macro', 'tulips']
    >>> words_of("daisy/5547758_eea9edfd54_n.jpg")
    ['daisy']
    """
    *folders, name = file.split("/")
    parts = [*PARTS.findall(CAMEL.sub(" ", name.rpartition(".")[0]))]
    parts += PARTS.findall(CAMEL.sub(" ", folders[-1])) if folders else []
    found = (NUMBERED.fullmatch(part) for part in parts if not HASH.fullmatch(part.lower()))
    words = (match[1].lower() for match in found if match)
    long = (word for word in words if len(word) >= SHORTEST or not word.isascii())
    return list(dict.fromkeys(word for word in long if word not in SILENT))
