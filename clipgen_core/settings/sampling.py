"""How codes are sampled: the defaults travel with the model, and every call may override them."""

from typing import Literal

from pydantic import Field, ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen

Condition = Literal["text", "shifted", "retrieval", "nearest"]


class SamplingConfig(Frozen):
    """Defaults that travel with the model.

    candidates: pictures sampled for each one returned, re-ranked by CLIP.
    condition: what takes the image embedding's place: "text", the prompt's own embedding; "shifted",
        that moved by the difference of the modalities' means; "retrieval", the mean of the prompt's
        `neighbours` nearest image embeddings, weighted by softmax(cosine / neighbour_temperature);
        "nearest", one of those for each candidate in turn, so that CLIP chooses among them by the pictures.
    """

    temperature: float = Field(default=0.9, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    guidance_scale: float = Field(default=2.0, ge=0)
    candidates: int = Field(default=4, ge=1)
    condition: Condition = "retrieval"
    neighbours: int = Field(default=8, gt=0)
    neighbour_temperature: float = Field(default=0.05, gt=0)

    def override(self, **given: object) -> "SamplingConfig":
        """These settings with others in their place; what is None stays.

        Raises:
            ClipgenError: an unknown setting, or a value out of range.
        """
        values = self.model_dump() | {name: value for name, value in given.items() if value is not None}
        try:
            return SamplingConfig.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            raise ClipgenError(f"sampling setting {name}: {problem['msg']}") from error
