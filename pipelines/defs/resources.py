"""The resources and the executor of all jobs, as the deployment sets them.

Knows which resources there are; knows nothing of what assets do with them.
"""

import dagster as dg

from pipelines.cluster import executor
from pipelines.deployment import deployment
from pipelines.partitions import FolderResource
from pipelines.resources import ImagesResource, MlflowResource, RecipeResource, StorageResource


@dg.definitions
def resources() -> dg.Definitions:
    given = deployment().resources
    return dg.Definitions(
        executor=executor(),
        resources={
            "storage": StorageResource(**given["storage"]),
            "images": ImagesResource(**given["images"]),
            "recipe": RecipeResource(**given["recipe"]),
            "mlflow": MlflowResource(**given["mlflow"]),
            "one_folder": FolderResource(),
        },
    )
