"""Verdicts and the sentences that a person can quote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustdup_study.metrics import metric, unit_words, write
from robustdup_study.planning import MOST_SEEDS
from robustdup_study.records import PairedComparison, Verdict

LIMITS = {"at floor": "at the floor on both sides", "at ceiling": "at the ceiling on both sides"}


def verdict(comparison: PairedComparison, alpha: float) -> tuple[Verdict, bool]:
    """Return the verdict of a comparison, and whether a difference that was seen is also shown to be within the margin.

    Primary comparisons are judged by corrected p values, others by their own.
    """
    if comparison.sd is None:
        return "one seed", False
    if comparison.sd == 0:
        return "no variation", False
    p = comparison.p_holm if comparison.primary else comparison.p
    tost = comparison.tost_p_holm if comparison.primary else comparison.tost_p
    equivalent = tost is not None and tost < alpha
    if p is not None and p < alpha:
        return ("lower" if comparison.difference < 0 else "higher"), equivalent
    return ("equivalent" if equivalent else "undecided"), False


def where(comparison: PairedComparison, varying: Sequence[str]) -> str:
    """Return " at dose 0.5 (pgd_at, uniform)": the dose, if any, and the levels of the factors that vary."""
    return place_of(comparison.factors, comparison.dose, varying)


def place_of(factors: Mapping[str, Any], dose: float, varying: Sequence[str]) -> str:
    """Return where something holds, as `where` does."""
    levels = [str(factors[name]) for name in varying if name in factors]
    return (f" at dose {dose:g}" if dose else "") + (f" ({', '.join(levels)})" if levels else "")


def sentence(comparison: PairedComparison, varying: Sequence[str]) -> str:
    """Say a comparison in one sentence, with its interval, its seeds and what it does not show."""
    body = _contrast(comparison) if comparison.kind == "contrast" else _dose(comparison)
    text = f"{body}{where(comparison, varying)}, {_seeds(comparison)}{_images(comparison)}"
    notes = [_p(comparison)] if comparison.verdict in ("lower", "higher", "undecided", "equivalent") else []
    notes.append(_crossed(comparison))
    if comparison.also_equivalent and comparison.margin is not None:
        notes.append(f"yet within ±{_margin(comparison)}")
    if comparison.verdict == "undecided":
        notes.append(_needed(comparison))
    if comparison.also_differs and comparison.kind == "dose":
        notes.append(f"also different: {', '.join(comparison.also_differs)}")
    notes = [note for note in notes if note]
    return text[0].upper() + text[1:] + (f" ({'; '.join(notes)})" if notes else "") + "."


def _is(name: str) -> str:
    """Return the verb of a metric: steps are, accuracy is."""
    return "are" if metric(name).unit == "count" else "is"


def _dose(comparison: PairedComparison) -> str:
    name, difference = metric(comparison.metric).text, comparison.difference
    if comparison.verdict in LIMITS:
        shown = f"{_signed(comparison)} {_interval(comparison)} shows nothing"
        return f"{name} {_is(comparison.metric)} {LIMITS[comparison.verdict]}: {shown}"
    if comparison.verdict == "one seed":
        return f"{name} differed by {_signed(comparison)}, one seed and so no interval,"
    if comparison.verdict == "no variation":
        return (
            f"{name} did not change in any seed"
            if difference == 0
            else f"{name} differed by {_signed(comparison)} in every seed"
        )
    if comparison.verdict == "equivalent" and comparison.margin is not None:
        seen = f"({_signed(comparison)} {_interval(comparison)})"
        return f"{name} {_is(comparison.metric)} equivalent within ±{_margin(comparison)} {seen}"
    if comparison.verdict == "undecided":
        it = "they" if _is(comparison.metric) == "are" else "it"
        return (
            f"{name} {_is(comparison.metric)} undecided: {it} differed by {_signed(comparison)} {_interval(comparison)}"
        )
    size = f"{_number(comparison, abs(difference))} {_interval(comparison, difference < 0)}"
    return f"{name} {'fell' if difference < 0 else 'rose'} by {size}"


def _contrast(comparison: PairedComparison) -> str:
    name = metric(comparison.metric).text
    of_values = not comparison.change and (comparison.of_values or not comparison.dose)
    changed = f"the change of {name} {comparison.change}" if comparison.change else f"the effect on {name}"
    effect = f"{name if of_values else changed} under {comparison.level}"
    verb = _is(comparison.metric) if of_values else "is"
    against = f"than under {comparison.against}"
    if comparison.verdict in LIMITS:
        limit = f"one of them {verb} {LIMITS[comparison.verdict]}"
        return f"{effect} cannot be compared with that under {comparison.against}: {limit}"
    if comparison.verdict == "one seed":
        return f"{effect} differed by {_signed(comparison)} from that under {comparison.against}, one seed and so no interval,"
    if comparison.verdict == "no variation":
        return f"{effect} differed from that under {comparison.against} by {_signed(comparison)} in every seed"
    if comparison.verdict == "equivalent" and comparison.margin is not None:
        return (
            f"{effect} {verb} equivalent to that under {comparison.against} within ±{_margin(comparison)} "
            f"({_signed(comparison)} {_interval(comparison)})"
        )
    if comparison.verdict == "undecided":
        return f"{effect} {verb} undecided against that under {comparison.against}: {_signed(comparison)} {_interval(comparison)}"
    low = comparison.difference < 0
    size = f"{_number(comparison, abs(comparison.difference))} {_interval(comparison, low)}"
    return f"{effect} {verb} {size} {'lower' if low else 'higher'} {against}"


def _digits(comparison: PairedComparison) -> int | None:
    """Shares are written with a second digit where the interval or the margin needs one."""
    if metric(comparison.metric).unit != "share":
        return None
    half = (comparison.high - comparison.low) / 2 if comparison.high is not None and comparison.low is not None else 1.0
    return 2 if half < 0.001 or (comparison.margin is not None and comparison.margin < 0.005) else 1


def _number(comparison: PairedComparison, value: float) -> str:
    return write(comparison.metric, value, digits=_digits(comparison)) + unit_words(comparison.metric)


def _margin(comparison: PairedComparison) -> str:
    """The margin as the recipe has it: 1.0 points, 0.25 points."""
    margin = comparison.margin or 0.0
    digits = None
    if metric(comparison.metric).unit == "share":
        digits = 1 if math.isclose(1000 * margin, round(1000 * margin)) else 2
    return write(comparison.metric, margin, digits=digits) + unit_words(comparison.metric)


def _signed(comparison: PairedComparison) -> str:
    return write(comparison.metric, comparison.difference, digits=_digits(comparison), signed=True) + unit_words(
        comparison.metric
    )


def _interval(comparison: PairedComparison, turned: bool = False) -> str:
    """The interval in brackets; turned around where the sentence speaks of a fall."""
    if comparison.low is None or comparison.high is None:
        return ""
    low, high = (-comparison.high, -comparison.low) if turned else (comparison.low, comparison.high)
    digits = _digits(comparison)
    return f"[{write(comparison.metric, low, digits=digits)}, {write(comparison.metric, high, digits=digits)}]"


def interval_text(comparison: PairedComparison) -> str:
    """Return a difference with its interval over seeds: "−1.4 points [−2.1, −0.7]"."""
    return f"{_signed(comparison)} {_interval(comparison)}".rstrip()


def _seeds(comparison: PairedComparison) -> str:
    n = len(comparison.seeds)
    text = f"{n} paired seed{'s' if n > 1 else ''}"
    if comparison.missing_seeds:
        text += f" of {n + len(comparison.missing_seeds)} (without {_runs(comparison.missing_seeds)})"
    return text


def _runs(seeds: Sequence[int]) -> str:
    """Write seeds with three or more in a row as a range: 1, 2, 5 to 19."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _p(comparison: PairedComparison) -> str:
    """The p value that the verdict rests on."""
    equal = comparison.verdict == "equivalent"
    plain, corrected = (comparison.tost_p, comparison.tost_p_holm) if equal else (comparison.p, comparison.p_holm)
    value = corrected if comparison.primary else plain
    if value is None:
        return ""
    name = "TOST p" if equal else "p"
    shown = f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.2g}"
    return f"{shown}, {'Holm' if comparison.primary else 'not corrected'}"


def _needed(comparison: PairedComparison) -> str:
    if comparison.margin is None:
        return ""
    low = comparison.seeds_needed_low
    range_ = (
        f"{low}"
        if low is not None and low == comparison.seeds_needed_high
        else f"{low} to {comparison.seeds_needed_high}"
    )
    if low is None:
        range_ = ""
    elif comparison.seeds_needed_high is None:
        range_ = f"{low} to more than {MOST_SEEDS:,}"
    range_ = f" (95% range {range_})" if range_ else ""
    if comparison.seeds_needed is None:
        return f"not even {MOST_SEEDS:,} seeds would settle it{range_}"
    corrected = " under this correction" if comparison.primary else ""
    return f"about {comparison.seeds_needed} seeds{range_} would settle it{corrected}, if mean and spread stay"


def _crossed(comparison: PairedComparison) -> str:
    """The interval over seeds and test images, beside the one over seeds."""
    if comparison.crossed_low is None or comparison.crossed_high is None or comparison.verdict in LIMITS:
        return ""
    turned = comparison.verdict == "lower"
    low, high = (
        (-comparison.crossed_high, -comparison.crossed_low)
        if turned
        else (comparison.crossed_low, comparison.crossed_high)
    )
    digits = _digits(comparison)
    ends = f"[{write(comparison.metric, low, digits=digits)}, {write(comparison.metric, high, digits=digits)}]"
    return f"{ends} over seeds and {comparison.test_images:,} test images"


def _images(comparison: PairedComparison) -> str:
    """The distinct training images of both sides."""
    if comparison.unique_before is None or comparison.unique_after is None:
        return ""
    before, after = round(comparison.unique_before), round(comparison.unique_after)
    if before == after:
        return f", {after:,} distinct images"
    return f", {after:,} distinct images against {before:,}"


def conclusions(comparisons: Iterable[PairedComparison]) -> list[str]:
    """Return the sentences of the primary comparisons."""
    return [comparison.sentence for comparison in comparisons if comparison.primary]
