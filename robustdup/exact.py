"""Numbers as they are written: 8/255 is that fraction, and no float."""

from __future__ import annotations

import re
import sys
from fractions import Fraction

LONGEST = 1000  # letters of a number
POWER = re.compile(r"e[-+]?\d{5}", re.IGNORECASE)  # 1e999999999 takes minutes and gigabytes to write out


def exact_number(text: str) -> Fraction:
    """Return a number as it is written, exactly: '8/255', '0.031', '8./255.', '1e-3'.

    Raises ValueError for what is no number in digits from 0 to 9 (another script's 4 looks like an 8), OverflowError for
    what is larger than any float, ZeroDivisionError.
    """
    if not text.isascii():
        raise ValueError("digits of another script")
    if len(text) > LONGEST or POWER.search(text):
        raise OverflowError("too long, or too large")
    above, slash, below = text.replace(" ", "").partition("/")
    value = Fraction(_whole_point(above)) / (Fraction(_whole_point(below)) if slash else 1)
    if abs(value) > sys.float_info.max:
        raise OverflowError("too large")
    return value


def _whole_point(text: str) -> str:
    """Return '8.' as '8.0', which older Pythons want."""
    return f"{text}0" if text.endswith(".") else text
