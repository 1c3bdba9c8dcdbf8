"""Prove a margin again, without torch and with every rounding counted: only what this file accepts is called certified.

A network is a list of steps on vectors of float64: sparse matrices, rectifiers, maxima, sums. A linear function of the
logits is pulled back to the image through lines around each rectifier (https://arxiv.org/abs/1811.00866). Two kinds of
rounding are bounded as in N. Higham, Accuracy and Stability of Numerical Algorithms, chapter 3: the sums here, in
float64, and those of the network itself, which runs in float32 in an order that nobody promises. So what is proven holds
for the answers of the float32 network, not only for those of an ideal one.

This file imports numpy and scipy alone, so that it can be read, and trusted, by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse

Array = np.ndarray[Any, Any]
U64 = 2.0**-53
U32 = 2.0**-24
ORDER = (
    8.0  # the network's sums may be made in any order, and convolutions by other algorithms: its rounding, times this
)
ROWS = 256  # linear functions that are pulled back at once


@dataclass(frozen=True)
class Step:
    """One step: `inputs` are the numbers of the values that it reads, 0 is the image (flat).

    affine: `matrix` (outputs, inputs) and `bias`; `shift` bounds |bias| before anything in it cancelled. rectifier:
    max(x, slope x). maximum: over `windows` (outputs, window) of inputs, -1 beyond the edge. sum: of two values.
    """

    kind: Literal["image", "affine", "rectifier", "maximum", "sum"]
    inputs: tuple[int, ...] = ()
    matrix: sparse.csr_array | None = None
    bias: Array | None = None
    shift: Array | None = None
    slope: float = 0.0
    windows: Array | None = None

    @cached_property
    def absolute(self) -> sparse.csr_array:
        """The absolute entries of an affine step's matrix."""
        assert self.matrix is not None
        return np.abs(self.matrix)

    @cached_property
    def is_scaling(self) -> bool:
        """Whether each output of an affine step reads one input at most."""
        return self.matrix is not None and int(np.diff(self.matrix.indptr).max()) <= 1


@dataclass(frozen=True)
class Tree:
    """A case distinction: at each inner node an input of a rectifier is at most 0, or it is at least 0. No image is left out.

    Attributes:
        splits: int64 (nodes, 2) in preorder: the rectifier's step and the place in its input; the first branch is at most
            0. (-1, -1) is a leaf.
        weights: by leaf, for each split on the way to it, how much the bound leans on it; below 0 counts as 0.
    """

    splits: Array
    weights: Array


Path = tuple[tuple[int, int, float], ...]  # (step, place, side): on this way side times the input is at least 0


@dataclass
class _Values:
    """What is known of every step's value: its bounds, and how far float32 may put it from what the step says.

    `reach` bounds the sizes of all that an affine step adds up.
    """

    low: list[Array]
    high: list[Array]
    rounding: list[Array]
    reach: list[Array]

    def size(self, number: int) -> Array:
        """The largest absolute value that each entry may have."""
        return np.maximum(np.abs(self.low[number]), np.abs(self.high[number]))


def proven_margin(
    steps: Sequence[Step],
    image: Array,
    label: int,
    *,
    norm: str,
    radius: float,
    slopes: Mapping[int, Array] | None = None,
    trees: Mapping[int, Tree] | None = None,
) -> float:
    """Return a number that the margin of the float32 network is not below, anywhere in the ball inside [0, 1].

    Args:
        steps: The network, image first and logits last.
        image: (D,) pixels in [0, 1].
        label: The true class.
        norm: Linf, L2 or L1.
        radius: Of the ball, in pixels of [0, 1].
        slopes: Of rectifiers' lower lines, by their step, from whoever claims the certificate. Any are sound; NaN is the
            better of the two by area, as it is where none are given.
        trees: By another class, cases that the margin to it is proven in one by one. Any are sound.

    Returns:
        The least margin (true logit minus the largest other one) that is possible; -inf where nothing can be said.
    """
    image = image.astype(np.float64)
    is_known = all(0 <= step.slope <= 1 for step in steps)  # rectifiers are then convex, and do not fall
    if not (is_known and np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1 and radius >= 0):
        return -np.inf
    with np.errstate(all="ignore"):
        values = _Values(
            [np.maximum(image - radius * (1 + 4 * U64), 0)],
            [np.minimum(image + radius * (1 + 4 * U64), 1)],
            [np.zeros_like(image)],
            [np.zeros_like(image)],
        )
        needed = {i for step in steps if step.kind in ("rectifier", "maximum") for i in step.inputs}
        for number in range(1, len(steps)):
            _interval_step(steps, number, values)
            if number in needed and not (norm == "Linf" and _is_exact(steps, number)):
                _tighten(steps, number, values, (image, norm, radius))
        classes = len(values.low[-1])
        rows = np.delete(np.eye(classes)[label] - np.eye(classes), label, axis=0)
        ball = (image, norm, radius)
        least = _pull_back(steps, len(steps) - 1, rows, values, ball, slopes or {})
        for place, other in enumerate(np.delete(np.arange(classes), label).tolist()):
            if trees and other in trees and not least[place] > 0:
                cases = _in_cases(steps, trees[other], rows[place : place + 1], values, ball, slopes or {})
                least[place] = max(least[place], cases)
    return float(least.min()) if np.isfinite(least).all() else -np.inf


def _in_cases(
    steps: Sequence[Step], tree: Tree, row: Array, values: _Values, ball: tuple[Array, str, float],
    slopes: Mapping[int, Array],
) -> float:  # fmt: skip
    """Return a lower bound of one linear function (1, K) of the logits: the least over the leaves of a tree.

    A case is about the value that the float32 network has, as all bounds here are. Where side times an input is at least 0,
    the function less any positive multiple of that is not above the function.
    """
    if not _fits(tree):
        return -np.inf
    paths = _paths(tree, steps, values)
    if paths is None:
        return -np.inf
    weights = iter(np.clip(np.nan_to_num(tree.weights.astype(np.float64)), 0, 1e6).tolist())
    worst = np.inf
    for path in paths:
        inside = _Values(list(values.low), list(values.high), values.rounding, values.reach)
        leaning: dict[int, Array] = {}
        is_empty = False
        for step, place, side in path:
            before = steps[step].inputs[0]
            ends = inside.low if side > 0 else inside.high
            ends[before] = ends[before].copy()
            ends[before][place] = max(ends[before][place], 0.0) if side > 0 else min(ends[before][place], 0.0)
            is_empty |= bool(inside.low[before][place] > inside.high[before][place])
            leaning.setdefault(step, np.zeros(len(ends[before])))[place] -= side * next(weights)
        if not is_empty:  # no image of the ball is in that case
            worst = min(worst, float(_pull_back(steps, len(steps) - 1, row, inside, ball, slopes, leaning)[0]))
    return worst


def _fits(tree: Tree) -> bool:
    """Say whether a tree has a weight for each split above each leaf, before its ways are written out: they are as many."""
    waiting, total = [0], 0  # how deep the nodes lie that are still to come
    for step, _ in tree.splits.tolist():
        if not waiting or total > len(tree.weights):
            return False
        depth = waiting.pop()
        waiting += [] if step < 0 else [depth + 1, depth + 1]
        total += depth if step < 0 else 0
    return not waiting and total == len(tree.weights)


def _paths(tree: Tree, steps: Sequence[Step], values: _Values) -> list[Path] | None:
    """Return the way to each leaf, in order; None where the nodes are no tree over inputs of rectifiers."""
    waiting, paths = [Path()], []
    for step, place in tree.splits.tolist():
        if not waiting:
            return None
        path = waiting.pop()
        if step < 0:
            paths.append(path)
        elif step < len(steps) and steps[step].kind == "rectifier" and 0 <= place < len(values.low[step]):
            waiting += [(*path, (step, place, 1.0)), (*path, (step, place, -1.0))]
        else:
            return None
    return None if waiting else paths


def _is_exact(steps: Sequence[Step], number: int) -> bool:
    """Say whether interval bounds of a step are exact over a box: on its way from the pixels, one step at most adds any up."""
    step, n_sums = steps[number], 0
    while step.kind == "affine":
        n_sums += not step.is_scaling
        step = steps[step.inputs[0]]
    return step.kind == "image" and n_sums <= 1


def _interval_step(steps: Sequence[Step], number: int, values: _Values) -> None:
    step = steps[number]
    before = step.inputs[0]
    low, high = values.low[before], values.high[before]
    reach = np.zeros(0)
    if step.kind == "affine":
        assert step.matrix is not None
        assert step.bias is not None
        assert step.shift is not None
        reach = step.absolute @ values.size(before) + step.shift
        terms = np.diff(step.matrix.indptr) + 8.0
        rounding = ORDER * terms * U32 * reach * (1 + 1e-6) + 1e-40
        # Float64 sums of these sizes err by far less than the float32 rounding that is taken off here besides.
        middle, spread = step.matrix @ ((low + high) / 2) + step.bias, step.absolute @ ((high - low) / 2) + rounding
        ends = middle - spread, middle + spread
    elif step.kind == "rectifier":
        ends = np.maximum(low, step.slope * low), np.maximum(high, step.slope * high)
        size = np.maximum(np.abs(ends[0]), np.abs(ends[1]))
        rounding = np.where(size > 0, 4 * U32 * size + 1e-40, 0.0)  # 0 is 0 in float32, too
        ends = ends[0] - rounding, ends[1] + rounding
    elif step.kind == "maximum":
        ends = _windows(step, low).max(1), _windows(step, high).max(1)
        rounding = np.zeros_like(ends[0])
    else:
        other = step.inputs[1]
        ends = low + values.low[other], high + values.high[other]
        rounding = 4 * U32 * (values.size(before) + values.size(other)) + 1e-40
        ends = ends[0] - rounding, ends[1] + rounding
    values.low.append(ends[0])
    values.high.append(ends[1])
    values.rounding.append(rounding)
    values.reach.append(reach)


def _windows(step: Step, values: Array) -> Array:
    assert step.windows is not None
    return np.append(values, -np.inf)[step.windows]


def _tighten(steps: Sequence[Step], number: int, values: _Values, ball: tuple[Array, str, float]) -> None:
    is_open = np.flatnonzero((values.low[number] < 0) & (values.high[number] > 0))
    if steps[number].kind == "image" or not len(is_open):
        return
    low, high = values.low[number].copy(), values.high[number].copy()
    for part in np.array_split(is_open, -(-len(is_open) // ROWS)):
        rows = sparse.csr_array((np.ones(len(part)), (np.arange(len(part)), part)), shape=(len(part), len(low)))
        low[part] = np.maximum(low[part], _pull_back(steps, number, rows, values, ball, {}))
        high[part] = np.minimum(high[part], -_pull_back(steps, number, -rows, values, ball, {}))
    values.low[number], values.high[number] = low, high


def _pull_back(
    steps: Sequence[Step], number: int, rows: Array | sparse.csr_array, values: _Values, ball: tuple[Array, str, float],
    slopes: Mapping[int, Array], leaning: Mapping[int, Array] | None = None,
) -> Array:  # fmt: skip
    """Return lower bounds (S,) of linear functions (S, size) of one step's value, over the ball, less all rounding.

    What `leaning` holds for a rectifier is added to the coefficients (size,) of its input.
    """
    waiting: dict[int, Any] = {number: rows}
    total, off = np.zeros(rows.shape[0]), np.zeros(rows.shape[0])
    for index in range(number, 0, -1):
        coefficients = waiting.pop(index, None)
        if coefficients is None:
            continue
        step = steps[index]
        if step.kind != "affine" and sparse.issparse(coefficients):
            coefficients = coefficients.toarray()
        error = values.rounding[index]  # the float32 network may be this far from the step
        unit = (coefficients.shape[1] + 8) * U64
        if step.kind == "affine":
            parts = [_through_affine(step, coefficients)]
            total += coefficients @ step.bias
            error = error + 4 * unit * values.reach[index]
        elif step.kind == "rectifier":
            constant, part = _through_rectifier(step, values, coefficients, slopes.get(index))
            if leaning and index in leaning:
                off += 4 * U64 * ((np.abs(part) + np.abs(leaning[index])) @ values.size(step.inputs[0]))
                part = part + leaning[index]
            parts = [part]
            total += constant
            error = error + 16 * unit * (values.size(step.inputs[0]) + values.size(index))
        elif step.kind == "maximum":
            constant, part = _through_maximum(step, values, coefficients)
            parts = [part]
            total += constant
            error = error + 16 * unit * values.size(index)
        else:
            parts = [coefficients, coefficients]
        off += np.abs(coefficients) @ error
        for before, part in zip(step.inputs, parts, strict=True):
            if before in waiting:
                off += 4 * U64 * ((np.abs(part) + np.abs(waiting[before])) @ values.size(before))
                part = waiting[before] + part
            waiting[before] = part
    return total + _least(waiting[0], values, ball) - off * (1 + 1e-6) - 1e-12 * np.abs(total)


def _through_affine(step: Step, coefficients: Array | sparse.csr_array) -> Array:
    assert step.matrix is not None
    if sparse.issparse(coefficients):
        return np.asarray((coefficients @ step.matrix).toarray())
    used = np.flatnonzero(
        coefficients.any(axis=0)
    )  # what goes into rectifiers that are 0 for certain counts for nothing
    return np.asarray((step.matrix[used].T @ coefficients[:, used].T).T)


def _through_rectifier(step: Step, values: _Values, coefficients: Array, given: Array | None) -> tuple[Array, Array]:
    low, high = values.low[step.inputs[0]], values.high[step.inputs[0]]
    part = coefficients * np.where(low >= 0, 1.0, step.slope)
    is_open = np.flatnonzero((low < 0) & (high > 0))
    given = None if given is None else np.broadcast_to(given, low.shape)[is_open]
    low, high, coefficients = low[is_open], high[is_open], coefficients[:, is_open]
    above = np.clip((high - step.slope * low) / (high - low), step.slope, 1.0)
    # Any line with this offset lies above both ends, so above the whole of the rectifier between them, which is convex.
    offset = np.maximum(step.slope * low - above * low, high - above * high) + 8 * U64 * (np.abs(low) + np.abs(high))
    below = np.where(high > -low, 1.0, step.slope)
    if given is not None:
        below = np.where(np.isnan(given), below, np.clip(given, step.slope, 1.0))
    part[:, is_open] = coefficients * np.where(coefficients > 0, below, above)
    return np.minimum(coefficients, 0) @ offset, part


def _through_maximum(step: Step, values: _Values, coefficients: Array) -> tuple[Array, Array]:
    assert step.windows is not None
    low, high = values.low[step.inputs[0]], values.high[step.inputs[0]]
    lows, highs = _windows(step, low), _windows(step, high)
    best = lows.argmax(1)
    places = np.arange(len(best))
    others = highs.copy()
    others[places, best] = -np.inf
    certain = lows[places, best] >= others.max(1)
    target = step.windows[places, best]
    positive, negative = np.maximum(coefficients, 0), np.minimum(coefficients, 0)
    part = np.zeros((len(coefficients), len(low)))
    np.add.at(part.T, target, (positive + negative * certain).T)
    return negative @ np.where(certain, 0.0, highs.max(1)), part


def _least(slopes: Array, values: _Values, ball: tuple[Array, str, float]) -> Array:
    """Return the least value (S,) of slopes (S, D) times the image over the ball inside [0, 1], less rounding."""
    image, norm, radius = ball
    off = 8 * (slopes.shape[1] + 8) * U64 * np.abs(slopes).sum(1)  # pixels are at most 1
    by_box = np.maximum(slopes, 0) @ values.low[0] + np.minimum(slopes, 0) @ values.high[0]
    if norm == "Linf":
        return np.asarray(by_box - off)
    length = np.sqrt((slopes**2).sum(1)) if norm == "L2" else np.abs(slopes).max(1)
    by_ball = slopes @ image - radius * (1 + 1e-9) * length
    return np.asarray(np.maximum(by_box, by_ball) - off)
