"""Calls that are under way, here or in several workers: what a view of the run is told of them, as one event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from robustdup.records import Progress


@dataclass(frozen=True)
class UnderWay:
    """How far a call is: its first sample, how many it holds, the share done (0 if unknown), passes so far in rows."""

    first: int
    samples: int
    share: float
    passes: int


Tick = Callable[[UnderWay], None]  # told now and then inside a call


@dataclass
class Watch:
    """Tells `progress` of each stage and call, and of all calls under way together while they run."""

    progress: Callable[[Progress], None]
    latest: Progress | None = None
    calls: dict[int, UnderWay] = field(default_factory=dict)
    judged: set[int] = field(default_factory=set)

    def begin(self, event: Progress) -> None:
        """Tell that a stage begins."""
        self.calls.clear()
        self.judged.clear()
        self.latest = event
        self.progress(event)

    def end_call(self, first: int, event: Progress) -> None:
        """Tell that the call whose first sample is `first` was judged; others may be under way."""
        self.judged.add(first)
        self.calls.pop(first, None)
        self.latest = event
        self.progress(self._with_calls(event))

    def tick(self, call: UnderWay) -> None:
        """Tell how far the calls are, one of which has come further."""
        if call.first in self.judged or self.latest is None:
            return  # of a worker whose note came late
        self.calls[call.first] = call
        self.progress(self._with_calls(self.latest.model_copy(update={"message": ""})))

    def _with_calls(self, event: Progress) -> Progress:
        samples = sum(call.samples for call in self.calls.values())
        if not samples:
            return event
        done = sum(call.share * call.samples for call in self.calls.values())
        passes = sum(call.passes for call in self.calls.values())
        return event.model_copy(update={"under_way": samples, "share": done / samples, "passes": passes})
