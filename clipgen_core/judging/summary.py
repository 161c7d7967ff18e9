"""The few figures of an evaluation that say how good a model is, in words."""

import json
from collections.abc import Iterator

from clipgen_core import filesystem

IMAGES = {"generated": "generated images", "real": "real images"}
DISTANCES = {"generated": "generated images", "floor": "other real images"}
SHARES = {
    "detail/generated/shape": "contrast of shapes, of that in real images",
    "detail/generated/variety": "differences between images, of those between real ones",
    "memory/copies": "generated images that are memorised copies",
    "vqgan/codebook_usage": "codes of the VQGAN that are in use",
}


def summary(url: str) -> Iterator[tuple[str, str]]:
    """The figures, as far as they were measured.

    Args:
        url: The metrics.json of a report.

    Yields:
        What was measured, and its value.
    """
    metrics: dict[str, float] = json.loads(filesystem.read_bytes(url))
    splits = sorted(name.removesuffix("/prompts") for name in metrics if name.endswith("/prompts"))
    for split in splits:
        for kind, shown in IMAGES.items():
            if (score := metrics.get(f"{split}/{kind}/clip_score")) is not None:
                yield f"CLIP score, {split} prompts, {shown}", f"{score:.3f}"
    for kind, shown in DISTANCES.items():
        if (distance := metrics.get(f"against_reference/{kind}/kid_clip")) is not None:
            yield f"1000 KID in CLIP space, {shown}", f"{1000 * distance:.2f}"
    for name, shown in SHARES.items():
        if (share := metrics.get(name)) is not None:
            yield shown, f"{share:.0%}"
