"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipgen_core import logs

SECONDS_BETWEEN_LINES = 15.0


class Meter:
    """Counts what is done; shows rate, time left and the newest figures."""

    def __init__(self, label: str, total: int | None, unit: str, start: int, shown: bool = True) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = start
        self.began = self.last_line = time.monotonic()
        self.figures = dict[str, float]()
        self.console = Console(stderr=True)
        self.shown = shown
        self.bar = self._bar() if shown and self.console.is_terminal else None

    def show(self, **figures: float) -> None:
        """Figures to show from now on."""
        self.figures = figures

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.done, rate=self._state())
        elif self.shown and self._due():
            self.last_line = time.monotonic()
            counted = {"done": self.done, "total": self.total, f"{self.unit}_per_second": self.rate}
            logs.line(self._line(), work=self.label, **counted, **self.figures)

    def _due(self) -> bool:
        return time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or self.done == self.total

    @property
    def rate(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def _state(self) -> str:
        figures = "  ".join(f"{name} {value:.3g}" for name, value in self.figures.items())
        return f"{self.rate:.3g} {self.unit}/s  {figures}"

    def _line(self) -> str:
        if self.total is None:
            return f"{self.label}  {self.done}  {self._state()}"
        left = (self.total - self.done) / max(self.rate, 1e-9)
        return f"{self.label}  {self.done}/{self.total}  {self._state()}  {left:.0f} s left"

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self.console)
        bar.add_task(self.label, total=self.total, completed=self.first, rate="")
        return bar


@contextmanager
def track(
    label: str, total: int | None, unit: str = "it", start: int = 0, shown: bool = True
) -> Iterator[Meter]:
    """`with track("embedding", 1000, "pictures") as meter: meter.advance(32)`; total None: not known."""
    meter = Meter(label, total, unit, start, shown)
    if meter.bar is None:
        yield meter
        return
    with meter.bar:
        yield meter
