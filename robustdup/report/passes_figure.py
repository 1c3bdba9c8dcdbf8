"""Robust accuracy against the passes that a sample took: what each pass through the model bought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from robustdup.errors import UserError
from robustdup.records import AttackResult, EvaluationRecord
from robustdup.report.charts import Axis, Chart, Point, Series, shape, shares, tone
from robustdup.report.format import attack_label, number, percent, whole
from robustdup.report.runs import Run, labels

LINES = 8
Step = tuple[float, float, str]  # passes that a surviving sample has had, robust accuracy then, words


def plot_passes(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `passes`: robust accuracy over the forward and backward passes of a surviving sample, log scale."""
    names = labels(runs)
    lines = [(name, steps(run.record)) for name, run in zip(names, runs, strict=True) if run.record.attacks][:LINES]
    if not lines:
        raise UserError("The records hold no attacks.", code="no-data")
    highest = max((line[-1][0] for _, line in lines), default=1.0)
    if len(lines) == 1:
        series = _by_attack(lines[0][1])
    else:
        series = [
            Series(name, _staircase(line), tone(place), shape(place), marks=False)
            for place, (name, line) in enumerate(lines)
        ]
    return Chart(
        "passes", "Robust accuracy against passes",
        "Robust accuracy over the passes, forward and backward together, that a sample still standing has had.",
        _passes_axis(highest), shares("robust accuracy"), series,
        headings=("run", "attack", "passes per surviving sample", "robust accuracy"),
        rows=[(name, words, number(passes), percent(share)) for name, line in lines for passes, share, words in line],
    )  # fmt: skip


def steps(record: EvaluationRecord) -> list[Step]:
    """Return how robust accuracy fell: (passes that a surviving sample has had by then, share of samples, attack).

    Attacks that drop what they have broken say after how many passes; for the others all that they broke counts from
    their end. Where attacks ran one by one on all samples, each begins anew, and the lowest share so far is shown.
    """
    clean = record.clean_accuracy.value
    line: list[Step] = [(0.0, clean, "clean")]
    spent = 0.0
    for attack in record.attacks:
        before = line[-1][1]
        total = passes_of_a_survivor(attack)
        for passes, dropped in attack.broken_after:
            left = max(before - dropped / max(record.n, 1), min(attack.robust_accuracy_after, before))
            line.append((spent + min(passes, total), left, attack_label(attack)))
        spent += total
        line.append((spent, min(before, attack.robust_accuracy_after), attack_label(attack)))
    return line


def passes_of_a_survivor(attack: AttackResult) -> float:
    """Return the passes that a sample had which the attack did not break: what is left of all passes, shared out."""
    total, dropped = float(attack.forward_passes + attack.backward_passes), 0
    for passes, dropped_by_then in attack.broken_after:
        total -= passes * (dropped_by_then - dropped)
        dropped = dropped_by_then
    if dropped >= attack.n_attacked:
        return float(max((passes for passes, _ in attack.broken_after), default=0))
    return max(0.0, total) / (attack.n_attacked - dropped)


def _by_attack(line: Sequence[Step]) -> list[Series]:
    """Return a line for each attack, from where the one before it ended; those that broke nothing are grey, of one name."""
    series: list[Series] = []
    before, tones = line[0], 0
    for words, group in groupby(line[1:], key=lambda step: step[2]):
        stretch = [before, *group]
        broke = stretch[-1][1] < before[1]
        name, colour = (words, tone(tones)) if broke else ("attacks that broke nothing", "grey")
        series.append(Series(name, _staircase(stretch), colour, marks=False))
        before, tones = stretch[-1], tones + broke
    return series


def _staircase(line: Sequence[Step]) -> list[Point]:
    passes, share, words = line[0]
    points = [Point(_place(passes), share, f"{words}, {whole(round(passes))} passes: {percent(share)}")]
    for passes, share, words in line[1:]:
        points.append(Point(_place(passes), points[-1].y))
        points.append(Point(_place(passes), share, f"{words}, {whole(round(passes))} passes: {percent(share)}"))
    return points


def _place(passes: float) -> float:
    """Return where a number of passes lies on the scale: its decimal logarithm, from one pass on."""
    return math.log10(max(passes, 1.0))


def _passes_axis(highest: float) -> Axis:
    top = max(1, math.ceil(_place(highest)))
    ticks = tuple((float(power), f"{10**power:,}") for power in range(top + 1))
    return Axis(0.0, float(top), ticks, "passes per surviving sample (log scale)")
