"""The pipeline's assets and jobs by name, and what the config of an asset takes.

Dagster has the same from pipelines/defs, which a test compares.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

WHERE_TRAINED = ("processes", "min_processes", "workers_on", "gpu", "accelerator", "placement", "restarts")
OWN: dict[str, Any] = {  # what configs take besides the settings of a stage, as Dagster checks it
    "accelerator": str | None,
    "captions": str,
    "gpu": bool | None,
    "judge": str | None,
    "keep_days": Annotated[float, Field(ge=0)],
    "max_reject_share": float,
    "min_codebook_usage": float,
    "min_processes": Annotated[int, Field(ge=1)] | None,
    "placement": Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"],
    "processes": Annotated[int, Field(ge=1)],
    "prompts": str | None,
    "restarts": Annotated[int, Field(ge=0)],
    "texts": str | None,
    "workers_on": Literal["here", "ray"],
}


@dataclass(frozen=True)
class Asset:
    """Which stage an asset runs, and what its config takes besides the settings of the stage."""

    stage: str
    own: tuple[str, ...] = ()


ASSETS = {
    "clip_checkpoint": Asset("clip", ("captions", *WHERE_TRAINED)),
    "raw_images": Asset("images", ("max_reject_share",)),
    "clip_embeddings": Asset("embeddings"),
    "folder_images": Asset("images", ("max_reject_share",)),
    "folder_embeddings": Asset("embeddings"),
    "near_duplicates": Asset("duplicates"),
    "vqgan_checkpoint": Asset("vqgan", ("min_codebook_usage", *WHERE_TRAINED)),
    "token_shards": Asset("tokens"),
    "transformer_checkpoint": Asset("transformer", ("texts", *WHERE_TRAINED)),
    "evaluation_report": Asset("evaluation", ("prompts", "judge")),
}
WITHOUT_STAGE = {  # and what their configs take
    "champion": (),
    "source_images": (),
    "table_upkeep": ("keep_days",),
}
APART = ("clip_checkpoint", "folder_images", "folder_embeddings")  # what clip_gen does not materialise
JOBS = {
    "all_images": ("raw_images", "clip_embeddings"),
    "clip_gen": (*(name for name in ASSETS if name not in APART), "champion"),
    "clip_training": ("clip_checkpoint",),
    "evaluation": ("evaluation_report",),
    "new_images": ("folder_images", "folder_embeddings"),
    "observation": ("source_images",),
    "promotion": ("champion",),
    "upkeep": ("table_upkeep",),
}
