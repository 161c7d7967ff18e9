"""What MLflow runs to load a registered clip-gen model ("models from code"): prompts in, PNG bytes out.

This file is stored as text beside the weights. It is loaded by `mlflow.pyfunc.load_model`.
"""

from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ClipGenModel(PythonModel):
    """predict(["a red heart"], params={"seed": 1}) -> [PNG bytes]."""

    def load_context(self, context: PythonModelContext) -> None:
        from clipgen_core.generator import TextToImage

        self.generator = TextToImage.from_pretrained(context.artifacts["generator"])

    def predict(
        self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None
    ) -> list[bytes]:
        from clipgen_core.data.pictures import png_bytes

        prompts = _prompts(model_input)
        return [png_bytes(row[0]) for row in self.generator.generate(prompts, **(params or {}))]


def _prompts(model_input: Any) -> list[str]:
    """Prompts from what MLflow passes: a list, a series, or a frame with one column."""
    if hasattr(model_input, "columns"):
        model_input = model_input[model_input.columns[0]]
    return [str(prompt) for prompt in model_input]


mlflow.models.set_model(ClipGenModel())
