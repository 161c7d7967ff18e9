import dagster as dg

from pipelines.resources import MlflowResource, RecipeResource, StorageResource


@dg.definitions
def resources() -> dg.Definitions:
    root = dg.EnvVar("CLIPGEN_ROOT").get_value(".clipgen/default") or ".clipgen/default"
    return dg.Definitions(
        resources={
            "storage": StorageResource(root=root),
            "recipe": RecipeResource(),
            "mlflow": MlflowResource(),
        }
    )
