"""What the HTTP API takes and answers, in the shapes of OpenAI's images API.

Knows the fields and the sentences of refusals; knows no server and no model.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import ConfigDict, Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import allowed, suggestion
from clipgen_core.settings.sampling import MAX_PROMPT_LENGTH, Condition, SamplingConfig

MOST = 10  # images of a request
PREVIEWS = 3
SIZE = r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$"
SHOWN = 60  # characters of a refused value

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH, pattern=r"\S")]


def described(schema: dict[str, Any]) -> None:
    """Describe sampling settings in a JSON schema as `clipgen settings` does."""
    for name, field in SamplingConfig.model_fields.items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = field.description


class Asked(Frozen):
    """What requests for images have in common. A field that is null takes its default."""

    model_config = ConfigDict(json_schema_extra=described)

    model: str | None = None
    """A model of /v1/models. Default: the first one."""
    n: int | None = Field(default=None, ge=1, le=MOST)
    """How many images. Default: 1."""
    size: str | None = Field(default=None, pattern=SIZE)
    """The model's own size, such as `64x64`, or `auto`, which is the same."""
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    """Whether images are sent as server-sent events, unfinished ones before them."""
    partial_images: int | None = Field(default=None, ge=0, le=PREVIEWS)
    """How many unfinished images a stream may hold. Default: 0."""
    seed: int | None = Field(default=None, gt=-(2**64), lt=2**64)
    """The same seed gives the same images. Default: chosen at random, and part of the answer."""
    steps: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    candidates: int | None = None
    quality: str | None = None
    """Accepted for clients that send it; changes nothing, like the next two and the identifier."""
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    """Requests of one user take turns with those of others. Default: the address of the client."""
    safety_identifier: str | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings that were given."""
        return self.model_dump(include=set(SamplingConfig.model_fields), exclude_none=True)


class Generation(Asked):
    """The body of POST /v1/images/generations."""

    model_config = ConfigDict(strict=True)

    prompt: Prompt
    """What the images should show."""
    condition: Condition | None = None
    neighbours: int | None = None
    neighbour_temperature: float | None = None


class EditForm(Asked):
    """The form of POST /v1/images/edits."""

    prompt: Prompt | None = None
    """What the whole image should show. Default: what it shows now."""
    image: UploadFile | None = None
    """The image, of which the central square is used."""
    image_list: list[UploadFile] = Field(default=[], alias="image[]", max_length=1)
    """The image, as clients call it that send a list, which may have one."""
    mask: UploadFile | None = None
    """Of the image's size. The part that is transparent changes; of a mask without transparency, what is
    white. Default: the transparent part of the image."""


class OneImage(Frozen):
    """A generated image: a PNG file in base64, and the cosine of its CLIP embedding with the prompt's."""

    b64_json: str
    clip_score: float


class Images(Frozen):
    """The answer to a request without stream, the best image first."""

    created: int
    data: list[OneImage]
    output_format: Literal["png"] = "png"
    size: str
    seed: int
    notes: tuple[str, ...] = ()
    """Sentences on how the prompt was understood, such as that its end was not read."""


class Model(Frozen):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "clipgen"
    size: str


class ModelList(Frozen):
    """The models, the default one first."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(Frozen):
    """What is wrong, in one sentence, and with which field."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Frozen):
    """The answer to a request that is refused or fails."""

    error: Problem


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: Of HTTP.
        message: One sentence.
        headers: Of the answer.
        fields: Further fields of `Problem`.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> None:
        super().__init__(message)
        self.status, self.problem, self.headers = status, Problem(message=message, **fields), headers


def said_of(error: Mapping[str, Any], fields: Mapping[str, Any]) -> Refused:
    """The refusal of a request with a field that is missing, unknown or not allowed.

    Args:
        error: Pydantic's description of what is wrong.
        fields: The fields that the request may have.

    Returns:
        The refusal, which names the field.
    """
    kind, place = error["type"], [str(one) for one in error["loc"][1:]]
    if kind == "json_invalid" or not place:
        return Refused(400, "the body is no JSON object: send one, with Content-Type: application/json")
    name = place[0]
    if kind == "missing":
        return Refused(400, f"{name} is missing: give it", param=name, code="missing_parameter")
    if kind == "extra_forbidden":
        guess = suggestion(name, fields)
        return Refused(400, f"there is no field {_short(name)}{guess}", param=name, code="unknown_parameter")
    if name == "prompt" and kind in ("string_too_short", "string_pattern_mismatch"):
        return Refused(400, "the prompt is empty: say what the image should show", param=name)
    if kind == "too_long" and isinstance(error["input"], list):
        return Refused(400, f"there are {len(error['input'])} of {name}: send one", param=name)
    rule = allowed(error["msg"])
    return Refused(400, f"{name} is {_short(error['input'])}: {rule}", param=name, code="invalid_value")


def named_in(sentence: str) -> str | None:
    """The field that a refusal of the generator is about: the first one that it names before the advice."""
    fields = Generation.model_fields.keys() | EditForm.model_fields.keys()
    return next((word for word in re.findall(r"\w+", sentence.partition(":")[0]) if word in fields), None)


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
