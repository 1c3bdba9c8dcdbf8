"""Branch and bound on rectifiers: what one linear relaxation leaves open is proven case by case.

An input of a rectifier is at most 0, or it is at least 0; in either case the rectifier is linear, and bounds are tighter.
Each case leans on its condition by a multiplier, which gradient ascent finds (https://arxiv.org/abs/2103.06624). What comes
out is a tree of cases that the checker proves again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustdup.certification.ascent import Ascent
from robustdup.certification.checker import Path, Tree
from robustdup.certification.crown import Bounds, crown_bounds, lines, margin_rows, pull_back
from robustdup.certification.graph import Operation
from robustdup.certification.region import Region

CASES = 32  # that are bounded at once
MOST = 2000  # leaves of a tree
STEPS = 12  # of gradient ascent on the multipliers
MOST_UNITS = 20_000  # rectifiers of a network that this is tried on


@dataclass
class _Node:
    path: Path
    weights: list[float] = field(default_factory=list)
    split: tuple[int, int] | None = None
    below: _Node | None = None
    above: _Node | None = None


def count_rectifiers(operations: Sequence[Operation]) -> int:
    """Return how many numbers of a network pass through a rectifier."""
    return sum(int(np.prod(operation.shape)) for operation in operations if operation.kind == "rectifier")


def prove_by_cases(
    operations: Sequence[Operation], region: Region, label: int, slopes: Mapping[int, Tensor], *, seconds: float,
    slack: float = 0.0,
) -> dict[int, Tree] | None:  # fmt: skip
    """Look for trees of cases that prove one sample: by another class that its margin is open to.

    Args:
        operations: The network.
        region: Around one image.
        label: Its true class.
        slopes: (1, *shape) by rectifier, of the lower lines; they stay the same in all cases.
        seconds: Of this thread's CPU, until the search is given up: another load of the machine gives the same proofs.
        slack: What a bound must have above 0, since the checker counts rounding.

    Returns:
        The trees, which the checker is to prove; None where time, or the number of cases, ran out.
    """
    deadline = time.thread_time() + seconds
    with torch.no_grad():
        bounds = crown_bounds(operations, region)
        rows = margin_rows(torch.tensor([label]), operations[-1].shape[0]).to(region.images)
        least = pull_back(operations, len(operations) - 1, rows, bounds, region, slopes)[0]
    others = [other for other in range(rows.shape[2]) if other != label]
    trees = {}
    for place in least.argsort().tolist():
        if float(least[place]) > slack:
            break
        tree = _tree(_Problem(operations, region, bounds, rows[:, place : place + 1], slopes), slack, deadline)
        if tree is None:
            return None
        trees[others[place]] = tree
    return trees


@dataclass(frozen=True)
class _Problem:
    """One linear function of the logits, `row` (1, 1, K), of one sample; `bounds` and `slopes` hold without any case."""

    operations: Sequence[Operation]
    region: Region
    bounds: Bounds
    row: Tensor
    slopes: Mapping[int, Tensor]


def _tree(problem: _Problem, slack: float, deadline: float) -> Tree | None:
    root = _Node(())
    queue, n_leaves = [root], 1
    while queue:
        if time.thread_time() > deadline or n_leaves > MOST:
            return None
        nodes, queue = queue[-CASES:], queue[:-CASES]
        for node, (bound, weights, split) in zip(nodes, _bound_cases(problem, nodes, slack), strict=True):
            node.weights = weights
            if bound > slack:
                continue
            if split is None:  # nothing is open any more
                return None
            node.split = split
            node.below, node.above = (_Node((*node.path, (*split, side)), [*weights, 0.0]) for side in (-1.0, 1.0))
            queue += [node.below, node.above]
            n_leaves += 1
    nodes = list(_preorder(root))
    splits = np.array([(-1, -1) if node.split is None else node.split for node in nodes], dtype=np.int64)
    weights = [weight for node in nodes if node.split is None for weight in node.weights]
    return Tree(splits, np.array(weights, dtype=np.float32))


def _preorder(node: _Node) -> Iterator[_Node]:
    yield node
    for child in (node.below, node.above):
        if child is not None:
            yield from _preorder(child)


def _bound_cases(
    problem: _Problem, nodes: Sequence[_Node], slack: float
) -> list[tuple[float, list[float], tuple[int, int] | None]]:
    """Return of each case its bound, the multipliers that gave it, and where to split it further, if anywhere."""
    operations, n = problem.operations, len(nodes)
    region = Region(problem.region.images.expand(n, -1, -1, -1), problem.region.norm, problem.region.radius)
    bounds = _in_case(problem, nodes)
    row = problem.row.expand(n, -1, -1)
    slopes = {number: slope.expand(n, *slope.shape[1:]) for number, slope in problem.slopes.items()}
    depth = max(len(node.path) for node in nodes)
    padded = [[*node.weights, *[0.0] * (depth - len(node.path))] for node in nodes]
    weights = torch.tensor(padded).to(row).view(n, depth)
    best, kept = torch.full_like(row[:, 0, 0], -torch.inf), weights.clone()
    coefficients: dict[int, Tensor] = {}
    ascent = Ascent([weights], rate=0.1)
    for step in range(STEPS + 1 if depth else 1):
        seen: dict[int, Tensor] = {}
        with torch.enable_grad():
            leaning = _leaning(operations, nodes, weights)
            bound = pull_back(operations, len(operations) - 1, row, bounds, region, slopes, leaning, seen).squeeze(1)
        with torch.no_grad():
            better = bound > best
            best = torch.where(better, bound, best)
            kept[better] = weights[better]
            coefficients = {
                number: torch.where(better.view(-1, *[1] * (value.ndim - 1)), value, coefficients.get(number, value))
                for number, value in seen.items()
            }
        if step == STEPS or not depth or bool((best > slack).all()):
            break
        ascent.step(bound)
        with torch.no_grad():
            weights.clamp_(min=0)
    places = _places(operations, bounds, slopes, coefficients)
    return [
        (float(best[i]), kept[i, : len(node.path)].tolist(), places[i]) for i, node in enumerate(nodes)
    ]  # fmt: skip


def _in_case(problem: _Problem, nodes: Sequence[_Node]) -> Bounds:
    """Return the bounds (n, *shape) of every operation with the inputs of rectifiers cut off as the cases say."""
    n = len(nodes)
    low, high = ([end.expand(n, *end.shape[1:]) for end in ends] for ends in (problem.bounds.low, problem.bounds.high))
    own: set[tuple[int, float]] = set()
    for row, node in enumerate(nodes):
        for step, place, side in node.path:
            before = problem.operations[step].inputs[0]
            ends = low if side > 0 else high
            if (before, side) not in own:
                own.add((before, side))
                ends[before] = ends[before].clone(memory_format=torch.contiguous_format)
            flat = ends[before].view(n, -1)
            flat[row, place] = flat[row, place].clamp(min=0) if side > 0 else flat[row, place].clamp(max=0)
    return Bounds(low, high)


def _leaning(operations: Sequence[Operation], nodes: Sequence[_Node], weights: Tensor) -> dict[int, Tensor]:
    """Return, by rectifier, minus side times weight at the places of the splits: (n, *shape)."""
    entries: dict[int, list[tuple[int, int, int, float]]] = {}
    for row, node in enumerate(nodes):
        for depth, (step, place, side) in enumerate(node.path):
            entries.setdefault(step, []).append((row, place, depth, side))
    leaning = {}
    for step, of_step in entries.items():
        rows, places, depths = torch.tensor([entry[:3] for entry in of_step]).to(weights.device).T
        values = -torch.tensor([entry[3] for entry in of_step]).to(weights) * weights[rows, depths]
        shape = operations[step].shape
        zeros = torch.zeros(len(nodes), int(np.prod(shape))).to(weights)
        leaning[step] = zeros.index_put((rows, places), values, accumulate=True).view(-1, *shape)
    return leaning


def _places(
    operations: Sequence[Operation], bounds: Bounds, slopes: Mapping[int, Tensor], coefficients: Mapping[int, Tensor]
) -> list[tuple[int, int] | None]:
    """Return for each case the rectifier and place at which its lines give most away; None where no input is open."""
    n = len(bounds.low[0])
    best = [0.0] * n
    chosen: list[tuple[int, int] | None] = [None] * n
    for number, coefficient in coefficients.items():
        before = operations[number].inputs[0]
        low, high = bounds.low[before], bounds.high[before]
        _, _, offset = lines(operations[number].slope, low, high)
        is_open = (low < 0) & (high > 0)
        below = slopes[number]
        gap = torch.maximum((1 - below) * high, (below - operations[number].slope) * -low)
        weight = coefficient.squeeze(1)
        given_away = torch.where(is_open, -weight.clamp(max=0) * offset + weight.clamp(min=0) * gap, 0.0)
        # Where nothing is given away an open input may still be split.
        given_away = (given_away + 1e-12 * is_open).flatten(1)
        most, place = given_away.max(1)
        for row, (gain, unit) in enumerate(zip(most.tolist(), place.tolist(), strict=True)):
            if gain > best[row]:
                best[row], chosen[row] = gain, (number, unit)
    return chosen
