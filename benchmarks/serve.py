"""The HTTP API under load. Run: python -m benchmarks.serve [-m MODEL] [--users 16] [--json FILE]

Starts `clipgen serve` as a process. Users ask it at once, each for an image of its own prompt; none may get
another's. Their rate is compared with that of one call with all prompts, in this process after the server has
ended.
"""

import base64
import io
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console

from benchmarks.servers import mixed_up, serving
from clipgen_core.cli.options import last_model
from clipgen_core.generation.generator import TextToImage
from clipgen_core.recipes import DOZEN

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
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving("serve", source, Path(scratch), "--waiting", str(users), health="/healthz") as url,
    ):
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
    times, pixels = [seconds for seconds, _ in answers], [got for _, got in answers]
    figures = {
        "users": users,
        "equal_to_one_call": sum(map(bytes.__eq__, pixels, expected)),
        "another_users": mixed_up(pixels, expected),
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


if __name__ == "__main__":
    typer.run(main)
