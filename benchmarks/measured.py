"""What a benchmark of evaluations leaves: measurements, and the medians, spreads and ratios made from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import Field

from robustdup.records import Part

Status = Literal["done", "timeout", "failed"]


class Measurement(Part):
    """One attack call in a fresh process on `n` points.

    `seconds` are those of the call alone, CPU seconds where one thread of a CPU computes; where it was stopped (`timeout`) a
    lower bound, by the clock. Passes count rows:
    `counted_by` says whether the benchmark's module around the model did, or robustdup itself. `memory_bytes` is how far the
    call raised the high-water mark of what the process (on CUDA: the allocator) holds, with all that processes started
    by the call held at one time.
    """

    contender: str
    repeat: int
    batch_size: int | None
    n: int
    status: Status
    seconds: float | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None
    padding_rows: int = 0
    counted_by: Literal["benchmark", "robustdup"] | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    violations: int | None = None
    undecided: int = 0
    memory_bytes: int | None = None
    threads: int | None = None
    reason: str = ""
    notes: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)


class Spread(Part):
    """The median of some values with the least and the largest of them."""

    median: float
    low: float
    high: float


class Ratio(Spread):
    """Seconds of a contender over those of `to`, pair by pair of the same repeat; a lower bound where it was stopped."""

    to: str
    pairs: int
    lower_bound: bool = False


class Summary(Part):
    """A contender over its repeats. Passes and accuracy are those of the first repeat: all have the same seed."""

    contender: str
    about: str
    ours: bool
    batch_size: int | None
    status: Status
    repeats: int
    seconds: Spread | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None
    passes_a_point: float | None = None
    counted_by: str | None = None
    robust_accuracy: float | None = None
    violations: int | None = None
    memory_bytes: int | None = None
    ratios: list[Ratio] = Field(default_factory=list)
    reason: str = ""
    notes: list[str] = Field(default_factory=list)


class TimingResult(Part):
    """The result of `python -m benchmarks.timing eval`: how it was made, a summary for each contender, and every measurement."""

    schema_name: Literal["benchmarks-eval"] = "benchmarks-eval"
    schema_version: Literal[1] = 1
    created: str
    command: str
    config: dict[str, Any]
    n: int
    norm: str
    eps: str
    clean_accuracy: float | None = None
    threads: int
    environment: dict[str, str] = Field(default_factory=dict)
    contenders: list[Summary]
    sweep: list[Measurement] = Field(default_factory=list)
    measurements: list[Measurement]
    notes: list[str] = Field(default_factory=list)


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and largest of at least one value."""
    return Spread(median=median(values), low=min(values), high=max(values))


def ratio(theirs: Sequence[Measurement], ours: Sequence[Measurement]) -> Ratio | None:
    """Return the seconds of `theirs` over `ours` in the same repeats; None where no repeat has both.

    Where one of theirs was stopped, the ratios of stopped repeats are the only ones taken, and lower bounds.
    """
    base = {each.repeat: each.seconds for each in ours if each.status == "done" and each.seconds}
    stopped = [each for each in theirs if each.status == "timeout"]
    taken = stopped or [each for each in theirs if each.status == "done"]
    values = [each.seconds / base[each.repeat] for each in taken if each.seconds and base.get(each.repeat)]  # type: ignore[operator]
    if not values:
        return None
    made = spread(values)
    return Ratio(**made.model_dump(), to=ours[0].contender, pairs=len(values), lower_bound=bool(stopped))


def summarise(measurements: Sequence[Measurement], names: Mapping[str, str], ours: Sequence[str]) -> list[Summary]:
    """Return a summary for each of `names` (with what it is) that was measured, and its ratios to each of `ours`."""
    by_name = {name: [each for each in measurements if each.contender == name] for name in names}
    return [
        _summary(
            measured,
            names[name],
            name in ours,
            [by_name[name_of_ours] for name_of_ours in ours if name_of_ours != name and by_name.get(name_of_ours)],
        )
        for name, measured in by_name.items()
        if measured
    ]


def _summary(
    measured: Sequence[Measurement], about: str, ours: bool, references: Sequence[Sequence[Measurement]]
) -> Summary:
    last, done = measured[-1], [each for each in measured if each.status == "done"]
    seconds = [each.seconds for each in (done if last.status == "done" else [last]) if each.seconds is not None]
    summary = Summary(
        contender=last.contender, about=about, ours=ours, batch_size=last.batch_size, status=last.status, repeats=len(done),
        seconds=spread(seconds) if seconds else None, reason=last.reason,
        notes=list(dict.fromkeys(note for each in measured for note in each.notes)),
    )  # fmt: skip
    if last.status != "failed":
        summary.ratios = [made for reference in references if (made := ratio(measured, reference)) is not None]
    if done:
        first = done[0]
        summary.forward_passes, summary.backward_passes = first.forward_passes, first.backward_passes
        summary.passes_a_point = ((first.forward_passes or 0) + (first.backward_passes or 0)) / first.n
        summary.counted_by, summary.violations = first.counted_by, first.violations
        summary.robust_accuracy = first.robust_accuracy
        marks = [each.memory_bytes for each in done if each.memory_bytes is not None]
        summary.memory_bytes = int(median(marks)) if marks else None
        if len({each.robust_accuracy for each in done}) > 1:
            summary.notes.append("Its robust accuracy differed between repeats with the same seed.")
    return summary
