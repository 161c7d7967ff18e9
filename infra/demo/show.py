"""Say how good the demo's model is and where its results are. Run: python infra/demo/show.py ROOT"""

import sys

from clipgen_core.judging.summary import summary
from clipgen_core.storage import Storage


def main(root: str) -> None:
    report = Storage(root).current("evaluation", "the demo's summary").path
    for what, value in summary(f"{report}/metrics.json"):
        print(f"{what:50} {value}")
    print(f"\nall figures: {report}/metrics.json\nimages:      {report}/grid.png")
    print("try:         .venv/bin/clipgen generate 'a red heart' -o heart.png")
    print(f"report:      {report}/report.html")


if __name__ == "__main__":
    main(sys.argv[1])
