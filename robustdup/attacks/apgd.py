"""APGD: gradient ascent whose step size follows its own progress, on cross-entropy, DLR or any other loss.

Follows https://arxiv.org/abs/2003.01690 and, in L1, https://arxiv.org/abs/2103.01208, in the arithmetic of the published
code (https://github.com/fra31/auto-attack), its first checkpoint included, which compares the first loss with zero.
It is a `pool` attack, and that is where it differs from that code:

- A row leaves the moment it is fooled, with that very iterate; one that survives returns the iterate of highest loss, over
  several runs the one of them with the smallest margin.
- The last iterate gets no gradient, and with `eot` a single draw: loss and success are taken from the last draw only, as
  published.
- Random starts belong to the row. Gradients that are not finite count as zero, a loss that is NaN is never the best, and
  logits that are not finite count as fooled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd_steps import l1_step, l2_step, linf_step, random_start
from robustdup.attacks.losses import Loss, cw, dlr, find_loss, margin, misclassified
from robustdup.attacks.passes import input_gradient
from robustdup.errors import AttackWarning, UserError
from robustdup.projections import per_sample, project_l1
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

RowLoss = Callable[[Tensor, Tensor], Tensor]  # logits (M, K) and the rows (M,) that they belong to -> one value a row
Watch = Callable[[int, Tensor, Tensor, Tensor], None]  # steps taken, rows (M,), their points, the step sizes (M,) taken


def apgd(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, loss: str | Loss = "ce",
    steps: int = 100, restarts: int = 1, eot: int = 1, rho: float = 0.75, larger_eps: bool = False,
) -> Tensor:  # fmt: skip
    """Maximise `loss` by APGD from `restarts` random starts, `steps` steps each.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape, inside the ball and the box. `rho` is the share
    of steps that must raise the loss between two checkpoints, or the step size is halved (not in L1). `eot` averages the
    gradient over so many calls, for randomised models. `larger_eps` (L1) spends 30% of the steps at 3 eps and 30% at
    2 eps. Warns (AttackWarning) and takes the margin where DLR has too few classes. Raises UserError for an unknown loss
    or a setting that cannot work. https://arxiv.org/abs/2003.01690
    """
    return _untargeted("apgd", model, images, labels, threat, loss, rng=rng, steps=steps, restarts=restarts, eot=eot,
                       rho=rho, larger_eps=larger_eps)  # fmt: skip


def apgd_ce(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    steps: int = 100, restarts: int = 1, eot: int = 1, rho: float = 0.75, larger_eps: bool = False,
) -> Tensor:  # fmt: skip
    """Run `apgd` on the cross-entropy: see there for shapes, options and errors."""
    return _untargeted("apgd-ce", model, images, labels, threat, "ce", rng=rng, steps=steps, restarts=restarts, eot=eot,
                       rho=rho, larger_eps=larger_eps)  # fmt: skip


def apgd_dlr(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    steps: int = 100, restarts: int = 1, eot: int = 1, rho: float = 0.75, larger_eps: bool = False,
) -> Tensor:  # fmt: skip
    """Run `apgd` on the difference-of-logits ratio: see there for shapes, options and errors."""
    return _untargeted("apgd-dlr", model, images, labels, threat, "dlr", rng=rng, steps=steps, restarts=restarts,
                       eot=eot, rho=rho, larger_eps=larger_eps)  # fmt: skip


def apgd_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving point costs under these options."""
    gradients = options["steps"] * options["eot"]
    last_looks = 3 if options["larger_eps"] else 1
    return options["restarts"] * (gradients + last_looks), options["restarts"] * gradients


def _untargeted(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, loss: str | Loss, *,
    rng: SampleRng, **options: Any,
) -> Tensor:  # fmt: skip
    function = find_loss(loss)
    if function is dlr:
        function = _dlr_or_margin(name)

    def row_loss(logits: Tensor, rows: Tensor) -> Tensor:
        return function(logits, labels[rows])

    return worst_of_runs(name, model, images, labels, threat, [row_loss], rng=rng, **options)


def _dlr_or_margin(name: str) -> Loss:
    """Return DLR, or with fewer classes than it needs the margin, and say so once."""
    said: list[str] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[1]
        if classes >= 3:
            return dlr(logits, labels)
        if not said:
            said.append(f"{name}: DLR needs at least 3 classes, the model has {classes}; the margin was used instead.")
            warnings.warn(said[0], AttackWarning, stacklevel=2)
        return cw(logits, labels)

    return loss


def worst_of_runs(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, losses: Sequence[RowLoss], *,
    rng: SampleRng, steps: int, restarts: int, eot: int, rho: float, larger_eps: bool,
) -> Tensor:  # fmt: skip
    """Run APGD on each of `losses`, `restarts` times, on the rows still correct, and return each row's worst point.

    Shapes as in `apgd`. The attack `name` is for messages. Raises UserError for a setting that cannot work.
    """
    _check(name, threat, steps=steps, restarts=restarts, eot=eot, rho=rho, larger_eps=larger_eps)
    phases, rng = _phases(threat, steps, larger_eps), rng.fold("start")
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining = torch.arange(len(images), device=images.device)
    for draw, loss in enumerate(loss for loss in losses for _ in range(restarts)):
        if len(remaining) == 0:
            break
        clean, places = images[remaining], remaining
        if larger_eps:
            start = clean + rng[places].normal(tuple(clean.shape[1:]), draw=draw, dtype=clean.dtype)
        else:
            start = random_start(clean, threat, rng[places], draw=draw)

        def on_these(logits: Tensor, rows: Tensor, loss: RowLoss = loss, places: Tensor = places) -> Tensor:
            return loss(logits, places[rows])

        run = run_phases(model, clean, labels[places], phases, on_these, start, eot=eot, rho=rho)
        better = run.fooled | (run.margin < lowest[places]) | (draw == 0)
        adv_images[places[better]], lowest[places[better]] = run.best[better], run.margin[better]
        remaining = places[~run.fooled]
    return adv_images


def _check(
    name: str, threat: ThreatModel, *, steps: int, restarts: int, eot: int, rho: float, larger_eps: bool
) -> None:
    for option, count in (("steps", steps), ("restarts", restarts), ("eot", eot)):
        if count < 1:
            raise UserError(f"{name}: {option} must be at least 1, got {count}.", code="bad-option")
    if not 0 <= rho <= 1:
        raise UserError(f"{name}: rho is a share of steps between 0 and 1, got {rho}.", code="bad-option")
    if larger_eps and threat.norm != "L1":
        raise UserError(
            f"{name}: larger_eps works in L1 only, the threat model is {threat}. Leave it out.", code="other-norm"
        )
    if larger_eps and steps < 5:
        raise UserError(
            f"{name}: larger_eps needs at least 5 steps for its three radii, got {steps}.", code="bad-option"
        )


def _phases(threat: ThreatModel, steps: int, larger_eps: bool) -> list[tuple[ThreatModel, int]]:
    """Return each radius and how many steps to spend there."""
    if not larger_eps:
        return [(threat, steps)]
    part = math.ceil(0.3 * steps)
    return [
        (threat.with_eps(3 * threat.eps), part),
        (threat.with_eps(2 * threat.eps), part),
        (threat, steps - 2 * part),
    ]


@dataclass
class Run:
    """What a run found for each row: the fooling iterate or that of highest loss, its margin (N,), fooled (N,) bool."""

    best: Tensor
    margin: Tensor
    fooled: Tensor


def run_phases(
    model: nn.Module, images: Tensor, labels: Tensor, phases: Sequence[tuple[ThreatModel, int]], loss: RowLoss,
    start: Tensor, *, eot: int = 1, rho: float = 0.75, watch: Watch | None = None,
) -> Run:  # fmt: skip
    """Run APGD from `start` (N, C, H, W); with several phases each begins at the projection of the last one's best.

    In all but the last phase the ball is too large, so that no row may leave. Shapes as in `apgd`.
    """
    if len(phases) == 1:
        threat, steps = phases[0]
        return ascend(model, images, labels, threat, loss, start, steps=steps, eot=eot, rho=rho, watch=watch)
    for number, (threat, steps) in enumerate(phases, start=1):
        run = ascend(
            model, images, labels, threat, loss, project_l1(images, start, threat.radius), steps=steps, eot=eot,
            rho=rho, may_leave=number == len(phases), resumed=True, watch=watch,
        )  # fmt: skip
        start = run.best
    return run


@dataclass
class State:
    """The rows still in a run: every tensor has one entry a row."""

    row: Tensor
    clean: Tensor
    point: Tensor
    previous: Tensor  # the point before the last step
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_margin: Tensor
    step_size: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    checked_loss: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether the last checkpoint halved the step size
    share: Tensor  # L1: share of the pixels that a step moves
    changed: Tensor  # L1: pixels in which the best point differed from the clean image at the last checkpoint

    def keep(self, mask: Tensor) -> State:
        """Return the rows that `mask` names."""
        return State(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def ascend(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, loss: RowLoss, start: Tensor, *, steps: int,
    eot: int = 1, rho: float = 0.75, may_leave: bool = True, resumed: bool = False, watch: Watch | None = None,
) -> Run:  # fmt: skip
    """Run APGD once from `start` (N, C, H, W), which lies in the ball. Shapes as in `apgd`.

    `resumed` (L1): begin with as many pixels as the start has changed, not with a fifth. `watch` is called with every
    iterate and the step sizes that led to it.
    """
    run = Run(start.clamp(0, 1), images.new_full((len(images),), torch.inf), torch.zeros_like(labels, dtype=torch.bool))
    state = _first_state(images, run.best.clone(), threat, resumed)
    until_check = interval = _first_interval(threat, steps)
    for taken in range(steps + 1):
        if taken > 0:
            state.point, state.previous = _step(state, threat, first=taken == 1), state.point
        if watch is not None:
            watch(taken, state.row, state.point, state.step_size)
        last = taken == steps
        gradient, value, gap, done = _look(model, state, labels, loss, eot, gradient=not last)
        if may_leave and bool(done.any()):
            left = state.row[done]
            run.best[left], run.margin[left], run.fooled[left] = state.point[done], gap[done], True
            if len(left) == len(state.row):
                return run
            state, gradient, value, gap = state.keep(~done), gradient[~done], value[~done], gap[~done]
        _remember(state, gradient, value, gap, first=taken == 0)
        if taken == 0:
            continue
        until_check -= 1
        if until_check == 0 and not last:
            if threat.norm == "L1":
                _check_sparsity(state, threat)
            else:
                _check_progress(state, rho * interval)
                interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            until_check = interval
    run.best[state.row], run.margin[state.row] = state.best, state.best_margin
    return run


def _first_interval(threat: ThreatModel, steps: int) -> int:
    return max(int((0.04 if threat.norm == "L1" else 0.22) * steps), 1)


def _first_state(images: Tensor, start: Tensor, threat: ThreatModel, resumed: bool) -> State:
    one = torch.ones_like(images[:, 0, 0, 0])
    pixels = images[0].numel() if len(images) else 1
    if resumed:
        changed = _count_changed(images, start)
        share = changed / pixels / 1.5
    else:
        changed, share = pixels * one, 0.2 * one
    nothing = torch.zeros_like(images)
    return State(
        row=torch.arange(len(images), device=images.device), clean=images, point=start, previous=start,
        gradient=nothing, loss=0 * one, best=start, best_gradient=nothing, best_loss=0 * one, best_margin=0 * one,
        step_size=(1.0 if threat.norm == "L1" else 2.0) * threat.radius * one, rises=0 * one, checked_loss=0 * one,
        halved=torch.ones_like(one, dtype=torch.bool), share=share, changed=changed,
    )  # fmt: skip


def _step(state: State, threat: ThreatModel, *, first: bool) -> Tensor:
    step_size = per_sample(state.step_size, state.point)
    if threat.norm == "L1":
        return l1_step(state.clean, state.point, state.gradient, step_size, threat.radius, share=state.share)
    move = linf_step if threat.norm == "Linf" else l2_step
    return move(state.clean, state.point, state.previous, state.gradient, step_size, threat.radius, first=first)


def _look(
    model: nn.Module, state: State, labels: Tensor, loss: RowLoss, eot: int, *, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (gradient averaged over `eot` calls, loss, margin, fooled) of each row; the last three of the last call."""
    truth = labels[state.row]
    if not gradient:
        with torch.no_grad():
            logits = model(state.point)
            value = loss(logits, state.row)
        average = state.gradient
    else:
        total: Tensor | None = None
        for _ in range(eot):
            grad, value, logits = input_gradient(model, state.point, lambda logits, part: loss(logits, state.row[part]))
            grad = grad.nan_to_num_(0, 0, 0)
            total = grad if total is None else total.add_(grad)
        assert total is not None
        average = total.div_(eot) if eot > 1 else total
    dtype = state.point.dtype
    return average, value.to(dtype), margin(logits, truth).to(dtype), misclassified(logits, truth)


def _remember(state: State, gradient: Tensor, value: Tensor, gap: Tensor, *, first: bool) -> None:
    """Take in what was seen at `state.point`: whether the loss rose, and whether it is the best so far."""
    state.gradient = gradient
    if first:  # no loss yet: `state.loss` stays zero, with which the published code compares the first step
        state.best_gradient, state.best_margin = gradient, gap
        state.best_loss = value.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        state.checked_loss = state.best_loss
        return
    state.rises = state.rises + (value > state.loss)
    state.loss = value
    better = value > state.best_loss
    wide = per_sample(better, state.point)
    state.best = torch.where(wide, state.point, state.best)
    state.best_gradient = torch.where(wide, gradient, state.best_gradient)
    state.best_loss = torch.where(better, value, state.best_loss)
    state.best_margin = torch.where(better, gap, state.best_margin)


def _check_progress(state: State, wanted: float) -> None:
    """Halve the step of rows whose loss oscillates or whose best has not moved, and take them back to their best."""
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = (state.rises <= wanted) | stuck
    state.step_size = torch.where(halve, state.step_size / 2, state.step_size)
    state.halved, state.checked_loss, state.rises = halve, state.best_loss, torch.zeros_like(state.rises)
    _back_to_best(state, halve)


def _check_sparsity(state: State, threat: ThreatModel) -> None:
    """Set how many pixels a step moves by what the best point changed; long steps again where that became sparser."""
    changed = _count_changed(state.clean, state.best)
    sparser = changed / state.changed < 0.95
    state.share = changed / state.clean[0].numel() / 1.5
    longest = threat.radius
    shorter = (state.step_size / 1.5).clamp(longest / 10, longest)
    state.step_size = torch.where(sparser, torch.full_like(shorter, longest), shorter)
    state.changed = changed
    _back_to_best(state, sparser)


def _back_to_best(state: State, rows: Tensor) -> None:
    wide = per_sample(rows, state.point)
    state.point = torch.where(wide, state.best, state.point)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)


def _count_changed(images: Tensor, points: Tensor) -> Tensor:
    return (points != images).flatten(1).sum(dim=1).to(images.dtype)
