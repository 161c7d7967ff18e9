"""Arguments that a generator does not take, such as some of diffusers' pipelines.

Knows names of arguments; knows no model.
"""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clipgen_core.errors import ClipgenError
from clipgen_core.settings.catalogue import suggestion

P = ParamSpec("P")
R = TypeVar("R")

SIZE = "images have the side that the model was trained for"
OF_DIFFUSERS = {
    "generator": "give a seed",
    "height": SIZE,
    "width": SIZE,
    "negative_prompt": "models have no negative prompts; a higher guidance_scale follows the prompt more",
    "num_images_per_prompt": "give n",
    "prompt_embeds": "models take prompts as texts",
    "return_dict": "the answer is always a list",
    "num_inference_steps": "give steps",
}


def refusing_unknown(method: Callable[P, R]) -> Callable[P, R]:
    """A method that says in one sentence what stands for an argument that it does not have."""
    names = [name for name in inspect.signature(method).parameters if name != "self"]

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                said = OF_DIFFUSERS.get(name)
                hint = f": {said}" if said else suggestion(name, names) or f": choose {', '.join(names)}"
                raise ClipgenError(f"{method.__name__} has no argument {name!r}{hint}")
        return method(*args, **kwargs)

    return checked
