"""Embed a folder of images, and show the images nearest to a text.

python examples/embed_and_search.py /data/photos "a city at night" --clip hub:ViT-B-32/laion2b_s34b_b79k
"""

import argparse

from clipgen_core.data.tables import nearest, one_of, open_table
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder, or a URL such as s3://bucket/photos")
    parser.add_argument("text")
    parser.add_argument("--clip", required=True, help="hub:MODEL/PRETRAINED or local-dir:FOLDER")
    parser.add_argument("--root", default=".clipgen/search", help="where the tables are stored")
    parser.add_argument("-k", type=int, default=10, help="how many images to show")
    args = parser.parse_args()

    out, tracker = Storage(args.root), NullTracker()
    read = images.run(images.Config(), source=args.folder, out=out, tracker=tracker)
    embedded = embeddings.run(
        embeddings.Config(), images=read.table, clip=args.clip, out=out, tracker=tracker
    )

    (query,) = ClipEncoder(args.clip).encode_texts([args.text])
    found = nearest(open_table(embedded.table), query, args.k)
    ids = found["id"].to_pylist()
    rows = open_table(read.table).to_table(columns=["id", "uri"], filter=one_of("id", ids))
    uris = dict(zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
    for one, cosine in zip(ids, found["cosine"].to_pylist(), strict=True):
        print(f"{cosine:.3f} {uris[one]}")


if __name__ == "__main__":
    main()
