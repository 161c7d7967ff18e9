"""The page under load. Run: python -m benchmarks.page [-m MODEL] [--users 16] [--json FILE]

Starts `clipgen ui` as a process and asks it by many clients at once, each its own prompt and seed. None may
get another's image; in fp32, each gets the one that the generator makes alone. Their rate is compared with
that of one call with all prompts, in this process after the page has ended.
"""

import base64
import io
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gradio_client
import numpy as np
import typer
from PIL import Image
from rich.console import Console

from benchmarks.servers import mixed_up, serving
from clipgen_core.cli.options import last_model
from clipgen_core.generation.generator import TextToImage
from clipgen_core.recipes import DOZEN

GUIDANCE, TEMPERATURE = 2.0, 0.9


class Answer(NamedTuple):
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
    with tempfile.TemporaryDirectory() as scratch, serving("ui", source, Path(scratch)) as url:
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
            return Answer(time.perf_counter() - start, pixels(answer))

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
    got = [one.pixels for one in answers]
    begin = time.perf_counter()
    generator.generate(prompts, **settings)
    called = time.perf_counter() - begin
    times = [one.seconds for one in answers]
    figures = {
        "users": users,
        "equal_to_alone": sum(map(bytes.__eq__, got, expected)),
        "another_users": mixed_up(got, expected),
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
    if figures["another_users"]:
        raise typer.Exit(1)


def pixels(answer: tuple[Any, ...]) -> bytes:
    """The pixels of the first picture that the page's API answered with."""
    png = answer[0][0]["pictures"][0]["src"].partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").tobytes()


if __name__ == "__main__":
    typer.run(main)
