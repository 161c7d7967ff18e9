import os

import dagster as dg

from clipgen_core.storage import DEFAULT_ROOT
from pipelines.resources import MlflowResource, RecipeResource, StorageResource


@dg.definitions
def resources() -> dg.Definitions:
    root = os.environ.get("CLIPGEN_ROOT") or DEFAULT_ROOT
    return dg.Definitions(
        resources={
            "storage": StorageResource(root=root),
            "recipe": RecipeResource(),
            "mlflow": MlflowResource(),
        }
    )
