"""The HTTP API in this process: its answers, limits and refusals."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from clipgen_core.data.pixels import fit_square, png_bytes
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.sampling import Busy, Job, Sampler
from clipgen_core.serving.api import LARGEST_BODY, build
from clipgen_core.serving.models import Models
from clipgen_core.serving.work import Work
from clipgen_core.settings.sampling import SamplingConfig
from tests.conftest import SIZE, draw

TOKEN = "0123456789abcdef"
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def models(checkpoint: str, any_order: str) -> Models:
    return Models([checkpoint, any_order])


@pytest.fixture(scope="module")
def client(models: Models) -> Iterator[TestClient]:
    with TestClient(build(models, Work(waiting=4)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def of_any_order(models: Models) -> str:
    return list(models.served)[1]


def pixels(one: dict[str, Any]) -> bytes:
    return opened(one).convert("RGB").tobytes()


def opened(one: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))


def half_transparent(image: Image.Image) -> bytes:
    """The image, of which the right half is transparent."""
    clear = image.convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (image.width // 2, 0, *image.size))
    clear.putalpha(alpha)
    return png_bytes(clear)


def events(text: str) -> list[dict[str, Any]]:
    """The fields of each event, whose name is in them as well."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        fields = json.loads(data.removeprefix("data: "))
        assert name == f"event: {fields.get('type', 'error')}"
        found.append(fields)
    return found


def test_the_generator_knows_whose_turn_a_request_takes(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers, job = list[str](), Sampler.job

    def recorded(sampler: Sampler, *given: Any, **options: Any) -> Job:
        callers.append(options["caller"])
        return job(sampler, *given, **options)

    monkeypatch.setattr(Sampler, "job", recorded)
    for asked in ({"user": "ada"}, {}, {"user": "bob"}):
        assert client.post(GENERATE, json={"prompt": "a red disc", **asked}).status_code == 200
    assert callers == ["ada", "testclient", "bob"]


def test_the_images_are_those_of_the_generator_and_say_how_they_were_made(
    client: TestClient, checkpoint: str, models: Models
) -> None:
    asked = {"prompt": "a red disc", "n": 2, "seed": 5, "guidance_scale": 2.5, "top_k": 4, "size": "32x32"}
    answer = client.post(GENERATE, json=asked).json()
    row = TextToImage.from_pretrained(checkpoint).generate_scored(
        "a red disc", 2, 5, guidance_scale=2.5, top_k=4
    )[0]
    assert [pixels(one) for one in answer["data"]] == [one.image.tobytes() for one in row]
    assert [one["clip_score"] for one in answer["data"]] == [round(one.clip_score, 4) for one in row]
    assert (answer["size"], answer["seed"], answer["output_format"]) == ("32x32", 5, "png")
    said = json.loads(opened(answer["data"][0]).info["parameters"])
    assert said["model"] == models.default and (said["seed"], said["top_k"]) == (5, 4)
    settings = {name: value for name, value in said.items() if name in SamplingConfig.model_fields}
    again = TextToImage.from_pretrained(checkpoint).generate(
        said["prompt"], said["n"], said["seed"], **settings
    )
    assert again[0][0].tobytes() == pixels(answer["data"][0])


def test_without_a_seed_each_request_gets_other_images_and_learns_the_seed(client: TestClient) -> None:
    asked = {"prompt": "a red disc", "candidates": 1, "temperature": 1.0}
    one, other = (client.post(GENERATE, json=asked).json() for _ in range(2))
    assert pixels(one["data"][0]) != pixels(other["data"][0])
    again = client.post(GENERATE, json=asked | {"seed": one["seed"]}).json()
    assert pixels(again["data"][0]) == pixels(one["data"][0])


def test_the_end_of_a_long_prompt_is_not_dropped_silently(client: TestClient) -> None:
    answer = client.post(GENERATE, json={"prompt": "a red disc " * 20}).json()
    assert "the CLIP does not read the last" in answer["notes"][0]


def test_a_stream_shows_unfinished_images_and_ends_with_the_same_ones(client: TestClient) -> None:
    asked = {"prompt": "a red disc", "seed": 1, "n": 2}
    whole = client.post(GENERATE, json=asked).json()
    answer = client.post(GENERATE, json=asked | {"stream": True, "partial_images": 3})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *partial, one, two = events(answer.text)
    assert [event["type"] for event in partial] == ["image_generation.partial_image"] * 3
    assert [event["partial_image_index"] for event in partial] == [0, 1, 2]
    grey = [(np.asarray(opened(event)) == 128).all(axis=2).mean() for event in partial]
    assert 1 > grey[0] > grey[1] > grey[2]  # what is still to come
    assert one["type"] == two["type"] == "image_generation.completed"
    assert [pixels(one), pixels(two)] == [pixels(image) for image in whole["data"]]
    assert one["seed"] == 1 and one["size"] == "32x32" and one["created_at"] >= whole["created"]
    (only,) = events(client.post(GENERATE, json={"prompt": "a", "stream": True}).text)
    assert only["type"] == "image_generation.completed"


@pytest.mark.parametrize("masked", ["transparent mask", "white mask", "transparent image"])
def test_a_part_of_an_image_is_generated_anew(client: TestClient, of_any_order: str, masked: str) -> None:
    image = draw("red", "disc")
    white = Image.new("L", image.size)
    white.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    files = {"image": png_bytes(image)}
    if masked == "transparent image":
        files = {"image[]": half_transparent(image)}
    else:
        files["mask"] = half_transparent(image) if masked == "transparent mask" else png_bytes(white)
    form = {"prompt": "a blue disc", "model": of_any_order, "seed": "3", "n": "2"}
    answer = client.post(EDIT, data=form, files=files)
    assert answer.status_code == 200, answer.text
    kept = np.asarray(opened(answer.json()["data"][0])) == np.asarray(fit_square(image, SIZE))
    said = json.loads(opened(answer.json()["data"][0]).info["parameters"])
    assert said["edited"] is True and said["prompt"] == "a blue disc"
    if masked != "transparent image":
        assert kept[:, : SIZE // 2].all()
    assert not kept[:, SIZE // 2 :].all()
    stream = client.post(EDIT, data=form | {"stream": "true", "partial_images": "1"}, files=files)
    partial, *rest = events(stream.text)
    assert partial["type"] == "image_edit.partial_image"
    assert [pixels(one) for one in rest] == [pixels(one) for one in answer.json()["data"]]


REFUSALS: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({}, 400, "prompt", "prompt is missing"),
    ({"prompt": "  "}, 400, "prompt", "the prompt is empty"),
    ({"prompt": "x" * 1001}, 400, "prompt", "at most 1000"),
    ({"prompt": "a", "n": 0}, 400, "n", "n is 0: it should be greater than or equal to 1"),
    ({"prompt": "a", "n": 11}, 400, "n", "n is 11: it should be less"),
    ({"prompt": "a", "n": "2"}, 400, "n", "n is '2'"),
    ({"prompt": "a", "n": 10, "candidates": 100}, 400, "n", "n x candidates is 10 x 100"),
    ({"prompt": "a", "size": "1024x1024"}, 400, "size", "size is 1024x1024"),
    ({"prompt": "a", "size": "large"}, 400, "size", "size is 'large'"),
    ({"prompt": "a", "response_format": "url"}, 400, "response_format", "response_format is 'url'"),
    ({"prompt": "a", "model": "gpt"}, 404, "model", "there is no model 'gpt'"),
    ({"prompt": "a", "guidance": 2}, 400, "guidance", "did you mean 'guidance_scale'?"),
    ({"prompt": "a", "guidance_scale": -1}, 400, "guidance_scale", "guidance_scale"),
    ({"prompt": "a", "seed": 2**64}, 400, "seed", "seed is 18446744073709551616"),
    ({"prompt": "a", "partial_images": 4}, 400, "partial_images", "partial_images is 4"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "field", "sentence"), REFUSALS)
def test_a_refusal_is_one_sentence_in_openais_shape(
    client: TestClient, body: dict[str, Any], status: int, field: str | None, sentence: str, stream: bool
) -> None:
    answer = client.post(GENERATE, json=body | {"stream": stream})
    error = answer.json()["error"]
    assert answer.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert sentence in error["message"] and error["param"] == field
    assert error["type"] == "invalid_request_error"


def test_bodies_that_are_none_are_refused(client: TestClient) -> None:
    for body in (b"{", b"[]", b'"a"', b""):
        answer = client.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "the body is no JSON object" in answer.json()["error"]["message"]
    large = b" " * (LARGEST_BODY + 1)
    for content in (large, iter([large])):  # with its length and in chunks
        answer = client.post(GENERATE, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "larger than 32 MiB" in answer.json()["error"]["message"]
    form = {"Content-Type": "multipart/form-data"}
    answer = client.post(EDIT, content=b"x", headers=form)
    assert answer.status_code == 400 and "the body cannot be read" in answer.json()["error"]["message"]
    for path, status in (("/nothing", 404), ("/v1/images/generations", 405), ("/v1/models/gpt", 404)):
        answer = client.get(path)
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_two_images_to_edit_are_refused(client: TestClient, of_any_order: str) -> None:
    image = half_transparent(draw("red", "disc"))
    files = [("image[]", (f"{name}.png", image)) for name in "ab"]
    answer = client.post(EDIT, data={"prompt": "a", "model": of_any_order}, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "there are 2 of image[]: send one"


def test_the_settings_in_a_file_give_the_same_file_again(client: TestClient) -> None:
    (first,) = client.post(GENERATE, json={"prompt": "a red disc", "seed": 7}).json()["data"]
    settings = json.loads(opened(first).info["parameters"])
    (again,) = client.post(GENERATE, json=settings).json()["data"]
    assert again == first and opened(first).info["Software"].startswith("clipgen ")


def test_images_and_masks_that_cannot_be_used_are_refused(client: TestClient, of_any_order: str) -> None:
    image = draw("red", "disc")
    cases: list[tuple[dict[str, bytes], str]] = [
        ({"mask": png_bytes(image)}, "image is missing"),
        ({"image": b"none"}, "the image cannot be used"),
        ({"image": png_bytes(image)}, "the image has no transparent part"),
        ({"image": png_bytes(image), "mask": b""}, "the mask cannot be used"),
        ({"image": png_bytes(image), "mask": png_bytes(Image.new("L", (8, 8), 255))}, "the mask has 8x8"),
        ({"image": png_bytes(image), "mask": png_bytes(Image.new("L", image.size))}, "marks nothing"),
    ]
    for files, sentence in cases:
        answer = client.post(EDIT, data={"model": of_any_order, "prompt": "a"}, files=files)
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text
        assert answer.json()["error"]["param"] == ("mask" if sentence.startswith("the mask") else ANY)
    answer = client.post(EDIT, data={"prompt": "a"}, files={"image": half_transparent(image)})
    assert answer.status_code == 400 and "order any" in answer.json()["error"]["message"]


def test_models_are_listed_by_names_that_show_no_folder(client: TestClient, checkpoint: str) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert len(listed) == 2 and all(one["object"] == "model" and one["size"] == "32x32" for one in listed)
    assert not any(one["id"].startswith("/") for one in listed) and checkpoint.endswith(listed[0]["id"])
    assert client.get(f"/v1/models/{listed[1]['id']}").json() == listed[1]


def test_a_model_that_is_gone_is_said_without_the_servers_folder(
    checkpoint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    offered = Models([checkpoint])
    offered._lazy.clear()
    offered.served = {name: replace(one, source="/gone") for name, one in offered.served.items()}
    with TestClient(build(offered, Work(1))) as client:
        answer = client.post(GENERATE, json={"prompt": "a"})
    assert answer.status_code == 500 and "/gone" not in answer.text
    assert "/gone" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (ClipgenError("steps of rest: let it rest"), "invalid_request_error", "steps of rest"),
        (Busy("256 requests are being worked on"), "rate_limit_error", "256 requests"),
        (RuntimeError("secret of /srv"), "server_error", "the server failed; its log says why"),
    ],
)
def test_an_error_in_the_middle_ends_a_stream_and_is_a_status_elsewhere(
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    kind: str,
    sentence: str,
) -> None:
    models = Models([checkpoint])

    def fails(prompt: str, *, on_step: Any, **_: Any) -> Any:
        on_step(torch.tensor([[1, -1]]))
        raise error

    monkeypatch.setattr(models.load(models.find(None)), "generate_scored", fails)
    with TestClient(build(models, Work(1)), raise_server_exceptions=False) as client:
        stream = client.post(GENERATE, json={"prompt": "a", "stream": True})
        whole = client.post(GENERATE, json={"prompt": "a"})
    (event,) = events(stream.text)
    status = {"invalid_request_error": 400, "rate_limit_error": 429, "server_error": 500}[kind]
    assert stream.status_code == 200 and whole.status_code == status
    assert whole.headers.get("Retry-After") == ("5" if status == 429 else None)
    assert whole.json()["error"]["param"] == ("steps" if status == 400 else None)
    for said in (event["error"], whole.json()["error"]):
        assert said["type"] == kind and sentence in said["message"]
    assert ("secret of /srv" in capfd.readouterr().err) == (kind == "server_error")


def test_a_token_guards_the_api_but_neither_health_nor_metrics(models: Models) -> None:
    with TestClient(build(models, Work(1), TOKEN)) as client:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Authorization": "ü"},
        ):
            sent = {name: value.encode() for name, value in given.items()}
            answer = client.post(GENERATE, json={"prompt": "a"}, headers=sent)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for scheme in ("Bearer", "bearer"):
            right = {"Authorization": f"{scheme} {TOKEN}"}
            assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "clipgen_requests_total" in client.get("/metrics").text
