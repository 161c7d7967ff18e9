"""The pipeline's public jobs: what is run together, by name.

Knows the names of assets; knows nothing of what they do.
"""

import dagster as dg

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
    description="From a folder of images to an evaluated, registered and promoted text-to-image model.",
)

all_images = dg.define_asset_job(
    "all_images",
    selection=["raw_images", "clip_embeddings"],
    description="Ingest and embed the whole source; images that are in the tables already are skipped.",
)

observation = dg.define_asset_job(
    "observation",
    selection=["source_images"],
    description="List the source: which folders there are, and whether their files have changed.",
)

new_images = dg.define_asset_job(
    "new_images",
    selection=["folder_images", "folder_embeddings"],
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
