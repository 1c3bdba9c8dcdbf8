"""Numbers as they are written."""

from __future__ import annotations

from fractions import Fraction

import pytest

from robustdup.exact import exact_number
from robustdup.leaderboard.table import exact_eps, same_eps


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", Fraction(8, 255)),
        ("0.031", Fraction(31, 1000)),
        ("8./255.", Fraction(8, 255)),
        ("1e-3", Fraction(1, 1000)),
    ],
)
def test_numbers_are_exact(text, value):
    assert exact_number(text) == value
    assert exact_number(f" {text} ") == value


@pytest.mark.parametrize("text", ["1e400", "1e99999999999", "1e-99999999999", "9" * 400, "9" * 9999, "1e308/1e-308"])
def test_what_no_float_is_near_is_refused_at_once(text):
    with pytest.raises(OverflowError):
        exact_number(text)
    assert exact_eps(text) is None
    assert not same_eps(text, text)


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "٣", "৪/255", "８/255", "8/x"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="digits|Fraction"):
        exact_number(text)


def test_nothing_is_divided_by_zero():
    with pytest.raises(ZeroDivisionError):
        exact_number("1/0")
