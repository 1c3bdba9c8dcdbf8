"""What the quick lane takes of many combinations: each value at least once. All others go by night."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def each_once(**parameters: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by all combinations of its parameters; the slow lane takes those that bring no value of their own.

    Args:
        parameters: the values of each parameter. A name such as `norm__eps` stands for two parameters, its values for pairs.

    Returns:
        The mark. Of 3, 2 and 2 values, 3 of the 12 combinations are quick: the first of each, the second of each, and the
        third with the first of the others.
    """
    values = [list(some) for some in parameters.values()]
    longest = max(map(len, values))
    quick = {tuple(number % len(some) for some in values) for number in range(longest)}
    names = [name.split("__") for name in parameters]
    cases = []
    for numbers in product(*(range(len(some)) for some in values)):
        chosen = [some[number] for some, number in zip(values, numbers, strict=True)]
        flat = [
            part for name, value in zip(names, chosen, strict=True) for part in (value if len(name) > 1 else [value])
        ]
        cases.append(pytest.param(*flat, marks=[] if numbers in quick else [pytest.mark.slow]))
    return pytest.mark.parametrize([part for name in names for part in name], cases)
