"""The page under load. Run: python -m benchmarks.page [-m MODEL] [--users 16] [--json FILE]

Starts `clipgen ui` as a process and asks it by many clients at once, each its own prompt and seed. None may
get another's image; in fp32, each gets the one that the generator makes alone. Their rate is compared with
that of one call with all prompts, in this process after the page has ended.
"""

import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gradio_client
import numpy as np
import typer
from PIL import Image
from rich.console import Console

from clipgen_core.cli.options import last_model
from clipgen_core.generation.generator import TextToImage
from clipgen_core.recipes import DOZEN

GUIDANCE, TEMPERATURE = 2.0, 0.9


class Answer(NamedTuple):
    number: int
    seconds: float
    pixels: bytes


def main(
    model: Annotated[str | None, typer.Option("-m", "--model", help="As for clipgen generate.")] = None,
    users: Annotated[int, typer.Option(min=1)] = 16,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Ask the page by one user after the other, then by all at once."""
    source = model or last_model(None)
    prompts = [DOZEN[number % len(DOZEN)] for number in range(users)]
    with tempfile.TemporaryDirectory() as scratch, serving(source, Path(scratch)) as url:
        clients = [gradio_client.Client(url, verbose=False, download_files=False) for _ in range(users)]

        def ask(number: int) -> Answer:
            start = time.perf_counter()
            answer = clients[number].predict(
                prompts[number],
                n=1,
                seed=number,
                guidance_scale=GUIDANCE,
                temperature=TEMPERATURE,
                api_name="/generate",
            )
            return Answer(number, time.perf_counter() - start, pixels(answer))

        ask(0)
        alone = [ask(number).seconds for number in range(min(users, 5))]
        begin = time.perf_counter()
        with ThreadPoolExecutor(users) as threads:
            answers = list(threads.map(ask, range(users)))
        took = time.perf_counter() - begin
    generator = TextToImage.from_pretrained(source)
    settings: dict[str, Any] = {"guidance_scale": GUIDANCE, "temperature": TEMPERATURE}
    expected = [
        generator.generate([prompts[number]], seed=number, **settings)[0][0].tobytes()
        for number in range(users)
    ]
    equal = sum(one.pixels == expected[one.number] for one in answers)
    mixed_up = sum(one.pixels in expected[: one.number] + expected[one.number + 1 :] for one in answers)
    begin = time.perf_counter()
    generator.generate(prompts, **settings)
    called = time.perf_counter() - begin
    times = [one.seconds for one in answers]
    figures = {
        "users": users,
        "equal_to_alone": equal,
        "another_users": mixed_up,
        "alone_median_s": statistics.median(alone),
        "median_s": statistics.median(times),
        "95th_percentile_s": float(np.quantile(times, 0.95)),
        "requests_a_second": users / took,
        "throughput_over_one_user": users / took * statistics.median(alone),
        "share_of_one_call": called / took,
    }
    Console().print_json(data=figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2))
    if mixed_up:
        raise typer.Exit(1)


def pixels(answer: tuple[Any, ...]) -> bytes:
    """The pixels of the first picture that the page's API answered with."""
    png = answer[0][0]["pictures"][0]["src"].partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").tobytes()


@contextmanager
def serving(model: str, scratch: Path, *options: str, **environment: str) -> Iterator[str]:
    """The page as a process of its own, at a free port, with further options and `environment`."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "clipgen_core.cli", "ui", "-m", model, "--port", str(port), *options]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(scratch / "gradio")} | environment
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", server, scratch / "log")
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    """The URL, once it answers."""
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit(log.read_text())
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return url
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url}")


if __name__ == "__main__":
    typer.run(main)
