"""How long, how fast, and by which rule weights move: the budget, the learning rate over it, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.config import BUDGETS
from robustdup.data.batches import LONGEST
from robustdup.errors import UserError
from robustdup.training.muon import Muon
from robustdup.training.options import TrainerOptions

RELATIVE = "relative_lr"  # of a parameter group: its learning rate over the run's
# torch's OneCycleLR: share in which the rate rises, lr / first rate, first rate / last rate
ONE_CYCLE = (0.3, 25.0, 1e4)


@dataclass(frozen=True)
class Budget:
    """What a run may use, exactly: `samples` entries in batches of `batch_size`, in `steps` optimizer steps.

    Of each batch `replays` steps are made; the last batch may be smaller, and may be replayed fewer times.
    """

    samples: int
    steps: int
    batch_size: int
    replays: int = 1

    @property
    def batches(self) -> int:
        """Batches of the run."""
        return -(-self.samples // self.batch_size)

    def rows(self, batch: int) -> int:
        """Return the entries in batch number `batch`, over all processes."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def replays_of(self, batch: int) -> int:
        """Return the optimizer steps that batch number `batch` gets."""
        return min(self.replays, self.steps - batch * self.replays)


def make_budget(given: Mapping[str, float], batch_size: int, entries: int, replays: int = 1) -> Budget:
    """Return the budget of a run over `entries` training entries. Raises UserError unless exactly one is given, above zero.

    `given` is {"epochs" | "steps" | "samples": number}: `epochs` and `samples` count training entries as they are drawn (a
    replay draws none), `steps` optimizer steps. e epochs of M entries are round(e M) samples.
    """
    if len(given) != 1:
        both = " and ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(
            f"Give one budget: {', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}; got {both or 'none'}.", code="bad-budget"
        )
    if entries < 1:
        raise UserError("There are no training entries left to train on.", code="no-data")
    name, value = next(iter(given.items()))
    if not (value * entries if name == "epochs" else value) < LONGEST:
        raise UserError(f"A budget of {name}={value:g} would never end.", code="bad-budget")
    if name == "steps":
        steps, samples = int(value), -(-int(value) // replays) * batch_size
    else:
        samples = round(value * entries) if name == "epochs" else int(value)
        steps = -(-samples // batch_size) * replays
    if samples < 1:
        message = f"A budget of {name}={value} trains on nothing: it must be at least one step."
        raise UserError(message, code="bad-budget")
    return Budget(samples, steps, batch_size, replays)


def rate_over(options: TrainerOptions, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a pure function of the optimizer steps already made, for a budget of `steps`.

    After warm-up (linear, up to `lr` at its last step), cosine and linear fall to 0 as torch's CosineAnnealingLR and
    LinearLR do, piecewise divides by ten at the milestones (MultiStepLR); one-cycle is torch's OneCycleLR, whose rise is
    the warm-up. Past the end of a schedule the last rate stays. https://docs.pytorch.org/docs/stable/optim.html
    """
    total = steps if options.schedule_steps is None else options.schedule_steps
    if total < 1:
        raise UserError(f"schedule_steps must be at least 1, got {total}.", code="bad-value")
    if options.schedule == "one-cycle":
        return lambda step: options.lr * _one_cycle(min(step, total - 1), total, options.warmup or ONE_CYCLE[0])
    warm = round(options.warmup * total)

    def rate(step: int) -> float:
        step = min(step, total - 1)
        if step < warm:
            return options.lr * (step + 1) / warm
        share = (step - warm) / (total - warm)
        if options.schedule == "cosine":
            return options.lr * (1 + math.cos(math.pi * share)) / 2
        if options.schedule == "linear":
            return options.lr * (1 - share)
        if options.schedule == "piecewise":
            return options.lr * 0.1 ** sum(step >= round(milestone * total) for milestone in options.milestones)
        return options.lr

    return rate


def _one_cycle(step: int, total: int, rise: float) -> float:
    """Return the share of the largest rate at a step: a cosine up from 1/25, a cosine down to 1/250000."""
    _, first, last = ONE_CYCLE
    top = rise * total - 1
    if step <= top:
        low, high, share = 1 / first, 1.0, step / top if top > 0 else 1.0
    else:
        low, high, share = 1.0, 1 / (first * last), (step - top) / (total - 1 - top) if total - 1 > top else 1.0
    return high + (low - high) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(model: nn.Module, options: TrainerOptions) -> torch.optim.Optimizer:
    """Return SGD (with `nesterov` where there is momentum), AdamW or Muon over the model's parameters that are trained.

    Muon takes the weights of layers without a bias, which a normalisation follows, at `muon_lr`; SGD the rest. Without
    `decay_all` vectors and scalars (biases, normalisation) do not decay. Raises UserError where nothing is trained.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("The model has no parameters to train.", code="bad-model")
    orthogonal = _before_normalisation(model) if options.optimizer == "muon" else []
    rest = [p for p in trained if all(p is not other for other in orthogonal)]
    decayed = [p for p in rest if options.decay_all or p.ndim > 1]
    kept = [p for p in rest if not (options.decay_all or p.ndim > 1)]
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, options.weight_decay), (kept, 0.0))
        if params
    ]
    if options.optimizer == "muon":
        share = options.muon_lr / options.lr
        groups.append({"params": orthogonal, "orthogonal": True, RELATIVE: share, "lr": options.muon_lr})
        return Muon(groups, lr=options.lr, momentum=options.momentum)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov and options.momentum > 0
    )


def _before_normalisation(model: nn.Module) -> list[Tensor]:
    """Return the weights of convolutions and linear layers without a bias. Raises UserError where there are none."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is None]
    weights = [layer.weight for layer in layers if layer.weight.requires_grad]
    if not weights:
        raise UserError(
            "optimizer = muon is for layers that a normalisation follows (those without a bias); this model has none. "
            "Use sgd or adamw.",
            code="bad-model",
        )
    return weights


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, some of which have one relative to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RELATIVE, 1.0)
