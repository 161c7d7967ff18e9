"""Threads that share a generator. Run: python -m benchmarks.callers [-m MODEL] [--callers 16] [--json FILE]

Each thread asks for the images of a prompt of its own. Their rate is compared with that of one call with all
prompts, in turn, three times.
"""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipgen_core.cli.options import last_model
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.worker import elsewhere
from clipgen_core.recipes import DOZEN

ROUNDS, SEED = 3, 1


def main(
    model: Annotated[str | None, typer.Option("-m", "--model", help="As for clipgen generate.")] = None,
    callers: Annotated[int, typer.Option(min=1)] = 16,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Generate by one call with all prompts, and by one thread for each prompt."""
    figures = elsewhere(lambda: measured(model or last_model(None), callers))
    Console().print_json(data=figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2))


def measured(source: str, callers: int) -> dict[str, float]:
    """The figures; to be called by another thread than the main one, as in a server.

    Args:
        source: Of the model.
        callers: How many threads.

    Returns:
        Each figure by its name: medians of the rounds; the sum of equal images over all rounds.
    """
    prompts = [f"{DOZEN[number % len(DOZEN)]} {number}" for number in range(callers)]
    generator = elsewhere(lambda: TextToImage.from_pretrained(source))
    one_call, together, slowest, alone, equal = list[float](), list[float](), list[float](), list[float](), 0
    for number in range(-1, ROUNDS):
        begin = time.perf_counter()
        rows = generator.generate(prompts, seed=SEED)
        middle = time.perf_counter()
        with ThreadPoolExecutor(callers) as threads:
            answers = list(threads.map(lambda prompt: timed(generator, prompt), prompts))
        end = time.perf_counter()
        if number < 0:  # the first round warms up
            continue
        one_call.append(middle - begin)
        together.append(end - middle)
        slowest.append(max(seconds for seconds, _ in answers))
        alone.append(timed(generator, prompts[0])[0])
        equal += sum(row[0].tobytes() == pixels for row, (_, pixels) in zip(rows, answers, strict=True))
    return {
        "callers": callers,
        "images_a_second_of_one_call": callers / statistics.median(one_call),
        "images_a_second": callers / statistics.median(together),
        "share_of_one_call": statistics.median(one_call) / statistics.median(together),
        "alone_s": statistics.median(alone),
        "slowest_s": statistics.median(slowest),
        "equal_to_one_call": equal / (ROUNDS * callers),
    }


def timed(generator: TextToImage, prompt: str) -> tuple[float, bytes]:
    """Generate an image.

    Args:
        generator: The generator.
        prompt: What it should show.

    Returns:
        Seconds; the image's pixels.
    """
    begin = time.perf_counter()
    image = generator.generate(prompt, seed=SEED)[0][0]
    return time.perf_counter() - begin, image.tobytes()


if __name__ == "__main__":
    typer.run(main)
