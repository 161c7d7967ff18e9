"""Progress of long work: a bar on a terminal, or a log line every few seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipgen_core import logs

SECONDS_BETWEEN_LINES = 15.0


class Meter:
    """Counts finished items and shows their rate, the time left and the newest metrics.

    Args:
        label: Name of the work.
        total: Number of items; None if it is not known.
        unit: What the items are called, in the plural.
        start: Number of items that an earlier run finished.
        shown: Whether anything is shown.
    """

    def __init__(self, label: str, total: int | None, unit: str, start: int, shown: bool = True) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = start
        self.began = self.last_line = time.monotonic()
        self.figures = dict[str, float]()
        self.console = Console(stderr=True)
        self.shown = shown
        self.bar = self._bar() if shown and self.console.is_terminal else None

    def show(self, **figures: float) -> None:
        """Set the metrics that are shown from now on."""
        self.figures = figures

    def advance(self, count: int = 1) -> None:
        """Add finished items."""
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
        """Items per second since the start of this meter."""
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
    """Show the progress of the work within the `with`.

    Args:
        label: Name of the work.
        total: Number of items; None if it is not known.
        unit: What the items are called, in the plural.
        start: Number of items that an earlier run finished.
        shown: Whether anything is shown.

    Yields:
        The meter, whose `advance` is to be called for finished items.
    """
    meter = Meter(label, total, unit, start, shown)
    if meter.bar is None:
        yield meter
        return
    with meter.bar:
        yield meter


def duration(hours: float) -> str:
    """A time in the unit that a person would use, such as "3 hours"."""
    for unit, size in (("years", 24 * 365.25), ("days", 24.0), ("hours", 1.0)):
        if hours >= 2 * size:
            return f"{hours / size:,.0f} {unit}"
    minutes = round(60 * hours)
    return f"{minutes} minute{'s' * (minutes > 1)}" if minutes else "under 1 minute"
