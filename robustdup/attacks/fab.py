"""FAB: walk along the decision boundary, as near to the clean image as the linearised model says.

Each step linearises the model at the iterate, steps onto the hyperplane where two classes tie from the iterate and from
the clean image, and mixes the two; an adversarial iterate is pulled back towards the clean image. Follows
https://arxiv.org/abs/1907.02044 and, step by step, https://github.com/fra31/auto-attack. Deviations:

- With `stop_within_eps` a sample leaves at its first adversarial iterate inside the ball. The published code walks on to
  minimise the distance, which cannot change that the sample is broken.
- The value of the linearisation is used as it is; the published code recovers it from w·x + b, in float32.
- A start that is misclassified already counts (distance 0 at the clean image): its logits cost nothing.
- Gradients that are not finite count as zero, and logits that are not finite as misclassified.

The check's forward pass cannot serve the next gradient: adversarial iterates, nine in ten, are pulled back in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.hyperplane import hyperplane_step, largest_first
from robustdup.attacks.losses import fools, misclassified
from robustdup.attacks.nearest import Nearest, kept
from robustdup.attacks.passes import in_micro_batches
from robustdup.errors import UserError, check_counts
from robustdup.projections import fold_length, fold_sum, per_sample, row_length
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

Linearise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Watch = Callable[[int, Tensor, Tensor], None]

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


@dataclass(frozen=True)
class Settings:
    """What both forms of FAB can be told: see `fab`."""

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    stop_within_eps: bool = True

    def check(self, attack: str) -> None:
        """Raise UserError, in the name of the attack, for a setting that cannot work."""
        check_counts(attack, steps=self.steps, restarts=self.restarts)
        for option, value in (("alpha_max", self.alpha_max), ("beta", self.beta)):
            if not 0 <= value <= 1:
                raise UserError(f"{attack}: {option} must be between 0 and 1, got {value}.", code="bad-option")
        if not 0 < self.eta < float("inf"):
            raise UserError(
                f"{attack}: eta must be above 0 (1 steps onto the hyperplane, 1.05 a little over), got {self.eta}.",
                code="bad-option",
            )


def fab(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the nearest adversarial image, each step towards the class whose boundary seems nearest.

    A step costs two forward passes and one backward pass per class. https://arxiv.org/abs/1907.02044

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: its norm measures distances; its eps says which of them are broken.
        rng: the samples' streams.
        steps: of each walk.
        restarts: walks; the first begins at the clean image, others at random within eps / 2.
        alpha_max: the largest pull towards the clean image, from 0 to 1.
        eta: by how much a step overshoots the hyperplane; 1 ends on it.
        beta: how far adversarial iterates are pulled back towards the clean image, from 0 to 1.
        stop_within_eps: whether a sample stops at its first adversarial iterate within eps; otherwise every sample walks to
            the end and returns its nearest one, whatever eps.

    Returns:
        Images (N, C, H, W) in [0, 1]: each sample's nearest adversarial one, wherever it lies, or its last iterate projected
        onto the ball where none was met.

    Raises:
        UserError: a model of one class, or a setting that cannot work.
    """
    settings = Settings(steps, restarts, alpha_max, eta, beta, stop_within_eps)
    settings.check("fab")
    nearest = Nearest.none(images)

    def linearise(iterates: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return nearest_boundary(model, iterates, labels[index], threat.norm)

    search(model, images, labels, threat, linearise, nearest, rng=rng, settings=settings)
    return nearest.result(images, threat)


def fab_cost(options: Mapping[str, Any], classes: int = 10) -> tuple[float, float]:
    """Return the (forward, backward) passes of a surviving sample on a model of `classes` classes."""
    walked = options["restarts"] * options["steps"]
    return 2 * walked, classes * walked


def search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    linearise: Linearise,
    nearest: Nearest,
    *,
    rng: SampleRng,
    settings: Settings,
) -> None:
    """Walk once from the clean images and `restarts` - 1 times from random starts; results go into `nearest`.

    With `stop_within_eps` only samples walk again that have no adversarial image inside the ball.
    """
    for restart in range(settings.restarts):
        index = torch.arange(len(images), device=images.device)
        if settings.stop_within_eps:
            index = index[nearest.distance > threat.radius]
        if len(index) == 0:
            return
        start = images[index]
        if restart:
            start = random_start(start, threat, rng[index].fold("start"), draw=restart)
        walk(model, images[index], labels[index], threat, start, index, linearise, nearest, settings)


def walk(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    start: Tensor,
    index: Tensor,
    linearise: Linearise,
    nearest: Nearest,
    settings: Settings,
    watch: Watch | None = None,
    beside: int = 1,
) -> Tensor:
    """Walk once from `start`; `clean`, `labels` and `start` (n, ...) belong to the samples `index` (n,) of `nearest`.

    `linearise(iterates, index)` returns the normal (n, ...), value (n,) and logits (n, K) there. `watch(step, index,
    iterates)` sees each iterate as it is checked, before it is pulled back. With `beside` above 1 `nearest` holds so many walks
    of the same samples, all samples of the first walk before those of the next, and `index` is all of it: a walk ends where an
    earlier one has ended within eps.

    Returns:
        With `beside` above 1, how often each sample of `nearest` (N,) was looked at: at most twice a step.
    """
    iterate, count = start, len(nearest.distance) // beside
    looks = torch.full_like(nearest.distance, 2 * settings.steps, dtype=torch.int64)
    first = torch.full((count,), beside, device=start.device)  # walk of each sample that ended within eps

    def going_on(is_adv: Tensor, distance: Tensor, seen: int) -> Tensor:
        keep = ~(is_adv & (distance <= threat.radius))
        if beside > 1 and not bool(keep.all()):
            left = index[~keep]
            first.scatter_reduce_(0, left % count, left // count, "amin")
            keep &= index // count < first[index % count]
            looks[index[~keep]] = seen
        return keep

    for step in range(settings.steps):
        normal, value, logits = linearise(iterate, index)
        if step == 0:
            is_adv, distance = misclassified(logits, labels), fold_length(iterate - clean, threat.norm)
            nearest.offer(index, iterate, distance, is_adv)
            keep = going_on(is_adv, distance, 1) if settings.stop_within_eps else torch.ones_like(is_adv)
            index, clean, labels, iterate, normal, value = kept(keep, index, clean, labels, iterate, normal, value)
        if len(index) == 0:
            return looks
        iterate = mixed_step(iterate, clean, normal, value, threat.norm, settings.alpha_max, settings.eta)
        if watch is not None:
            watch(step, index, iterate)
        is_adv = fools(model, iterate, labels)
        delta = iterate - clean
        distance = fold_length(delta, threat.norm)
        nearest.offer(index, iterate, distance, is_adv)
        iterate = torch.where(per_sample(is_adv, delta), delta.mul_(settings.beta).add_(clean), iterate)
        if settings.stop_within_eps:
            keep = going_on(is_adv, distance, 2 * step + 2)
            index, clean, labels, iterate = kept(keep, index, clean, labels, iterate)
            if len(index) == 0:
                return looks
    nearest.keep_last(index, iterate)
    return looks


def mixed_step(
    iterate: Tensor, clean: Tensor, normal: Tensor, value: Tensor, norm: str, alpha_max: float, eta: float
) -> Tensor:
    """Return the next iterate: a mix of the hyperplane's nearest points to the iterate and to the clean image.

    `iterate`, `clean` and `normal` are (N, ...), `value` (N,) is the linearisation at `iterate`.
    """
    flat, origin, weight = iterate.flatten(1), clean.flatten(1), normal.flatten(1)
    change = fold_sum(weight * (origin - flat))
    if not bool((change + value).isfinite().all()):
        weight, value = weight.nan_to_num(0, 0, 0), value.nan_to_num(0, 0, 0)
        change = fold_sum(weight * (origin - flat))
    order = largest_first(weight) if norm == "L1" else None
    onto = hyperplane_step(flat, weight, value, norm, order=order)
    across = hyperplane_step(origin, weight, value + change, norm, order=order)
    near, far = fold_length(onto, norm).clamp(min=1e-8), fold_length(across, norm).clamp(min=1e-8)
    alpha = (near / (near + far)).clamp(0, alpha_max)[:, None]
    mixed = onto.mul_(eta).add_(flat).mul_(1 - alpha)
    return mixed.add_(across.mul_(eta).add_(origin).mul_(alpha)).clamp_(0, 1).view_as(iterate)


def nearest_boundary(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Linearise at the images the class whose boundary seems nearest: (normal (N, ...), value (N,), logits (N, K)).

    One forward pass and one backward pass per class and sample, walking the micro-batches of a `Passes`; of the gradients only
    the label's and the best are held. Raises UserError for a model of one class.
    """
    parts = [
        _nearest_boundary(model, images[rows], labels[rows], norm) for rows in in_micro_batches(model, len(images))
    ]
    normal, value, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return normal, value, logits


def _nearest_boundary(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits = model(leaf)
    count = check_classes("fab", logits)

    def gradient(classes: Tensor, *, last: bool = False) -> Tensor:
        with torch.enable_grad():
            chosen = logits.gather(1, classes[:, None]).sum()
        return torch.autograd.grad(chosen, leaf, retain_graph=not last)[0]

    own, own_logit = gradient(labels), logits.detach().gather(1, labels[:, None])[:, 0]
    normal, value, smallest = torch.zeros_like(own), torch.zeros_like(own_logit), torch.full_like(own_logit, torch.inf)
    for rank in range(count - 1):
        other = rank + (labels <= rank).long()  # every class but the label, in order
        slope = (gradient(other, last=rank == count - 2) - own).nan_to_num_(0, 0, 0)
        gap = logits.detach().gather(1, other[:, None])[:, 0] - own_logit
        distance = gap.abs() / (1e-12 + fold_length(slope, DUAL[norm]))
        closer = distance < smallest  # no selecting by a mask here: a GPU would be waited for
        normal = torch.where(per_sample(closer, slope), slope, normal)
        value, smallest = torch.where(closer, gap, value), torch.where(closer, distance, smallest)
    return normal, value, logits.detach()


def random_start(images: Tensor, threat: ThreatModel, rng: SampleRng, *, draw: int) -> Tensor:
    """Return random images at a distance of eps / 2 of the images (N, ...), clipped to [0, 1]."""
    size = images[0].numel()
    if threat.norm == "Linf":
        direction = rng.uniform((size,), draw=draw, low=-1.0, high=1.0, dtype=torch.float64)
    else:
        direction = rng.normal((size,), draw=draw, dtype=torch.float64)
    delta = direction / per_sample(row_length(direction, threat.norm), direction) * (threat.radius / 2)
    return (images + delta.to(images.dtype).view_as(images)).clamp(0, 1)


def check_classes(attack: str, logits: Tensor) -> int:
    """Return the number of classes. Raises UserError where there is no other class to go to."""
    if logits.shape[1] < 2:
        raise UserError(
            f"{attack} needs a model with at least 2 classes; this one returns {logits.shape[1]} logit(s).",
            code="too-few-classes",
        )
    return logits.shape[1]
