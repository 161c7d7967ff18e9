"""One request of the page, sampled in a thread of its own, with previews."""

import contextvars
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.serving.subjects import Subject
from clipgen_core.serving.work import Stopped

REST = 4.0  # times as long as a preview took, until the next one


@dataclass
class Sampling:
    """One request, sampled in a thread of its own so that the page can show previews.

    Leaving the `with` early stops the sampling.

    Attributes:
        generator: The generator.
        subject: What is asked for.
        parameters: Keyword arguments of the generator's call, `n` among them.
        generated: The result, the best first, when all previews have been taken.
    """

    generator: TextToImage
    subject: Subject
    parameters: dict[str, Any]

    def __enter__(self) -> "Sampling":
        self._codes: queue.Queue[torch.Tensor | None] = queue.Queue()
        self._stop_requested = threading.Event()
        self._error: BaseException | None = None
        self.generated: list[Generated] = []
        run = contextvars.copy_context().run  # the thread knows the caller, too
        self._thread = threading.Thread(target=run, args=(self._sample,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Let the sampling end with its next step; `previews` then raises Stopped."""
        self._stop_requested.set()

    def previews(self) -> Iterator[tuple[list[Image.Image], float]]:
        """Yield the unfinished pictures and the share of codes known, when a row of codes more is known.

        Previews take a fifth of the time at most, so that with many users there are fewer of them.

        Raises:
            Stopped: `stop` was called. What else the sampling raised is raised as well.
        """
        side, rows, rest_until = self.generator.vqgan.config.grid, 0, 0.0
        while (codes := self._codes.get()) is not None:
            known, begin = int((codes >= 0).sum()) // len(codes), time.monotonic()
            if known // side > rows and begin >= rest_until:
                rows = known // side
                shown = self.generator.decode_partly(codes[: self.parameters["n"]])
                yield shown, known / side**2
                end = time.monotonic()
                rest_until = end + REST * (end - begin)
        if self._error:
            raise self._error

    def _sample(self) -> None:
        try:
            self.generated = self.subject.sample(self.generator, self._step, **self.parameters)
        except BaseException as error:
            self._error = error
        self._codes.put(None)

    def _step(self, codes: torch.Tensor) -> None:
        if self._stop_requested.is_set():
            raise Stopped
        self._codes.put(codes)
