"""`clipgen serve` as a process, used by OpenAI's own client; and clients that go away."""

import base64
import contextlib
import io
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from PIL import Image
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data.pixels import png_bytes
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.sampling import Sampler
from clipgen_core.serving import work
from clipgen_core.serving.api import build
from clipgen_core.serving.models import Models
from clipgen_core.serving.server import listening, read_token
from clipgen_core.serving.work import Work
from tests.conftest import COLOURS, blocks, draw, wait_for

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[3]
TOKEN = "0123456789abcdef0123"
USERS = 8
STEP = 0.3  # seconds of each of the 16 steps of the slow model


@contextlib.contextmanager
def served(
    folder: Path, *options: str, command: tuple[str, ...] = ("-m", "clipgen_core.cli", "serve", "--port", "0")
) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """The address, the process and the log of `clipgen serve`."""
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen([sys.executable, *command, *options], stdout=file, stderr=file)

    def address() -> str | None:
        found = re.search(r"at (http://\S+)/v1", log.read_text())
        return found and found[1]

    try:
        url = wait_for(address, "the server", alive=lambda: server.poll() is None)
        wait_for(lambda: alive(url), "the server")
        yield url, server, log
    finally:
        server.kill()
        server.wait()


def alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False


@pytest.fixture(scope="module")
def url(checkpoint: str, any_order: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "token").chmod(0o600)
    options = ("-m", checkpoint, "-m", any_order, "--token-file", str(folder / "token"))
    with served(folder, *options) as (address, _, log):
        yield address
        assert TOKEN not in log.read_text() and "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)


def image_of(data: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.b64_json))).convert("RGB")


def test_openais_client_generates_streams_and_edits(
    client: openai.OpenAI, checkpoint: str, any_order: str
) -> None:
    own = {"seed": 4, "guidance_scale": 2.5}
    expected = [
        image.tobytes()
        for image in TextToImage.from_pretrained(checkpoint).generate("a red disc", 2, **own)[0]
    ]
    answer = client.images.generate(prompt="a red disc", n=2, size="auto", extra_body=own)
    assert answer.data and [image_of(one).tobytes() for one in answer.data] == expected
    stream = client.images.generate(prompt="a red disc", n=2, stream=True, partial_images=2, extra_body=own)
    *partial, best, second = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [image_of(best).tobytes(), image_of(second).tobytes()] == expected
    default, other = client.models.list().data
    assert client.models.retrieve(other.id).id == other.id and default.owned_by == "clipgen"
    image, mask = draw("red", "disc"), Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    edited = client.images.edit(
        image=("a.png", png_bytes(image)),
        mask=("m.png", png_bytes(mask)),
        prompt="a blue disc",
        model=other.id,
        extra_body={"seed": 2},
    )
    generator = TextToImage.from_pretrained(any_order)
    one = generator.edit(image, mask, "a blue disc", seed=2)[0].image
    assert edited.data and image_of(edited.data[0]).tobytes() == one.tobytes()
    listed = client.images.edit(
        image=[("a.png", png_bytes(image))],
        mask=("m.png", png_bytes(mask)),
        prompt="a blue disc",
        model=other.id,
        extra_body={"seed": 2},
    )
    assert listed.data and image_of(listed.data[0]).tobytes() == one.tobytes()


def test_the_example_of_the_docs_runs(url: str, checkpoint: str) -> None:
    (code,) = (one for one in blocks(REPOSITORY / "docs" / "serving.md", "python") if "openai" in one)
    made: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000", url).replace('"none"', repr(TOKEN)), made)
    given: dict[str, Any] = {"seed": 1, "guidance_scale": 3.0}
    best = TextToImage.from_pretrained(checkpoint).generate("a red heart", 4, **given)[0][0]
    assert Image.open(io.BytesIO(made["png"])).tobytes() == best.tobytes()


def test_openais_client_raises_its_own_errors_with_our_sentences(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 1000") as refused:
        client.images.generate(prompt="x" * 1001)
    assert refused.value.param == "prompt"
    with pytest.raises(openai.NotFoundError, match="there is no model") as missing:
        client.images.generate(prompt="a", model="gpt-image-1")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError, match="bearer token"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").images.generate(prompt="a")
    image, mask = png_bytes(draw("red", "disc")), Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    with pytest.raises(openai.BadRequestError, match="order any"):
        client.images.edit(image=image, mask=png_bytes(mask), prompt="a")


def test_users_at_once_each_get_what_they_would_get_alone(client: openai.OpenAI, checkpoint: str) -> None:
    prompts = [f"a {colour} disc" for colour in COLOURS[:USERS]]

    def ask(number: int) -> bytes:
        answer = client.images.generate(prompt=prompts[number], extra_body={"seed": number})
        assert answer.data
        return image_of(answer.data[0]).tobytes()

    with ThreadPoolExecutor(USERS) as threads:
        got = list(threads.map(ask, range(USERS)))
    generator = TextToImage.from_pretrained(checkpoint)
    alone = [generator.generate(prompt, seed=i)[0][0].tobytes() for i, prompt in enumerate(prompts)]
    assert got == alone


def test_sigterm_lets_requests_finish_and_ends_with_exit_code_zero(checkpoint: str, tmp_path: Path) -> None:
    asked = {"prompt": "a red disc", "candidates": 32}
    with served(tmp_path, "-m", checkpoint) as (url, server, log), ThreadPoolExecutor(4) as threads:
        answers = [
            threads.submit(httpx.post, f"{url}/v1/images/generations", json=asked, timeout=60)
            for _ in range(4)
        ]
        working = "clipgen_requests_working 4.0"
        wait_for(lambda: working in httpx.get(f"{url}/metrics").text, "work", seconds=20, pause=0.01)
        server.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in answers] == [200] * 4
        assert server.wait(30) == 0
        assert not alive(url)
    assert log.read_text().splitlines()[-1] == "stopped"


SLOW = """
import sys, time
from clipgen_core.generation.sampling import Sampler
from clipgen_core.serving import server, work

def slowly(self):
    time.sleep(1)
    advance(self)

advance, Sampler.advance = Sampler.advance, slowly
server.GRACE, work.AT_ONCE = 2.0, 1
server.serve(sys.argv[1:], host="127.0.0.1", port=0, token_file=None, waiting=1)
"""


def test_what_waits_at_sigterm_is_refused_at_once_and_what_takes_too_long_after_a_while(
    checkpoint: str, tmp_path: Path
) -> None:
    with (
        served(tmp_path, checkpoint, command=("-c", SLOW)) as (url, server, log),
        ThreadPoolExecutor(2) as threads,
    ):

        def ask(number: int) -> tuple[int, str, float]:
            answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": f"{number}"}, timeout=60)
            return answer.status_code, answer.json()["error"]["code"], time.monotonic()

        answers = [threads.submit(ask, number) for number in range(2)]
        wait_for(lambda: "clipgen_requests_waiting 1.0" in httpx.get(f"{url}/metrics").text, "the requests")
        stopped = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert [one.result()[:2] for one in answers] == [(503, "stopping")] * 2
        first, last = sorted(one.result()[2] - stopped for one in answers)
        assert first < 2 <= last < 15  # of the 16 seconds that the images would take
        assert server.wait(30) == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture
def slow(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with one place, whose model takes five seconds for an image."""
    models, advance = Models([checkpoint]), Sampler.advance

    def slowly(sampler: Sampler) -> None:
        time.sleep(STEP)
        advance(sampler)

    monkeypatch.setattr(Sampler, "advance", slowly)
    monkeypatch.setattr(work, "AT_ONCE", 1)
    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(build(models, Work(waiting=0)), log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wait_for(lambda: alive(url), "the server")
        yield f"{url}/v1/images/generations"
        server.should_exit = True
        thread.join()


def test_without_a_place_a_request_is_refused_and_may_try_again(slow: str) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(httpx.post, slow, json={"prompt": "a"}, timeout=60)
        metrics = slow.replace("/v1/images/generations", "/metrics")
        wait_for(lambda: "clipgen_requests_working 1.0" in httpx.get(metrics).text, "the first request")
        refused = httpx.post(slow, json={"prompt": "b"})
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "clipgen_requests_waiting 0.0" in httpx.get(metrics).text
        assert first.result().status_code == 200
    assert httpx.post(slow, json={"prompt": "b"}, timeout=60).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(slow: str, stream: bool) -> None:
    with contextlib.suppress(httpx.ReadTimeout):
        asked = {"prompt": "a", "stream": stream, "partial_images": 3}
        with httpx.stream("POST", slow, json=asked, timeout=httpx.Timeout(10, read=2 * STEP)) as answer:
            next(answer.iter_lines())
    left = time.monotonic()
    wait_for(lambda: httpx.post(slow, json={"prompt": ""}).status_code == 400, "an answer", seconds=5)
    took = _until_free(slow, left)
    assert took < 8 * STEP, "the sampling went on"


def _until_free(url: str, since: float) -> float:
    """Seconds until a request is taken, which goes away as well."""
    while time.monotonic() < since + 10:
        try:
            if httpx.post(url, json={"prompt": "b"}, timeout=httpx.Timeout(10, read=0.1)).status_code != 429:
                break
        except httpx.ReadTimeout:
            break
        time.sleep(0.02)
    return time.monotonic() - since


def test_a_port_that_is_taken_and_a_token_that_is_none_are_said_before_a_model_is_loaded(
    checkpoint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    with listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in ("serve", "ui"):
            done = CliRunner().invoke(app, [command, "-m", "/none", "--port", port])
            assert done.exit_code == 2 and "there is no model at /none" in done.output.replace("\n", " ")
        done = CliRunner().invoke(app, ["serve", "-m", checkpoint, "--port", port])
        assert done.exit_code == 2 and "cannot listen at 127.0.0.1" in done.output.replace("\n", " ")
    done = CliRunner().invoke(app, ["serve", "-m", "/none", "--token-file", str(file)])
    assert done.exit_code == 2 and "the token cannot be read" in done.output
    for content in ("", "short", "two words are not a token", "ümläut-token-0123456"):
        file.write_text(content)
        with pytest.raises(ClipgenError, match="holds no token"):
            read_token(file)
    file.write_text(TOKEN)
    file.chmod(0o644)
    assert read_token(file) == TOKEN
    assert "chmod 600" in capfd.readouterr().err
    file.chmod(0o600)
    assert read_token(file) == TOKEN and not capfd.readouterr().err


def test_every_answer_is_as_its_openapi_page_says(url: str, tmp_path: Path) -> None:
    """But for fields that are valid by themselves and not for the model, such as the size of another one."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--exclude-checks", "positive_data_acceptance"]
    command += [
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "10",
        "--seed",
        "1",
        "--no-color",
        "--request-timeout",
        "120",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
