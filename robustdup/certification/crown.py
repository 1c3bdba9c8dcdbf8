"""Lower bounds of margins over a region: interval bounds, CROWN, alpha-CROWN.

Interval bounds (https://arxiv.org/abs/1810.12715) push boxes forward. CROWN (https://arxiv.org/abs/1811.00866) bounds each
rectifier by two lines and pulls linear functions of a value back to the image. alpha-CROWN
(https://arxiv.org/abs/2011.13824) chooses the lower lines by gradient ascent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustdup.certification.ascent import Ascent
from robustdup.certification.graph import Operation, apply, window_values
from robustdup.certification.region import Region

ROWS = 2048  # linear functions that are pulled back at once
Slopes = dict[int, Tensor]  # per rectifier: slopes (N, *shape) of the lower lines of its open inputs


@dataclass
class Bounds:
    """Per operation: the least and the largest value (N, *shape) over the region."""

    low: list[Tensor]
    high: list[Tensor]


def interval_bounds(operations: Sequence[Operation], region: Region) -> Bounds:
    """Return interval bounds of every operation."""
    bounds = Bounds([], [])
    for operation in operations:
        low, high = interval_step(operation, bounds, region)
        bounds.low.append(low)
        bounds.high.append(high)
    return bounds


def interval_step(operation: Operation, bounds: Bounds, region: Region) -> tuple[Tensor, Tensor]:
    """Return the bounds of one operation from those of its inputs."""
    if operation.kind == "image":
        return region.low, region.high
    lows, highs = [bounds.low[i] for i in operation.inputs], [bounds.high[i] for i in operation.inputs]
    low, high = lows[0], highs[0]
    if operation.kind == "affine":
        assert operation.absolute is not None
        centre, spread = apply(operation, [(low + high) / 2]), operation.absolute((high - low) / 2)
        return centre - spread, centre + spread
    if operation.kind == "rectifier":
        return torch.maximum(low, operation.slope * low), torch.maximum(high, operation.slope * high)
    if operation.kind == "maximum":
        ends = [
            window_values(operation, end, -torch.inf).amax(2).reshape(len(low), *operation.shape) for end in (low, high)
        ]
        return ends[0], ends[1]
    return low + lows[1], high + highs[1]


def crown_bounds(operations: Sequence[Operation], region: Region, *, limit: int = 4096) -> Bounds:
    """Return bounds of every operation, those of rectifiers' and maxima's inputs by CROWN where that is tighter.

    Values with more than `limit` numbers keep interval bounds: one pull-back for each would take too long.
    """
    bounds = Bounds([], [])
    needed = {i for operation in operations if operation.kind in ("rectifier", "maximum") for i in operation.inputs}
    for index, operation in enumerate(operations):
        low, high = interval_step(operation, bounds, region)
        bounds.low.append(low)
        bounds.high.append(high)
        is_exact = operation.kind == "image" or (region.norm == "Linf" and _is_exact(operations, index))
        if index in needed and not is_exact and low[0].numel() <= limit:
            _tighten(operations, index, bounds, region)
    return bounds


def _is_exact(operations: Sequence[Operation], index: int) -> bool:
    """Say whether interval bounds are exact over a box: on the way from the pixels, one operation at most adds any up."""
    operation, n_sums = operations[index], 0
    while operation.kind == "affine":
        n_sums += not operation.is_scaling
        operation = operations[operation.inputs[0]]
    return operation.kind == "image" and n_sums <= 1


def _tighten(operations: Sequence[Operation], index: int, bounds: Bounds, region: Region) -> None:
    """Replace the bounds of an operation by CROWN's, for the values of each sample whose sign is open."""
    low, high = bounds.low[index].flatten(1), bounds.high[index].flatten(1)
    is_open = (low < 0) & (high > 0)
    most = int(is_open.sum(1).max())
    n, shape, step = len(low), operations[index].shape, max(1, ROWS // (2 * max(1, len(low))))
    # The open values of each sample first; one that has fewer takes some of the others besides.
    order = is_open.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    new_low, new_high = low.clone(), high.clone()
    for start in range(0, most, step):
        chosen = order[:, start : start + step]
        rows = torch.zeros(n, chosen.shape[1], low.shape[1]).to(low).scatter_(2, chosen.unsqueeze(2), 1.0)
        least = pull_back(operations, index, torch.cat([rows, -rows], 1).view(n, -1, *shape), bounds, region)
        below, above = torch.split(least, chosen.shape[1], dim=1)
        new_low.scatter_(1, chosen, torch.maximum(low.gather(1, chosen), below))
        new_high.scatter_(1, chosen, torch.minimum(high.gather(1, chosen), -above))
    bounds.low[index], bounds.high[index] = new_low.view(-1, *shape), new_high.view(-1, *shape)


def pull_back(
    operations: Sequence[Operation], index: int, rows: Tensor, bounds: Bounds, region: Region,
    slopes: Mapping[int, Tensor] | None = None, leaning: Mapping[int, Tensor] | None = None,
    kept: dict[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Return lower bounds (N, S), over the region, of linear functions of one operation's value.

    Args:
        index: The operation.
        rows: The functions' coefficients (N, S, *shape of the operation).
        bounds: Of the operations before it.
        slopes: Of rectifiers' lower lines; the better of 0 and 1 by area where not given.
        leaning: By rectifier, what is added to the coefficients (N, *shape) of its input.
        kept: Is given, by rectifier, the coefficients (N, S, *shape) of its value.

    Gradients reach rows, slopes, bounds and the weights of the operations, unless they are switched off.
    """
    waiting: dict[int, Tensor] = {index: rows}
    constant = torch.zeros(rows.shape[:2]).to(rows)
    for number in range(index, 0, -1):
        coefficients = waiting.pop(number, None)
        if coefficients is None:
            continue
        operation = operations[number]
        if operation.kind == "sum":
            parts = [coefficients, coefficients]
        elif operation.kind == "affine":
            offset, part = _through_affine(operation, operations[operation.inputs[0]].shape, coefficients)
            constant = constant + offset
            parts = [part]
        elif operation.kind == "rectifier":
            before = operation.inputs[0]
            given = None if slopes is None else slopes.get(number)
            offset, part = _through_rectifier(
                operation.slope, bounds.low[before], bounds.high[before], coefficients, given
            )
            constant = constant + offset
            parts = [part if leaning is None or number not in leaning else part + leaning[number].unsqueeze(1)]
            if kept is not None:
                kept[number] = coefficients
        else:
            before = operation.inputs[0]
            offset, part = _through_maximum(operation, bounds.low[before], bounds.high[before], coefficients)
            constant = constant + offset
            parts = [part]
        for before, part in zip(operation.inputs, parts, strict=True):
            waiting[before] = waiting[before] + part if before in waiting else part
    return constant + region.least(waiting[0])


def _through_affine(operation: Operation, shape: tuple[int, ...], coefficients: Tensor) -> tuple[Tensor, Tensor]:
    assert operation.linear is not None
    n, s = coefficients.shape[:2]
    flat, keep = coefficients.reshape(n * s, *operation.shape), torch.is_grad_enabled()
    if operation.transposed is not None:
        part = operation.transposed(flat)
    else:
        with torch.enable_grad():
            zeros = torch.zeros(n * s, *shape).to(flat).requires_grad_()
            (part,) = torch.autograd.grad(operation.linear(zeros), zeros, flat, create_graph=keep)
    bias = operation.bias
    offset = (flat * (bias.to(flat) if isinstance(bias, Tensor) else bias)).flatten(1).sum(1)
    return offset.view(n, s), part.view(n, s, *shape)


def lines(slope: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lines around max(x, slope x) on [low, high]: slope below, slope above, offset above; same shapes."""
    ones, rest = torch.ones_like(low), torch.full_like(low, slope)
    is_open = (low < 0) & (high > 0)
    chord = ((high - slope * low) / torch.where(is_open, high - low, ones)).clamp(slope, 1)
    above = torch.where(is_open, chord, torch.where(low >= 0, ones, rest))
    below = torch.where(is_open, torch.where(high > -low, ones, rest), above)
    offset = torch.where(is_open, (1 - above) * high, torch.zeros_like(low))
    return below, above, offset


def _through_rectifier(
    slope: float, low: Tensor, high: Tensor, coefficients: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor]:
    below, above, offset = lines(slope, low, high)
    if given is not None:
        below = torch.where((low < 0) & (high > 0), given.clamp(slope, 1), below)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    constant = (negative * offset.unsqueeze(1)).flatten(2).sum(2)
    return constant, positive * below.unsqueeze(1) + negative * above.unsqueeze(1)


def _through_maximum(operation: Operation, low: Tensor, high: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Below: the input with the largest least value. Above: that input where it is largest for certain, else a constant."""
    assert operation.windows is not None
    n, s = coefficients.shape[:2]
    lows, highs = window_values(operation, low, -torch.inf), window_values(operation, high, -torch.inf)
    best = lows.argmax(2, keepdim=True)
    others = highs.scatter(2, best, -torch.inf).amax(2)
    certain = lows.gather(2, best).squeeze(2) >= others
    target = operation.windows.to(low.device).unsqueeze(0).expand(n, -1, -1).gather(2, best).squeeze(2)
    flat = coefficients.flatten(2)
    positive, negative = flat.clamp(min=0), flat.clamp(max=0)
    through = positive + negative * certain.unsqueeze(1)
    constant = (negative * torch.where(certain, torch.zeros_like(others), highs.amax(2)).unsqueeze(1)).sum(2)
    inputs = low[0].numel()
    part = torch.zeros(n, s, inputs).to(flat).scatter_add(2, target.unsqueeze(1).expand(n, s, -1), through)
    return constant, part.view(n, s, *low.shape[1:])


def margin_rows(labels: Tensor, classes: int) -> Tensor:
    """Return the functions (N, K - 1, K): true logit minus each other one."""
    n = len(labels)
    others = torch.arange(classes, device=labels.device).expand(n, -1)
    others = others[others != labels.unsqueeze(1)].view(n, classes - 1)
    rows = torch.zeros(n, classes - 1, classes, device=labels.device)
    rows.scatter_(2, labels.view(n, 1, 1).expand(-1, classes - 1, 1), 1.0)
    return rows.scatter_(2, others.unsqueeze(2), -1.0)


def margins(
    operations: Sequence[Operation], region: Region, labels: Tensor, *, steps: int = 0, limit: int = 4096
) -> tuple[Tensor, Slopes]:
    """Return lower bounds (N,) of the margin over the region by CROWN, and the slopes of the lower lines that gave them.

    Args:
        region: Around N images.
        labels: (N,) true labels.
        steps: Steps of gradient ascent on the slopes (alpha-CROWN); 0 for CROWN.
        limit: See `crown_bounds`.
    """
    with torch.no_grad():
        bounds = crown_bounds(operations, region, limit=limit)
        last = len(operations) - 1
        rows = margin_rows(labels, operations[-1].shape[0]).to(region.images)
        slopes: Slopes = {}
        for number, operation in enumerate(operations):
            if operation.kind == "rectifier":
                before = operation.inputs[0]
                slopes[number] = lines(operation.slope, bounds.low[before], bounds.high[before])[0]
        best = pull_back(operations, last, rows, bounds, region, slopes).amin(1)
    if steps == 0 or not slopes:
        return best, slopes
    return _ascend(operations, region, rows, bounds, slopes, best, steps)


def _ascend(
    operations: Sequence[Operation],
    region: Region,
    rows: Tensor,
    bounds: Bounds,
    slopes: Slopes,
    best: Tensor,
    steps: int,
) -> tuple[Tensor, Slopes]:
    """Follow the gradient of each sample's worst bound; keep, per sample, the slopes that gave the best one."""
    current = {number: slope.clone() for number, slope in slopes.items()}
    kept = {number: slope.clone() for number, slope in slopes.items()}
    ascent = Ascent(list(current.values()), rate=0.25)
    for _ in range(steps):
        with torch.enable_grad():
            bound = pull_back(operations, len(operations) - 1, rows, bounds, region, current).amin(1)
        with torch.no_grad():
            better = bound > best
            best = torch.where(better, bound, best)
            for number, slope in current.items():
                kept[number][better] = slope[better].detach()
            if bool((best > 0).all()):
                break
            ascent.step(bound)
            for slope in current.values():
                slope.clamp_(0, 1)
        ascent.rate *= 0.95
    return best.detach(), kept
