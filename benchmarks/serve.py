"""The HTTP API under load. Run: python -m benchmarks.serve [-m MODEL] [--users 16] [--json FILE]

Starts `clipgen serve` as a process. Users ask it at once, each for an image of its own prompt, which must be
the one that the generator makes alone. Their rate is compared with that of one call with all prompts, in this
process after the server has ended.
"""

import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console

from benchmarks.page import wait_for
from clipgen_core.cli.options import last_model
from clipgen_core.generation.generator import TextToImage
from clipgen_core.recipes import DOZEN
from clipgen_core.serving.server import listening

SEED = 1
PATIENCE = 600.0  # seconds


def main(
    model: Annotated[str | None, typer.Option("-m", "--model", help="As for clipgen generate.")] = None,
    users: Annotated[int, typer.Option(min=1)] = 16,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Ask the API by one user after the other, then by all at once; then generate by one call."""
    source = model or last_model(None)
    prompts = [f"{DOZEN[number % len(DOZEN)]} {number}" for number in range(users)]
    with tempfile.TemporaryDirectory() as scratch, serving(source, Path(scratch), waiting=users) as url:
        alone = [ask(url, prompt)[0] for prompt in prompts[:6]][1:]
        begin = time.perf_counter()
        with ThreadPoolExecutor(users) as threads:
            answers = list(threads.map(lambda prompt: ask(url, prompt), prompts))
        served = time.perf_counter() - begin
    generator = TextToImage.from_pretrained(source)
    generator.generate(prompts[:1], seed=SEED)
    begin = time.perf_counter()
    rows = generator.generate(prompts, seed=SEED)
    called = time.perf_counter() - begin
    expected = [row[0].tobytes() for row in rows]
    times = [seconds for seconds, _ in answers]
    figures = {
        "users": users,
        "equal_to_one_call": sum(got == expected[number] for number, (_, got) in enumerate(answers)),
        "another_users": sum(
            got in expected[:number] + expected[number + 1 :] for number, (_, got) in enumerate(answers)
        ),
        "alone_median_s": statistics.median(alone or times),
        "median_s": statistics.median(times),
        "slowest_s": max(times),
        "images_a_second": users / served,
        "images_a_second_of_one_call": users / called,
        "share_of_one_call": called / served,
    }
    Console().print_json(data=figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2))
    if figures["another_users"]:
        raise typer.Exit(1)


def ask(url: str, prompt: str) -> tuple[float, bytes]:
    """Ask for an image.

    Args:
        url: Of the server.
        prompt: What it should show.

    Returns:
        Seconds; the image's pixels.
    """
    begin = time.perf_counter()
    asked: dict[str, Any] = {"prompt": prompt, "seed": SEED}
    answer = httpx.post(f"{url}/v1/images/generations", json=asked, timeout=PATIENCE)
    seconds = time.perf_counter() - begin
    (image,) = answer.raise_for_status().json()["data"]
    png = Image.open(io.BytesIO(base64.b64decode(image["b64_json"])))
    return seconds, png.convert("RGB").tobytes()


@contextmanager
def serving(model: str, scratch: Path, *, waiting: int) -> Iterator[str]:
    """The API as a process of its own, at a free port.

    Args:
        model: As for `clipgen generate`.
        scratch: A folder for its log.
        waiting: Requests that may wait.

    Yields:
        Its address.
    """
    with listening("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "clipgen_core.cli", "serve", "-m", model, "--port", str(port)]
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--waiting", str(waiting)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/healthz", server, scratch / "log")
        yield url
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    typer.run(main)
