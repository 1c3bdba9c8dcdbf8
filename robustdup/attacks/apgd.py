"""APGD: gradient ascent whose step size follows its own progress, on cross-entropy, DLR or any other loss.

Follows https://arxiv.org/abs/2003.01690 and, in L1, https://arxiv.org/abs/2103.01208, in the arithmetic of the published
code (https://github.com/fra31/auto-attack), its first checkpoint included, which compares the first loss with zero.
It is a `pool` attack, and that is where it differs from that code:

- A sample leaves the moment it is misclassified, with that very iterate; one that survives returns the iterate of highest
  loss, over several runs the one of them with the smallest margin.
- The last iterate gets no gradient. With `eot` no sample leaves, and losses are averaged over the draws as gradients are,
  where the published code takes both from the last draw: of several runs the one is kept whose image is right in the
  fewest draws when asked again (see `expectation`).
- Random starts belong to the sample. Gradients that are not finite count as zero, a loss that is NaN is never the best, and
  logits that are not finite count as misclassified.

One run is in `apgd_run`, one step in `apgd_steps`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.ahead import ahead, room, take
from robustdup.attacks.apgd_run import Phase, run_phases, takes_gradients
from robustdup.attacks.apgd_steps import random_start
from robustdup.attacks.expectation import asked_again, expected_height
from robustdup.attacks.losses import Loss, cw, dlr, find_loss
from robustdup.errors import AttackWarning, UserError, check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

# Logits (M, K), the samples (M,) and the runs (M,) that they belong to -> one value each.
RunLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What all forms of APGD can be told: see `apgd`."""

    steps: int
    restarts: int
    eot: int
    rho: float
    larger_eps: bool

    def check(self, name: str, threat: ThreatModel) -> None:
        """Raise UserError, in the name of the attack, for a setting that cannot work."""
        check_counts(name, steps=self.steps, restarts=self.restarts, eot=self.eot)
        if not 0 <= self.rho <= 1:
            raise UserError(f"{name}: rho is a share of steps between 0 and 1, got {self.rho}.", code="bad-option")
        if self.larger_eps and threat.norm != "L1":
            raise UserError(
                f"{name}: larger_eps works in L1 only, the threat model is {threat}. Leave it out.", code="other-norm"
            )
        if self.larger_eps and self.steps < 5:
            raise UserError(
                f"{name}: larger_eps needs at least 5 steps for its three radii, got {self.steps}.", code="bad-option"
            )

    def phases(self, threat: ThreatModel) -> list[Phase]:
        """Return each radius and how many steps to spend there."""
        if not self.larger_eps:
            return [Phase(threat, self.steps)]
        part = math.ceil(0.3 * self.steps)
        return [
            Phase(threat.with_eps(3 * threat.eps), part, may_leave=False, resumed=True),
            Phase(threat.with_eps(2 * threat.eps), part, may_leave=False, resumed=True),
            Phase(threat, self.steps - 2 * part, resumed=True),
        ]


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    loss: str | Loss = "ce",
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    rho: float = 0.75,
    larger_eps: bool = False,
) -> Tensor:
    """Maximise `loss` by APGD. https://arxiv.org/abs/2003.01690

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: the samples' streams.
        loss: the name of a loss, or a function (logits (N, K), labels (N,)) -> (N,). Where DLR has too few classes it is the
            margin, with an AttackWarning.
        steps: for each run.
        restarts: runs from random starts.
        eot: calls over which gradient and loss are averaged, for randomised models; above 1 no sample leaves.
        rho: share of steps that must raise the loss between two checkpoints, or the step size is halved (not in L1).
        larger_eps: in L1, spend 30% of the steps at 3 eps and 30% at 2 eps.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: an unknown loss, or a setting that cannot work.
    """
    settings = Settings(steps, restarts, eot, rho, larger_eps)
    return _untargeted("apgd", model, images, labels, threat, loss, rng=rng, settings=settings)


def apgd_ce(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    rho: float = 0.75,
    larger_eps: bool = False,
) -> Tensor:
    """Run `apgd` on the cross-entropy: see there for shapes, options and errors."""
    settings = Settings(steps, restarts, eot, rho, larger_eps)
    return _untargeted("apgd-ce", model, images, labels, threat, "ce", rng=rng, settings=settings)


def apgd_dlr(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    rho: float = 0.75,
    larger_eps: bool = False,
) -> Tensor:
    """Run `apgd` on the difference-of-logits ratio: see there for shapes, options and errors."""
    settings = Settings(steps, restarts, eot, rho, larger_eps)
    return _untargeted("apgd-dlr", model, images, labels, threat, "dlr", rng=rng, settings=settings)


def apgd_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    gradients = options["steps"] * options["eot"]
    last_looks = (3 if options["larger_eps"] else 1) * options["eot"] + asked_again(options["eot"])
    return options["restarts"] * (gradients + last_looks), options["restarts"] * gradients


def _untargeted(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    loss: str | Loss,
    *,
    rng: SampleRng,
    settings: Settings,
) -> Tensor:
    function = find_loss(loss)
    if function is dlr:
        function = _dlr_or_margin(name)

    def run_loss(logits: Tensor, samples: Tensor, runs: Tensor) -> Tensor:
        return function(logits, labels[samples])

    return strongest_of_runs(
        name, model, images, labels, threat, run_loss, settings.restarts, rng=rng, settings=settings
    )


def _dlr_or_margin(name: str) -> Loss:
    """Return DLR, or with fewer classes than it needs minus the margin, and warn of that once."""
    warned = False

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal warned
        classes = logits.shape[1]
        if classes >= 3:
            return dlr(logits, labels)
        if not warned:
            warned = True
            text = f"{name}: DLR needs at least 3 classes, the model has {classes}; the margin was used instead."
            warnings.warn(text, AttackWarning, stacklevel=2)
        return cw(logits, labels)

    return loss


def strongest_of_runs(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    loss: RunLoss,
    runs: int,
    *,
    rng: SampleRng,
    settings: Settings,
) -> Tensor:
    """Run APGD so often, on the samples that are still correct, and return each one's best image.

    Where few samples are left, several runs are made side by side, to the same bits (see `ahead`). With EOT no sample leaves,
    and the best image is the one that is right in the fewest draws.

    Shapes as in `apgd`. The attack `name` is for messages. Raises UserError for a setting that cannot work.
    """
    settings.check(name, threat)
    phases, rng = settings.phases(threat), rng.fold("start")
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining, done = torch.arange(len(images), device=images.device), 0
    while done < runs and len(remaining):
        count = len(remaining)
        beside = min(room(model, count), runs - done) if settings.eot == 1 else 1
        samples = remaining.repeat(beside)
        numbers = torch.arange(done, done + beside, device=images.device).repeat_interleave(count)
        start = torch.cat(
            [_start(images[remaining], threat, rng[remaining], done + k, settings) for k in range(beside)]
        )

        def on_these(logits: Tensor, part: Tensor, samples: Tensor = samples, numbers: Tensor = numbers) -> Tensor:
            return loss(logits, samples[part], numbers[part])

        with ahead(model) if beside > 1 else contextlib.nullcontext():
            run = run_phases(
                model, images[samples], labels[samples], phases, on_these, start, eot=settings.eot, rho=settings.rho,
                beside=beside,
            )  # fmt: skip
        height = run.margin
        if settings.eot > 1:
            height = expected_height(model, run.adv_images, labels, asked_again(settings.eot))
        rows = torch.arange(count, device=images.device)  # of the samples that are still correct
        for _ in range(beside):
            if beside > 1:
                take(model, run.looks[rows], takes_gradients(phases))
            index = samples[rows]
            improved = run.is_adv[rows] | (height[rows] < lowest[index]) | (done == 0)
            better = rows[improved]
            adv_images[samples[better]], lowest[samples[better]] = run.adv_images[better], height[better]
            rows = rows[~run.is_adv[rows]] + count
            done += 1
        remaining = remaining[rows - beside * count]
    return adv_images


def _start(clean: Tensor, threat: ThreatModel, rng: SampleRng, number: int, settings: Settings) -> Tensor:
    """Return where the run of that number starts on clean images (n, C, H, W)."""
    if settings.larger_eps:
        return clean + rng.normal(tuple(clean.shape[1:]), draw=number, dtype=clean.dtype)
    return random_start(clean, threat, rng, draw=number)
