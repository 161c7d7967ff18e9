"""What MLflow runs to load a registered clip-gen model ("models from code"): prompts in, PNG bytes out.

This file is stored as text beside the weights. It is loaded by `mlflow.pyfunc.load_model`.
"""

from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ClipGenModel(PythonModel):
    """predict(["a red heart"], params={"seed": 1}) -> [PNG bytes]; over HTTP each in base64."""

    def load_context(self, context: PythonModelContext) -> None:
        from clipgen_core.generation.generator import TextToImage
        from clipgen_core.generation.worker import elsewhere

        self.generator = elsewhere(lambda: TextToImage.from_pretrained(context.artifacts["generator"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[bytes]:
        """Generate images for each prompt.

        Args:
            context: MLflow's; not used.
            model_input: Prompts.
            params: Keyword arguments of `TextToImage.generate`.

        Returns:
            `n` PNG files for each prompt, one prompt after the other, the best CLIP score first.

        Raises:
            MlflowException: The request is refused. MLflow's server answers other errors with a traceback.
        """
        from clipgen_core.data.pixels import png_bytes
        from clipgen_core.errors import ClipgenError

        try:
            rows = self.generator.generate(model_input, **(params or {}))
        except ClipgenError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return [png_bytes(image) for row in rows for image in row]


mlflow.models.set_model(ClipGenModel())
