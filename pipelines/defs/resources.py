import dagster as dg

from pipelines.resources import MlflowResource, RecipeResource, StorageResource


@dg.definitions
def resources() -> dg.Definitions:
    return dg.Definitions(
        resources={
            "storage": StorageResource(),
            "recipe": RecipeResource(),
            "mlflow": MlflowResource(),
        }
    )
