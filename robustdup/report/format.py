"""Numbers as a reader wants them: short, aligned, and a dash where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.markup import escape as escape_markup

from robustdup.errors import plain

Record = TypeVar("Record", bound=BaseModel)

NONE = "–"


def escape(text: object) -> str:
    """Return text from anywhere as rich prints it letter by letter: no markup is read in it, no control character goes out."""
    return escape_markup(plain(text, lines=True))


def printable(record: Record) -> Record:
    """Return a record whose texts any terminal or file can take: names come from strangers, with what they please in them."""
    return type(record).model_validate(_plain_texts(record.model_dump()))


def _plain_texts(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Enum):
        return plain(value, lines=True)
    if isinstance(value, dict):
        return {_plain_texts(key): _plain_texts(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain_texts(part) for part in value)
    return value


def missing(value: Any) -> bool:
    """Say whether there is no number to show: None, NaN or infinite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def known(value: Any) -> Any:
    """Return a number to draw or to sort by: None where there is none."""
    return None if missing(value) else value


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share in [0, 1] as per cent."""
    return NONE if share is None or missing(share) else f"{100 * share:.{digits}f}%"


def interval(low: float | None, high: float | None) -> str:
    """Return both ends of an interval of shares, in per cent."""
    if low is None or high is None or missing(low) or missing(high):
        return NONE
    return f"{100 * low:.2f} to {100 * high:.2f}"


def with_interval(value: Any) -> str:
    """Return an accuracy with its 95% interval, in per cent: 45.20% [42.10, 48.30]."""
    return f"{percent(value.value)} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def images_taken(selection: str, n: int, total: int) -> str:
    """Return which images of a split were taken: the first 1,000 of 10,000 images."""
    chosen = {"first": "the first ", "sample": "a random ", "stratified": "a stratified "}.get(selection, "")
    return f"{chosen}{n:,} of {total:,} images" if n < total else f"{n:,} images"


def share_text(share: float) -> str:
    """Return a share in per cent with as many digits as it needs: 20%, 22.5%."""
    return f"{round(100 * share, 6):g}%"


def signed(share: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return NONE if share is None or missing(share) else f"{100 * share:+z.2f}".replace("-", "−")


def signed_interval(low: float, high: float) -> str:
    """Return an interval of differences in percentage points."""
    return f"{signed(low)} to {signed(high)}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with a few significant digits."""
    return NONE if value is None or missing(value) else f"{value:.{digits}g}"


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals."""
    return NONE if value is None or missing(value) else f"{value:,.{digits}f}"


def whole(count: float | None) -> str:
    """Return a count with separators: 1,234,567."""
    return NONE if count is None or missing(count) else f"{count:,.0f}"


def short(count: float | None) -> str:
    """Return a number in at most six letters: 0.5, 950, 19.4k, 3.66M."""
    if count is None or missing(count):
        return NONE
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def duration(seconds: float | None) -> str:
    """Return a time as 4.2 s, 1 min 20 s or 2 h 5 min."""
    if seconds is None or missing(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, singular: str, many: str | None = None) -> str:
    """Return a count with its noun: 1 point, 2 points."""
    return f"{whole(count)} {singular if count == 1 else many or singular + 's'}"


def listed(words: Iterable[str], limit: int = 6) -> str:
    """Return words joined by commas, the rest counted."""
    names = list(words)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def shortened(text: str, length: int) -> str:
    """Return text on one line of at most `length` letters, cut in the middle: names often differ at their ends."""
    one_line = " ".join(text.split())
    if len(one_line) <= length:
        return one_line
    return f"{one_line[: length - length // 2 - 1]}…{one_line[-(length // 2) :]}"


WORDS_MEET = re.compile(r"(?<=[:_\-/@, ])|(?<=[a-z0-9])(?=[A-Z])")  # places in a name where a line may end


def folded(name: str, width: int) -> str:
    """Return a name in lines of at most `width` letters, broken where its words meet; a longer word stays whole."""
    lines = [""]
    for part in WORDS_MEET.split(name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def folded_spec(spec: str, width: int) -> str:
    """Return a spec in lines of at most `width` letters, its options indented below its name where they do not fit."""
    name, bracket, options = spec.partition("(")
    if len(spec) <= width or not bracket:
        return folded(spec, width)
    below = folded(options.removesuffix(")"), width - 2).split("\n")
    return "\n".join([folded(name, width), *(f"  {line}" for line in below)])


def attack_label(attack: Any) -> str:
    """Return the name of an attack's result with its options, as one would type it."""
    options = ", ".join(f"{name}={value}" for name, value in attack.options.items())
    return f"{attack.name}({options})" if options else attack.name


def clock(seconds: float) -> str:
    """Return a time on a clock: 45 s, 3:07, 2:05:00."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
