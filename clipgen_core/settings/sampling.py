"""How codes are sampled: the defaults are stored with the model, and every call may override them."""

from typing import Literal

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings import catalogue

MAX_IMAGES = 256  # sampled at once for a prompt
MAX_PROMPT_LENGTH = 1000  # characters
MOST_NEIGHBOURS = 1000

Condition = Literal["text", "shifted", "retrieval", "nearest"]


class SamplingConfig(Frozen):
    """Sampling parameters of generation, and what conditions it."""

    steps: int = Field(default=0, ge=0)
    """Steps in which the codes of an image are predicted, by models of any order. Fewer are faster. 0: twice
    the grid's side, such as 16 for 64 codes. Other models take one step a code."""
    temperature: float = Field(default=0.9, ge=0, allow_inf_nan=False)
    """Divides the logits. Lower is safer, higher is more varied; 0 takes the likeliest code every time."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many likeliest codes only (arXiv:1805.04833). 0: from all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the fewest likeliest codes that together have this probability (arXiv:1904.09751)."""
    guidance_scale: float = Field(default=2.0, ge=0, le=1000)
    """Classifier-free guidance (arXiv:2207.12598). Higher follows the prompt more closely; 1: no guidance."""
    candidates: int = Field(default=4, ge=1, le=MAX_IMAGES)
    """Images sampled for each one returned. CLIP keeps those nearest to the prompt."""
    condition: Condition = "retrieval"
    """What takes the image embedding's place. `text`: the prompt's text embedding. `shifted`: that, moved by
    the difference of the mean embeddings (arXiv:2203.02053). `retrieval`: the weighted mean of the prompt's
    nearest image embeddings. `nearest`: one of those for each candidate in turn."""
    neighbours: int = Field(default=8, gt=0, le=MOST_NEIGHBOURS)
    """Nearest image embeddings to retrieve for `retrieval` and `nearest`."""
    neighbour_temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    """For `retrieval`: the weights are softmax(cosine / temperature). Lower favours the nearest image."""

    def override(self, **given: object) -> "SamplingConfig":
        """A copy with other values for some settings; None keeps the value.

        Raises:
            ClipgenError: An unknown setting, or a value out of range.
        """
        return catalogue.override(self, {name: value for name, value in given.items() if value is not None})
