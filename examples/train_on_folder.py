"""Train a text-to-image model on a folder of images, one stage after another, without Dagster.

python examples/train_on_folder.py /data/photos --clip hub:ViT-B-32/laion2b_s34b_b79k --root ROOT --recipe b
"""

import argparse

from clipgen_core.recipes import RECIPES, named
from clipgen_core.stages import embeddings, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder, or a URL such as s3://bucket/photos")
    parser.add_argument("--clip", required=True, help="hub:MODEL/PRETRAINED or local-dir:FOLDER")
    parser.add_argument("--root", required=True, help="where artefacts are stored")
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    args = parser.parse_args()

    recipe, out, tracker = named(args.recipe), Storage(args.root), NullTracker()
    read = images.run(recipe.images, source=args.folder, out=out, tracker=tracker)
    embedded = embeddings.run(recipe.embeddings, images=read.table, clip=args.clip, out=out, tracker=tracker)
    codec = vqgan.run(recipe.vqgan, images=read.table, clip=args.clip, out=out, tracker=tracker)
    shards = tokens.run(
        recipe.tokens,
        images=read.table,
        embeddings=embedded.table,
        vqgan=codec.checkpoint,
        out=out,
        tracker=tracker,
    ).shards
    trained = transformer.run(recipe.transformer, tokens=shards, out=out, tracker=tracker)
    print(f"try: clipgen generate 'a red heart' -m {trained.checkpoint}")


if __name__ == "__main__":
    main()
