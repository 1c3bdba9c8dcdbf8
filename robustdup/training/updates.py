"""Update rules: each owns the backward passes and the optimizer steps of a batch.

`plain` steps once; `awp` steps at weights that were made worse first; `free` steps several times on each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.pgd import ascent
from robustdup.config import parse_call
from robustdup.errors import UserError, unknown
from robustdup.plugins import ObjectiveSpec
from robustdup.plugins.options import check_keywords
from robustdup.threat import ThreatModel
from robustdup.training.modes import frozen_statistics
from robustdup.training.pgd import project_delta

Parameters = Sequence[nn.Parameter]
Metrics = dict[str, Tensor]
LossAndMetrics = tuple[Tensor, Metrics]


def _nothing(*_: Any) -> None:
    return None


def _same(values: Tensor) -> Tensor:
    return values


def loss_scaler(device: str = "cpu", *, enabled: bool = False) -> torch.amp.GradScaler:
    """Return what scales losses where gradients are in fp16, which loses small ones; not `enabled` it does nothing.

    Gradients that are not finite then make no step but a smaller scale: https://docs.pytorch.org/docs/stable/amp.html
    """
    return torch.amp.GradScaler(device, enabled=enabled)


@dataclass(frozen=True)
class UpdateTask:
    """What an update rule works with: one batch, and the loop's hooks.

    `loss_of(shift)` puts the model through the objective at the images, moved by `shift` (n, C, H, W) inside the box where
    one is given, and returns (sum of weight * loss over this process's samples / samples of the global batch, metrics
    (n,)). `reduce` sums the gradients (`.grad`) of parameters over processes, in place. `clip` limits gradients before an
    optimizer step. `stepped` is called after each optimizer step, when the weights are final: schedule, averages, counts.
    `first` is the place of this process's first image among the `rows` of the whole batch (0: as many as here), and
    `whole` makes of values (n, ...) of its images those of all (rows, ...). `replays` limits the steps of a rule that
    makes several: the last batch of a budget in steps may have fewer (0: as many as the rule makes). `parts` are losses like
    `loss_of` of parts of the batch, which add up to it, where memory is to be saved: `gradients` takes them in turn.
    `scaler` scales losses in fp16: gradients are scaled, and may not be finite, until `apply`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[Tensor | None], LossAndMetrics]
    images: Tensor
    reduce: Callable[[Parameters], None] = _nothing
    clip: Callable[[Parameters], None] = _nothing
    stepped: Callable[[], None] = _nothing
    first: int = 0
    rows: int = 0
    whole: Callable[[Tensor], Tensor] = _same
    replays: int = 0
    parts: Sequence[Callable[[Tensor | None], LossAndMetrics]] = ()
    scaler: torch.amp.GradScaler = field(default_factory=loss_scaler)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that the optimizer moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def gradients(self, shift: Tensor | None = None) -> LossAndMetrics:
        """Fill `.grad` with the scaled gradient of the loss over all processes; return its own (loss, metrics), detached."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, collected = [], list[Metrics]()
        for loss_of in self.parts or (self.loss_of,):
            loss, metrics = loss_of(shift)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            collected.append(metrics)
        self.reduce(self.parameters)
        if len(losses) == 1:
            return losses[0], collected[0]
        return torch.stack(losses).sum(), {name: torch.cat([each[name] for each in collected]) for name in collected[0]}

    def finite(self, gradient: Tensor) -> Tensor:
        """Return a scaled gradient in which what overflowed is zero; any other as it is."""
        return gradient.nan_to_num(0.0, 0.0, 0.0) if self.scaler.is_enabled() else gradient

    def apply(self) -> None:
        """Clip, make one optimizer step, and tell the loop."""
        self.scaler.unscale_(self.optimizer)
        self.clip(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stepped()


class UpdateRule:
    """One batch -> `steps` optimizer steps; returns the loss and the metrics of the batch, detached."""

    steps = 1

    def step(self, task: UpdateTask) -> LossAndMetrics:
        """Train on one batch."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart: tensors and plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class Plain(UpdateRule):
    """One gradient, one step."""

    def step(self, task: UpdateTask) -> LossAndMetrics:
        """Step once along the gradient of the objective."""
        loss, metrics = task.gradients()
        task.apply()
        return loss, metrics


class Awp(UpdateRule):
    """Adversarial weight perturbation: the gradient is taken where the weights were moved to raise the loss.

    Each weight tensor w of two dimensions or more moves by gamma * |w| * g / |g|, g the gradient of the objective by it.
    The weights are put back to the bit before the optimizer step, so that step, weight decay and averages see the weights
    themselves. The ascent pass leaves running statistics alone. `warmup`: optimizer steps before the first perturbation.
    https://arxiv.org/abs/2004.05884
    """

    def __init__(self, gamma: float = 0.005, warmup: int = 0) -> None:
        if gamma <= 0 or warmup < 0:
            raise UserError(
                f"awp: gamma must be above 0 and warmup 0 or more, got gamma={gamma}, warmup={warmup}.",
                code="bad-value",
            )
        self.gamma = gamma
        self.warmup = warmup
        self.taken = 0

    def step(self, task: UpdateTask) -> LossAndMetrics:
        """Climb in weight space, take the gradient there, go back and step."""
        if self.taken < self.warmup:
            loss, metrics = task.gradients()
        else:
            with frozen_statistics(task.model):
                task.gradients()
            with self._perturbed(task):
                loss, metrics = task.gradients()
        self.taken += 1
        task.apply()
        return loss, metrics

    @contextmanager
    def _perturbed(self, task: UpdateTask) -> Iterator[None]:
        """Move the model's weights along `.grad` in the block."""
        moved = [(p, p.grad, p.detach().clone()) for p in task.model.parameters() if p.ndim > 1 and p.grad is not None]
        with torch.no_grad():
            for weight, gradient, before in moved:
                gradient = task.finite(gradient)
                weight.add_(gradient * (self.gamma * before.norm() / gradient.norm().clamp(min=1e-20)))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, _, before in moved:
                    weight.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were taken, which the warm-up counts."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.taken = int(state["taken"])


class Free(UpdateRule):
    """Free adversarial training: `replays` steps on each batch, whose backward passes also move the images.

    One perturbation for each place of a batch starts at zero and is carried on from batch to batch, as in the paper; a
    smaller batch uses the first places. Every process keeps those of the whole batch. https://arxiv.org/abs/1904.12843
    """

    def __init__(self, threat: ThreatModel, replays: int = 8) -> None:
        if replays < 1:
            raise UserError(f"free: replays must be at least 1, got {replays}.", code="bad-value")
        self.steps = replays
        self.threat = threat
        self.shift: Tensor | None = None

    def step(self, task: UpdateTask) -> LossAndMetrics:
        """Step on the batch again and again, each time at images moved further; metrics are means over the replays."""
        rows = task.rows or len(task.images)
        carried = self._carried(task.images, rows)
        moved = carried[task.first : task.first + len(task.images)].clone()
        losses, sums = [], dict[str, Tensor]()
        replays = task.replays or self.steps
        for _ in range(replays):
            shift = moved.clone().requires_grad_(True)
            loss, metrics = task.gradients(shift)
            losses.append(loss)
            for name, values in metrics.items():
                sums[name] = sums[name] + values if name in sums else values
            with torch.no_grad():
                up = ascent(
                    task.images, task.finite(torch.zeros_like(shift) if shift.grad is None else shift.grad), self.threat
                )
                moved = project_delta(shift + self.threat.radius * up, self.threat)
            task.apply()
        carried[:rows] = task.whole(moved)
        self.shift = carried
        return torch.stack(losses).mean(), {name: values / replays for name, values in sums.items()}

    def _carried(self, images: Tensor, rows: int) -> Tensor:
        """Return the perturbations so far, zeros where a batch of `rows` has more places than those before."""
        more = images.new_zeros(max(rows - (0 if self.shift is None else len(self.shift)), 0), *images.shape[1:])
        # A copy: a checkpoint may hold the tensor.
        return more if self.shift is None else torch.cat([self.shift.to(images), more])

    def state_dict(self) -> dict[str, Any]:
        """Return the perturbations of all places."""
        return {} if self.shift is None else {"shift": self.shift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.shift = state.get("shift")


RULES: dict[str, Callable[..., UpdateRule]] = {"plain": Plain, "awp": Awp, "free": Free}


def make_update(text: str, objective: ObjectiveSpec, options: Mapping[str, Any], threat: ThreatModel) -> UpdateRule:
    """Return the update rule that 'plain', 'awp(gamma=0.01)' or the objective itself names.

    An objective that needs a rule brings it, with those of the objective's checked `options` that the rule knows.
    Raises UserError for an unknown rule or option, and for two that do not go together.
    """
    name, given = parse_call(text, "update rule")
    if name not in RULES:
        raise unknown("update rule", name, RULES)
    needed = objective.update
    if needed and name not in ("plain", needed):
        raise UserError(
            f"The objective {objective.name!r} brings its own update rule and does not go with {name!r}.",
            code="options-conflict",
        )
    if name == "free" and needed != "free":
        raise UserError(
            f"The update rule 'free' goes with the objective 'free' alone, not with {objective.name!r}.",
            code="options-conflict",
        )
    rule = RULES[needed or name]
    known = {option: p for option, p in signature(rule).parameters.items() if option != "threat"}
    brought = {option: value for option, value in options.items() if needed and option in known}
    checked = check_keywords(f"update rule {needed or name!r}", needed or name, known, {**brought, **given})
    return rule(threat, **checked) if "threat" in signature(rule).parameters else rule(**checked)
