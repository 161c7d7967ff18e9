"""The pipeline's public jobs."""

import dagster as dg

clip_gen = dg.define_asset_job(
    "clip_gen",
    selection=[
        "raw_images",
        "clip_embeddings",
        "vqgan_checkpoint",
        "token_shards",
        "transformer_checkpoint",
        "evaluation_report",
    ],
    description="From a folder of pictures to an evaluated, registered text-to-image model.",
)

evaluation = dg.define_asset_job(
    "evaluation",
    selection=["evaluation_report"],
    description="Judge the current generator again, for example with another CLIP.",
)

clip_training = dg.define_asset_job(
    "clip_training",
    selection=["clip_checkpoint"],
    description="Train a small CLIP on captioned pictures, where no public CLIP fits.",
)
