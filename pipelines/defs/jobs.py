"""The pipeline's public jobs: what is run together, by name.

Knows the names of assets and the partition that stands for the whole source; knows nothing of what assets do.
"""

import dagster as dg

from pipelines.partitions import ALL

clip_gen = dg.define_asset_job(
    "clip_gen",
    selection=[
        "raw_images",
        "clip_embeddings",
        "near_duplicates",
        "vqgan_checkpoint",
        "token_shards",
        "transformer_checkpoint",
        "evaluation_report",
        "champion",
    ],
    tags={"dagster/partition": ALL},
    description="From a folder of images to an evaluated, registered and promoted text-to-image model.",
)

new_images = dg.define_asset_job(
    "new_images",
    selection=["raw_images", "clip_embeddings"],
    description="Ingest and embed one top-level folder; images that are in the tables already are skipped.",
)

promotion = dg.define_asset_job(
    "promotion",
    selection=["champion"],
    description="Make the candidate the champion, if it passed every check against today's champion.",
)

evaluation = dg.define_asset_job(
    "evaluation",
    selection=["evaluation_report"],
    description="Evaluate the current generator again, for example with another CLIP.",
)

clip_training = dg.define_asset_job(
    "clip_training",
    selection=["clip_checkpoint"],
    description="Train a small CLIP on captioned images, where no public CLIP fits.",
)
