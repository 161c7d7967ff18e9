"""What MLflow runs to load a registered clip-gen model ("models from code"): prompts in, PNG bytes out.

This file is stored as text beside the weights. It is loaded by `mlflow.pyfunc.load_model`.
"""

from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ClipGenModel(PythonModel):
    """predict(["a red heart"], params={"seed": 1}) -> [PNG bytes]; over HTTP each in base64."""

    def load_context(self, context: PythonModelContext) -> None:
        from clipgen_core.generation.generator import TextToImage

        self.generator = TextToImage.from_pretrained(context.artifacts["generator"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[bytes]:
        """Generate one image for each prompt.

        Args:
            context: MLflow's; not used.
            model_input: Prompts.
            params: Keyword arguments of `TextToImage.generate`.

        Returns:
            A PNG file for each prompt.
        """
        from clipgen_core.data.pixels import png_bytes

        return [png_bytes(row[0]) for row in self.generator.generate(model_input, **(params or {}))]


mlflow.models.set_model(ClipGenModel())
