"""The published figures of arXiv 2504.00638, in per cent.

From the output of the authors' notebooks (https://github.com/alireza1375/Duplication_CIFAR), but for the standard arm at 60,
which is from the text of version 1: that notebook's output ends during this run. `rerun` is a comment at the end of the
notebook. Columns: arm, percent, clean accuracy on test images, accuracy under the attack.
"""

from __future__ import annotations

from typing import NamedTuple

NOTEBOOK = "authors' notebook output"
TEXT = "paper text, version 1"
RERUN = "comment at the end of the authors' notebook"


class Figure(NamedTuple):
    """One published run."""

    arm: str
    percent: float
    clean: float
    adversarial: float | None
    source: str = NOTEBOOK


FIGURES = (
    Figure("standard", 0, 70.72, None), Figure("standard", 10, 73.41, None), Figure("standard", 20, 73.70, None),
    Figure("standard", 30, 74.65, None), Figure("standard", 40, 74.12, None), Figure("standard", 50, 73.94, None),
    Figure("standard", 60, 75.11, None, TEXT),
    Figure("adversarial", 0, 41.16, 25.03), Figure("adversarial", 10, 33.76, 24.69),
    Figure("adversarial", 20, 33.87, 24.86), Figure("adversarial", 30, 27.39, 24.74),
    Figure("adversarial", 40, 31.19, 25.29), Figure("adversarial", 50, 24.10, 25.24),
    Figure("adversarial", 60, 20.90, 25.18), Figure("adversarial", 70, 31.38, 24.55),
    Figure("adversarial", 80, 29.00, 24.30), Figure("adversarial", 90, 39.37, 25.49),
    Figure("adversarial", 100, 36.21, 25.38),
    Figure("adversarial", 0, 37.39, 24.33, RERUN), Figure("adversarial", 100, 41.38, 25.17, RERUN),
)  # fmt: skip
