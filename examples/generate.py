"""Generate images for prompts and save each as a file.

python examples/generate.py "a red heart" "a blue car" -m models:/clip-gen@champion -n 4 -o generated
"""

import argparse
from pathlib import Path

from clipgen_core import TextToImage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument(
        "-m", "--model", required=True, help="a registry URI, a generator folder or a checkpoint"
    )
    parser.add_argument("-n", type=int, default=4, help="images per prompt")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    parser.add_argument("-o", "--output", type=Path, default=Path("generated"), help="the folder to write to")
    args = parser.parse_args()

    generator = TextToImage.from_pretrained(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    rows = generator.generate_scored(args.prompts, n=args.n, seed=args.seed)
    for i, (prompt, row) in enumerate(zip(args.prompts, rows, strict=True)):
        for j, one in enumerate(row):
            file = args.output / f"{i}-{j}.png"
            one.image.save(file)
            print(f"{file}: {prompt}, CLIP score {one.clip_score:.3f}")


if __name__ == "__main__":
    main()
