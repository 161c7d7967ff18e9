"""Which CLIP a run uses: one that is given, a public one, or a small one trained on captions or names.

Knows where CLIPs may be had; knows nothing of recipes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from clipgen_core.data.captions import Captioned, read_captioned, require_captioned
from clipgen_core.data.prompts import NAMES
from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip_files import absolute
from clipgen_core.preflight.models import available
from clipgen_core.run_config import TRAINED
from clipgen_core.schema import CLIP_CONFIG, LOCAL

PUBLIC = "hub:ViT-B-32/laion2b_s34b_b79k"
DOWNLOADS = (  # repository on Hugging Face, size of its weights, what it is good for
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "0.6 GB", "fast, also on a CPU"),
    ("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "0.6 GB", "finer detail, 4 times slower"),
    ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "1.7 GB", "the best of the three, for a GPU"),
)
WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True)
class ClipChoice:
    """The CLIP of a run.

    Attributes:
        reference: As the pipeline takes it; TRAINED for one that is trained first.
        captions: What that one is trained on; None for another.
        said: Which it is, for a person.
        different: How many different captions there are.
    """

    reference: str
    captions: str | None
    said: str
    different: int = 0


def choose(folder: str, reference: str | None, captions: str | None) -> ClipChoice:
    """Choose a CLIP: the given one, one trained on given captions, a public one, or one trained on names.

    Args:
        folder: Of the images.
        reference: A CLIP that a person gave.
        captions: A captions file that a person gave.

    Returns:
        The choice.

    Raises:
        ClipgenError: Both are given, the given one is not available, or nothing is.
    """
    if reference and captions:
        raise ClipgenError("--clip and --captions exclude each other: captions train a CLIP of their own")
    if reference:
        reference = absolute(reference)
        available(reference)
        return ClipChoice(reference, None, reference)
    if captions:
        read = read_captioned(captions)
        require_captioned(captions, read)
        said = f"a small one, trained on the captions of {len(read):,} images"
        return ClipChoice(TRAINED, captions, said, _different(read))
    try:
        available(PUBLIC)
        return ClipChoice(PUBLIC, None, PUBLIC)
    except ClipgenError as unreachable:
        return _by_names(folder, unreachable)


def _by_names(folder: str, unreachable: ClipgenError) -> ClipChoice:
    names = f"{NAMES}{folder}"
    try:
        read = read_captioned(names)
    except ClipgenError as silent:
        raise ClipgenError(f"{unreachable}\n{silent}\n{_downloads()}") from silent
    different = _different(read)
    said = (
        f"a small one, trained on the names of {len(read):,} images, {different:,} different ones, since "
        f"no public one is available; it understands only these words"
    )
    return ClipChoice(TRAINED, names, said, different)


def _different(read: Mapping[str, Captioned]) -> int:
    return len({caption for one in read.values() for caption in one.captions})


def _downloads() -> str:
    """What to download on a machine with a network, and how to use it here."""
    rows = "\n".join(f"  {repository:42} {size:7} {good}" for repository, size, good in DOWNLOADS)
    return (
        "Where there is a network, download a CLIP, and copy the folder here:\n"
        f"  hf download {DOWNLOADS[0][0]} {CLIP_CONFIG} {WEIGHTS} --local-dir clip\n"
        f"Then give --clip {LOCAL}clip. For a single file of weights from elsewhere, make that folder by\n"
        f"  clipgen import-clip FILE --is {PUBLIC} -o clip\n"
        f"Three that work well:\n{rows}"
    )
