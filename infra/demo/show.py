"""Say how good the demo's model is and where its results are. Run: python infra/demo/show.py ROOT"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from clipgen_core.storage import Storage

IMAGES = {"generated": "generated images", "real": "real images"}


def main(root: str) -> None:
    folder = Path(Storage(root).current("evaluation", "the demo's summary").path)
    for name, value in figures(json.loads((folder / "metrics.json").read_text())):
        print(f"{name:50} {value}")
    print(f"\nall figures: {folder / 'metrics.json'}\nimages:      {folder / 'grid.png'}")
    print("try:         .venv/bin/clipgen generate 'a red heart' -o heart.png")
    print(f"report:      {folder / 'report.html'}")


def figures(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The few figures that say how good a model is, as far as they were measured.

    Args:
        metrics: Those of the report, by name.

    Yields:
        What was measured, and its value.
    """
    splits = sorted(name.removesuffix("/prompts") for name in metrics if name.endswith("/prompts"))
    for split in splits:
        for kind, shown in IMAGES.items():
            if (score := metrics.get(f"{split}/{kind}/clip_score")) is not None:
                yield f"CLIP score, {split} prompts, {shown}", f"{score:.3f}"
    for kind, shown in {"generated": "generated images", "floor": "other real images"}.items():
        if (distance := metrics.get(f"against_reference/{kind}/kid_clip")) is not None:
            yield f"1000 KID in CLIP space, {shown}", f"{1000 * distance:.2f}"
    for name, shown in {
        "memory/copies": "generated images that are memorised copies",
        "vqgan/codebook_usage": "codes of the VQGAN that are in use",
    }.items():
        if (share := metrics.get(name)) is not None:
            yield shown, f"{share:.0%}"


if __name__ == "__main__":
    main(sys.argv[1])
