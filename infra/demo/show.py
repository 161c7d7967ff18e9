"""Say where the demo's results are. Run: python infra/demo/show.py ROOT"""

import json
import sys
from pathlib import Path

from clipgen_core.storage import Storage


def main(root: str) -> None:
    folder = Path(Storage(root).current("evaluation", "the demo's summary").path)
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, value in metrics.items():
        print(f"{name:40} {value:.4g}")
    print(f"\nimages:   {folder / 'grid.png'}\nreport:   {folder / 'report.html'}")
    print("try:      .venv/bin/clipgen generate 'a red heart' -o heart.png")


if __name__ == "__main__":
    main(sys.argv[1])
