"""Verdicts and the sentences that a person can quote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustdup_study.metrics import metric, unit_words, write
from robustdup_study.planning import MOST_SEEDS
from robustdup_study.records import PairedComparison, Verdict

LIMITS = {"at floor": "at the floor on both sides", "at ceiling": "at the ceiling on both sides"}


def verdict(one: PairedComparison, alpha: float) -> tuple[Verdict, bool]:
    """Return the verdict of a comparison, and whether a difference that was seen is also shown to be within the margin.

    Primary comparisons are judged by corrected p values, others by their own.
    """
    if one.sd is None:
        return "one seed", False
    if one.sd == 0:
        return "no variation", False
    p = one.p_holm if one.primary else one.p
    tost = one.tost_p_holm if one.primary else one.tost_p
    equivalent = tost is not None and tost < alpha
    if p is not None and p < alpha:
        return ("lower" if one.difference < 0 else "higher"), equivalent
    return ("equivalent" if equivalent else "undecided"), False


def where(one: PairedComparison, varying: Sequence[str]) -> str:
    """Return " at dose 0.5 (pgd_at, uniform)": the dose, if any, and the levels of the factors that vary."""
    return place_of(one.factors, one.dose, varying)


def place_of(factors: Mapping[str, Any], dose: float, varying: Sequence[str]) -> str:
    """Return where something holds, as `where` does."""
    levels = [str(factors[name]) for name in varying if name in factors]
    return (f" at dose {dose:g}" if dose else "") + (f" ({', '.join(levels)})" if levels else "")


def sentence(one: PairedComparison, varying: Sequence[str]) -> str:
    """Say a comparison in one sentence, with its interval, its seeds and what it does not show."""
    body = _contrast(one) if one.kind == "contrast" else _dose(one)
    text = f"{body}{where(one, varying)}, {_seeds(one)}{_images(one)}"
    notes = [_p(one)] if one.verdict in ("lower", "higher", "undecided", "equivalent") else []
    notes.append(_crossed(one))
    if one.also_equivalent and one.margin is not None:
        notes.append(f"yet within ±{_margin(one)}")
    if one.verdict == "undecided":
        notes.append(_needed(one))
    if one.also_differs and one.kind == "dose":
        notes.append(f"also different: {', '.join(one.also_differs)}")
    notes = [note for note in notes if note]
    return text[0].upper() + text[1:] + (f" ({'; '.join(notes)})" if notes else "") + "."


def _is(name: str) -> str:
    """Return the verb of a metric: steps are, accuracy is."""
    return "are" if metric(name).unit == "count" else "is"


def _dose(one: PairedComparison) -> str:
    name, difference = metric(one.metric).text, one.difference
    if one.verdict in LIMITS:
        return f"{name} {_is(one.metric)} {LIMITS[one.verdict]}: {_signed(one)} {_interval(one)} shows nothing"
    if one.verdict == "one seed":
        return f"{name} differed by {_signed(one)}, one seed and so no interval,"
    if one.verdict == "no variation":
        return (
            f"{name} did not change in any seed"
            if difference == 0
            else f"{name} differed by {_signed(one)} in every seed"
        )
    if one.verdict == "equivalent" and one.margin is not None:
        return f"{name} {_is(one.metric)} equivalent within ±{_margin(one)} ({_signed(one)} {_interval(one)})"
    if one.verdict == "undecided":
        it = "they" if _is(one.metric) == "are" else "it"
        return f"{name} {_is(one.metric)} undecided: {it} differed by {_signed(one)} {_interval(one)}"
    return f"{name} {'fell' if difference < 0 else 'rose'} by {_number(one, abs(difference))} {_interval(one, difference < 0)}"


def _contrast(one: PairedComparison) -> str:
    name = metric(one.metric).text
    effect = f"{name} under {one.level}" if one.of_values or not one.dose else f"the effect on {name} under {one.level}"
    verb = _is(one.metric) if one.of_values or not one.dose else "is"
    against = f"than under {one.against}"
    if one.verdict in LIMITS:
        return f"{effect} cannot be compared with that under {one.against}: one of them {verb} {LIMITS[one.verdict]}"
    if one.verdict == "one seed":
        return f"{effect} differed by {_signed(one)} from that under {one.against}, one seed and so no interval,"
    if one.verdict == "no variation":
        return f"{effect} differed from that under {one.against} by {_signed(one)} in every seed"
    if one.verdict == "equivalent" and one.margin is not None:
        return (
            f"{effect} {verb} equivalent to that under {one.against} within ±{_margin(one)} "
            f"({_signed(one)} {_interval(one)})"
        )
    if one.verdict == "undecided":
        return f"{effect} {verb} undecided against that under {one.against}: {_signed(one)} {_interval(one)}"
    low = one.difference < 0
    return f"{effect} {verb} {_number(one, abs(one.difference))} {_interval(one, low)} {'lower' if low else 'higher'} {against}"


def _digits(one: PairedComparison) -> int | None:
    """Shares are written with a second digit where the interval or the margin needs one."""
    if metric(one.metric).unit != "share":
        return None
    half = (one.high - one.low) / 2 if one.high is not None and one.low is not None else 1.0
    return 2 if half < 0.001 or (one.margin is not None and one.margin < 0.005) else 1


def _number(one: PairedComparison, value: float) -> str:
    return write(one.metric, value, digits=_digits(one)) + unit_words(one.metric)


def _margin(one: PairedComparison) -> str:
    """The margin as the recipe has it: 1.0 points, 0.25 points."""
    margin = one.margin or 0.0
    digits = None
    if metric(one.metric).unit == "share":
        digits = 1 if math.isclose(1000 * margin, round(1000 * margin)) else 2
    return write(one.metric, margin, digits=digits) + unit_words(one.metric)


def _signed(one: PairedComparison) -> str:
    return write(one.metric, one.difference, digits=_digits(one), signed=True) + unit_words(one.metric)


def _interval(one: PairedComparison, turned: bool = False) -> str:
    """The interval in brackets; turned around where the sentence speaks of a fall."""
    if one.low is None or one.high is None:
        return ""
    low, high = (-one.high, -one.low) if turned else (one.low, one.high)
    return f"[{write(one.metric, low, digits=_digits(one))}, {write(one.metric, high, digits=_digits(one))}]"


def interval_text(one: PairedComparison) -> str:
    """Return a difference with its interval over seeds: "−1.4 points [−2.1, −0.7]"."""
    return f"{_signed(one)} {_interval(one)}".rstrip()


def _seeds(one: PairedComparison) -> str:
    n = len(one.seeds)
    text = f"{n} paired seed{'s' if n > 1 else ''}"
    if one.missing_seeds:
        text += f" of {n + len(one.missing_seeds)} (without {', '.join(map(str, one.missing_seeds))})"
    return text


def _p(one: PairedComparison) -> str:
    """The p value that the verdict rests on."""
    equal = one.verdict == "equivalent"
    plain, corrected = (one.tost_p, one.tost_p_holm) if equal else (one.p, one.p_holm)
    value = corrected if one.primary else plain
    if value is None:
        return ""
    name = "TOST p" if equal else "p"
    shown = f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.2g}"
    return f"{shown}, {'Holm' if one.primary else 'not corrected'}"


def _needed(one: PairedComparison) -> str:
    if one.margin is None:
        return ""
    low = one.seeds_needed_low
    range_ = f"{low}" if low is not None and low == one.seeds_needed_high else f"{low} to {one.seeds_needed_high}"
    if low is None:
        range_ = ""
    elif one.seeds_needed_high is None:
        range_ = f"{low} to more than {MOST_SEEDS:,}"
    range_ = f" (95% range {range_})" if range_ else ""
    if one.seeds_needed is None:
        return f"not even {MOST_SEEDS:,} seeds would settle it{range_}"
    corrected = " under this correction" if one.primary else ""
    return f"about {one.seeds_needed} seeds{range_} would settle it{corrected}, if mean and spread stay"


def _crossed(one: PairedComparison) -> str:
    """The interval over seeds and test images, beside the one over seeds."""
    if one.crossed_low is None or one.crossed_high is None or one.verdict in LIMITS:
        return ""
    turned = one.verdict == "lower"
    low, high = (-one.crossed_high, -one.crossed_low) if turned else (one.crossed_low, one.crossed_high)
    ends = f"[{write(one.metric, low, digits=_digits(one))}, {write(one.metric, high, digits=_digits(one))}]"
    return f"{ends} over seeds and {one.test_images:,} test images"


def _images(one: PairedComparison) -> str:
    """The distinct training images of both sides."""
    if one.unique_before is None or one.unique_after is None:
        return ""
    before, after = round(one.unique_before), round(one.unique_after)
    if before == after:
        return f", {after:,} distinct images"
    return f", {after:,} distinct images against {before:,}"


def conclusions(comparisons: Iterable[PairedComparison]) -> list[str]:
    """Return the sentences of the primary comparisons."""
    return [one.sentence for one in comparisons if one.primary]


def said(factors: Mapping[str, Any]) -> str:
    """Return factors as words: "objective pgd_at, dose 0.5"."""
    return ", ".join(f"{name} {value}" for name, value in factors.items())
