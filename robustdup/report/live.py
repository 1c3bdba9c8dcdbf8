"""A run as it goes: bars on a terminal, a line every half minute where output is redirected."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from robustdup.records import Progress
from robustdup.report.format import duration, escape, short

EVERY = 30.0  # seconds between two lines


class Lines:
    """Prints a line on standard error at most every `every` seconds: what a log of a long run needs."""

    def __init__(self, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._started = self._last = clock()

    def say(self, text: Callable[[], str]) -> None:
        """Print `text()` with the time since the start, if it is time for a line."""
        now = self._clock()
        if now - self._last >= self._every:
            self._last = now
            print(f"{duration(now - self._started)}: {text()}", file=sys.stderr, flush=True)


class Bars:
    """Shows work while the block runs.

    Args:
        columns: of the bars.
        enabled: bars on standard error, for a terminal or a notebook.
        lines: without bars, a line every half minute on standard error.
    """

    def __init__(self, *columns: ProgressColumn, enabled: bool, lines: bool) -> None:
        self._bars = RichProgress(*columns, console=Console(stderr=True), disable=not enabled)
        self._lines = Lines() if lines and not enabled else None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


class LiveView(Bars):
    """Shows an evaluation as it goes: stage, samples, survivors, rate and time left."""

    def __init__(self, *, enabled: bool, lines: bool = False) -> None:
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[samples]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[survivors]}"),
            enabled=enabled,
            lines=lines,
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def update(self, progress: Progress) -> None:
        """Take one event of a run."""
        key = (progress.eps_text, progress.stage)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(
                escape(_stage(progress)), total=progress.total, rate="", survivors="", samples=""
            )
        task = self._bars.tasks[self._tasks[key]]
        self._bars.update(
            task.id,
            completed=progress.done + progress.share * progress.under_way,
            samples=_samples(progress),
            rate=f"{task.speed:.3g} images/s" if task.speed else "",
            survivors=f"{progress.survivors} of {progress.n} survive",
        )
        if self._lines is not None:
            self._lines.say(lambda: in_one_line(progress))
        if progress.message:
            self._bars.console.print(f"[yellow]{escape(progress.message)}")


def in_one_line(progress: Progress) -> str:
    """Say where an evaluation stands: eps, stage, attack, samples, survivors."""
    return f"{_stage(progress)}: {_samples(progress)}, {progress.survivors} of {progress.n} survive"


def _stage(progress: Progress) -> str:
    return f"eps {progress.eps_text}  {progress.stage + 1}/{progress.n_stages} {progress.attack}"


def _samples(progress: Progress) -> str:
    """Return how many samples are judged, and how far the call under way is: 128/512 judged (256 more: 45%, 19.4k passes)."""
    text = f"{progress.done}/{progress.total} judged"
    if not progress.under_way:
        return text
    share = f"{progress.share:.0%}, " if progress.share else ""
    return f"{text} ({progress.under_way} more: {share}{short(progress.passes)} passes)"
