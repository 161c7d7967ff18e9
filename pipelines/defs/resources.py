"""The resources and the executor of all jobs, by the environment of the code location.

Knows the environment variables and their defaults; knows nothing of what assets do with the resources.
"""

import os

import dagster as dg

from clipgen_core.storage import DEFAULT_ROOT
from pipelines.cluster import executor
from pipelines.partitions import FolderResource
from pipelines.resources import TRAINED, ImagesResource, MlflowResource, RecipeResource, StorageResource


@dg.definitions
def resources() -> dg.Definitions:
    root = os.environ.get("CLIPGEN_ROOT") or DEFAULT_ROOT
    return dg.Definitions(
        executor=executor(),
        resources={
            "storage": StorageResource(root=root),
            "images": ImagesResource(
                source=os.environ.get("CLIPGEN_SOURCE", ""), clip=os.environ.get("CLIPGEN_CLIP") or TRAINED
            ),
            "recipe": RecipeResource(name=os.environ.get("CLIPGEN_RECIPE") or "demo"),
            "mlflow": MlflowResource(),
            "one_folder": FolderResource(),
        },
    )
