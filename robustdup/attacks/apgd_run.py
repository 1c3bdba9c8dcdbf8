"""One run of APGD from a given start: state, checkpoints, and the loop. See `apgd`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd_steps import l1_step, l2_step, linf_step
from robustdup.attacks.losses import margin, misclassified
from robustdup.attacks.passes import input_gradient
from robustdup.projections import per_sample, project_l1
from robustdup.threat import ThreatModel

RowLoss = Callable[[Tensor, Tensor], Tensor]  # logits (M, K) and the samples (M,) that they belong to -> one value each
Watch = Callable[
    [int, Tensor, Tensor, Tensor], None
]  # steps taken, samples (M,), their iterates, step sizes (M,) taken


@dataclass(frozen=True)
class Phase:
    """A part of a run in one ball: how many steps.

    Args:
        threat: the ball.
        steps: at least 1.
        may_leave: whether a sample that is misclassified leaves: not where the ball is too large.
        resumed: (L1) begin with as many pixels as the start has changed, not with a fifth.
    """

    threat: ThreatModel
    steps: int
    may_leave: bool = True
    resumed: bool = False


@dataclass
class Run:
    """Of each sample the misclassified iterate or that of highest loss (N, C, H, W), its margin (N,), `is_adv` (N,) bool.

    `looks` (N,) says how often it was looked at.
    """

    adv_images: Tensor
    margin: Tensor
    is_adv: Tensor
    looks: Tensor


def run_phases(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    phases: Sequence[Phase],
    loss: RowLoss,
    start: Tensor,
    *,
    eot: int = 1,
    rho: float = 0.75,
    watch: Watch | None = None,
    beside: int = 1,
) -> Run:
    """Run APGD from `start` (N, C, H, W); with several phases each begins at the projection of the last one's best.

    Shapes as in `apgd`; `beside` as in `ascend`.
    """
    looks = torch.zeros_like(labels)
    for phase in phases:
        if len(phases) > 1:
            start = project_l1(images, start, phase.threat.radius)
        run = ascend(model, images, labels, phase, loss, start, eot=eot, rho=rho, watch=watch, beside=beside)
        start, looks = run.adv_images, looks + run.looks
    run.looks = looks
    return run


def takes_gradients(phases: Sequence[Phase]) -> list[bool]:
    """Return for each look of a run whether it takes a gradient: the last of a phase does not."""
    return [step < phase.steps for phase in phases for step in range(phase.steps + 1)]


@dataclass
class State:
    """The samples still in a run: every tensor has one value or image per sample."""

    index: Tensor
    clean: Tensor
    iterate: Tensor
    previous: Tensor  # the iterate before the last step
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
    changed: Tensor  # L1: pixels in which the best iterate differed from the clean image at the last checkpoint

    def keep(self, mask: Tensor) -> State:
        """Return the samples that `mask` names."""
        return State(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    phase: Phase,
    loss: RowLoss,
    start: Tensor,
    *,
    eot: int = 1,
    rho: float = 0.75,
    watch: Watch | None = None,
    beside: int = 1,
) -> Run:
    """Run one phase of APGD from `start` (N, C, H, W), which lies in the ball. Shapes as in `apgd`.

    `watch` is called with every iterate and the step sizes that led to it. With `beside` above 1 the rows are so many runs on
    the same samples, all samples of the first run before those of the next: a run ends where an earlier one has succeeded.
    """
    threat, steps = phase.threat, phase.steps
    count = len(images) // beside
    unbroken, full = images.new_full((len(images),), torch.inf), torch.full_like(labels, steps + 1)
    run = Run(start.clamp(0, 1), unbroken, torch.zeros_like(labels, dtype=torch.bool), full)
    first_broken = torch.full((count,), beside, device=labels.device)  # run of each sample
    state = _first_state(images, run.adv_images.clone(), threat, phase.resumed)
    until_check = interval = _first_interval(threat, steps)
    for step in range(steps + 1):
        if step > 0:
            state.iterate, state.previous = _step(state, threat, first=step == 1), state.iterate
        if watch is not None:
            watch(step, state.index, state.iterate, state.step_size)
        last = step == steps
        gradient, losses, margins, is_adv = _look(model, state, labels, loss, eot, gradient=not last)
        if phase.may_leave and eot == 1 and bool(is_adv.any()):
            left = state.index[is_adv]
            run.adv_images[left], run.margin[left], run.is_adv[left] = state.iterate[is_adv], margins[is_adv], True
            stay = ~is_adv
            if beside > 1:
                first_broken.scatter_reduce_(0, left % count, left // count, "amin")
                stay &= state.index // count < first_broken[state.index % count]
            run.looks[state.index[~stay]] = step + 1
            if not bool(stay.any()):
                return run
            state, gradient, losses, margins = state.keep(stay), gradient[stay], losses[stay], margins[stay]
        _remember(state, gradient, losses, margins, first=step == 0)
        if step == 0:
            continue
        until_check -= 1
        if until_check == 0 and not last:
            if threat.norm == "L1":
                _check_sparsity(state, threat)
            else:
                _check_progress(state, rho * interval)
                interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            until_check = interval
    run.adv_images[state.index], run.margin[state.index] = state.best, state.best_margin
    return run


def _first_interval(threat: ThreatModel, steps: int) -> int:
    return max(int((0.04 if threat.norm == "L1" else 0.22) * steps), 1)


def _first_state(images: Tensor, start: Tensor, threat: ThreatModel, resumed: bool) -> State:
    ones = torch.ones_like(images[:, 0, 0, 0])
    pixels = images[0].numel() if len(images) else 1
    if resumed:
        changed = _count_changed(images, start)
        share = changed / pixels / 1.5
    else:
        changed, share = pixels * ones, 0.2 * ones
    zeros = torch.zeros_like(images)
    return State(
        index=torch.arange(len(images), device=images.device),
        clean=images,
        iterate=start,
        previous=start,
        gradient=zeros,
        loss=0 * ones,
        best=start,
        best_gradient=zeros,
        best_loss=0 * ones,
        best_margin=0 * ones,
        step_size=(1.0 if threat.norm == "L1" else 2.0) * threat.radius * ones,
        rises=0 * ones,
        checked_loss=0 * ones,
        halved=torch.ones_like(ones, dtype=torch.bool),
        share=share,
        changed=changed,
    )


def _step(state: State, threat: ThreatModel, *, first: bool) -> Tensor:
    step_size = per_sample(state.step_size, state.iterate)
    if threat.norm == "L1":
        return l1_step(state.clean, state.iterate, state.gradient, step_size, threat.radius, share=state.share)
    move = linf_step if threat.norm == "Linf" else l2_step
    return move(state.clean, state.iterate, state.previous, state.gradient, step_size, threat.radius, first=first)


def _look(
    model: nn.Module, state: State, labels: Tensor, loss: RowLoss, eot: int, *, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (gradient, loss, margin, is_adv) of each sample, the first three averaged over `eot` calls.

    `is_adv` is of the last call. Without a gradient, it is that of the last look.
    """
    index, dtype = state.index, state.iterate.dtype
    gradients, losses, margins = torch.zeros_like(state.iterate), *torch.zeros(2, len(index)).to(state.iterate)
    for _ in range(eot):
        if gradient:
            grad, values, logits = input_gradient(model, state.iterate, lambda logits, part: loss(logits, index[part]))
            gradients = gradients + grad.nan_to_num_(0, 0, 0)
        else:
            with torch.no_grad():
                logits = model(state.iterate)
                values = loss(logits, index)
        losses, margins = losses + values, margins + margin(logits, labels[index])
    is_adv = misclassified(logits, labels[index])
    average = gradients / eot if gradient else state.gradient
    return average, (losses / eot).to(dtype), (margins / eot).to(dtype), is_adv


def _remember(state: State, gradient: Tensor, losses: Tensor, margins: Tensor, *, first: bool) -> None:
    """Take in what was seen at `state.iterate`: whether the loss rose, and whether it is the best so far."""
    state.gradient = gradient
    if first:  # no loss yet: `state.loss` stays zero, with which the published code compares the first step
        state.best_gradient, state.best_margin = gradient, margins
        state.best_loss = losses.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        state.checked_loss = state.best_loss
        return
    state.rises = state.rises + (losses > state.loss)
    state.loss = losses
    improved = losses > state.best_loss
    wide = per_sample(improved, state.iterate)
    state.best = torch.where(wide, state.iterate, state.best)
    state.best_gradient = torch.where(wide, gradient, state.best_gradient)
    state.best_loss = torch.where(improved, losses, state.best_loss)
    state.best_margin = torch.where(improved, margins, state.best_margin)


def _check_progress(state: State, wanted: float) -> None:
    """Halve the step of samples whose loss oscillates or whose best has not moved, and take them back to their best."""
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = (state.rises <= wanted) | stuck
    state.step_size = torch.where(halve, state.step_size / 2, state.step_size)
    state.halved, state.checked_loss, state.rises = halve, state.best_loss, torch.zeros_like(state.rises)
    _back_to_best(state, halve)


def _check_sparsity(state: State, threat: ThreatModel) -> None:
    """Set how many pixels a step moves by what the best iterate changed; long steps again where that became sparser."""
    changed = _count_changed(state.clean, state.best)
    sparser = changed / state.changed < 0.95
    state.share = changed / state.clean[0].numel() / 1.5
    longest = threat.radius
    shorter = (state.step_size / 1.5).clamp(longest / 10, longest)
    state.step_size = torch.where(sparser, torch.full_like(shorter, longest), shorter)
    state.changed = changed
    _back_to_best(state, sparser)


def _back_to_best(state: State, which: Tensor) -> None:
    wide = per_sample(which, state.iterate)
    state.iterate = torch.where(wide, state.best, state.iterate)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)


def _count_changed(images: Tensor, others: Tensor) -> Tensor:
    return (others != images).flatten(1).sum(dim=1).to(images.dtype)
