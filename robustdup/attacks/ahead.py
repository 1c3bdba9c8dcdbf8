"""Rows that are computed side by side, or before it is known whether they are needed, where few samples are left.

A call of a few rows costs almost as much as one of many: runs towards several targets, or the next queries of a random
search, fill it up. Randomness belongs to the sample, so that each row has the bits that it has when its turn comes, and
an attack takes from what was computed only what it would have come to one after the other. Verdicts, images, passes and
looks are those of that; what was computed in vain counts as padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from robustdup.attacks.passes import Passes


def room(model: nn.Module, rows: int) -> int:
    """Return how many times so many rows may be computed at once: 1 where calls need no filling (see `Passes`)."""
    return max(model.fill // max(rows, 1), 1) if isinstance(model, Passes) and model.draws == 1 else 1


@contextlib.contextmanager
def ahead(model: nn.Module) -> Iterator[None]:
    """Count the rows of the block as padding, and its looks not at all: `take` counts what turns out to be needed."""
    assert isinstance(model, Passes)  # there is no room elsewhere
    before, looks = model.count.copy(), len(model.looks)
    try:
        yield
    finally:
        del model.looks[looks:]
        model.count.padding += model.count.forward - before.forward
        model.count.forward, model.count.backward = before.forward, before.backward


def take(model: nn.Module, looks: Tensor, gradients: Sequence[bool]) -> None:
    """Count what was computed ahead and is needed, as if it had been asked look by look.

    Args:
        model: what was asked.
        looks: how often each sample (n,) was looked at before it left.
        gradients: whether each look took a gradient.
    """
    assert isinstance(model, Passes)
    rows, count = len(looks), model.count
    leaving = torch.bincount(looks, minlength=len(gradients) + 1).tolist()
    for number, gradient in enumerate(gradients):
        rows -= leaving[number]
        if rows == 0:
            return
        model.looks.append((rows, count.forward + count.backward))
        count.forward += rows
        count.backward += rows * gradient
        count.padding -= rows
