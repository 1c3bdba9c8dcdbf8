"""FAB: walk along the decision boundary, as near to the clean image as the linearised model says.

Each step linearises the model at the iterate, steps onto the hyperplane where two classes tie from the iterate and from
the clean image, and mixes the two; an adversarial iterate is pulled back towards the clean image. Follows
https://arxiv.org/abs/1907.02044 and, step by step, https://github.com/fra31/auto-attack. Deviations:

- With `stop_within_eps` a row leaves at its first adversarial iterate inside the ball. The published code walks on to
  minimise the distance, which cannot change that the row is broken.
- The value of the linearisation is used as it is; the published code recovers it from w·x + b, in float32.
- A start that is misclassified already counts as found (distance 0 at the clean image): its logits cost nothing.
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
from robustdup.attacks.losses import misclassified
from robustdup.attacks.passes import in_micro_batches
from robustdup.errors import UserError
from robustdup.projections import fold_length, fold_sum, row_length
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

Linearise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Watch = Callable[[int, Tensor, Tensor], None]

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


def fab(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    steps: int = 100, restarts: int = 1, alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9,
    stop_within_eps: bool = True,
) -> Tensor:  # fmt: skip
    """Search the nearest adversarial example, each step towards the class whose boundary seems nearest.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape inside the box: a row's nearest adversarial
    example, wherever it lies, or its last iterate projected onto the ball where none was found. `alpha_max` bounds the
    pull to the clean image, `eta` overshoots the hyperplane, `beta` pulls adversarial iterates back. A step costs two
    forward passes and one backward pass a class. Restarts begin at random within eps / 2. Without `stop_within_eps`
    every row walks to the end and returns its nearest find, whatever eps. Follows https://arxiv.org/abs/1907.02044.
    Raises UserError for a setting that cannot work.
    """
    check_settings("fab", steps=steps, restarts=restarts, alpha_max=alpha_max, eta=eta, beta=beta)
    nearest = Nearest.none(images)

    def linearise(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return nearest_boundary(model, points, labels[rows], threat.norm)

    search(
        model, images, labels, threat, linearise, nearest, rng=rng, steps=steps, restarts=restarts,
        alpha_max=alpha_max, eta=eta, beta=beta, stop_within_eps=stop_within_eps,
    )  # fmt: skip
    return nearest.result(images, threat)


def fab_cost(options: Mapping[str, Any], classes: int = 10) -> tuple[float, float]:
    """Return the (forward, backward) passes of a surviving point on a model of `classes` classes."""
    walked = options["restarts"] * options["steps"]
    return 2 * walked, classes * walked


@dataclass
class Nearest:
    """Of each row the nearest adversarial example so far, else the last iterate: `images` (N, ...), `distance` (N,).

    The distance is infinite where none was found.
    """

    images: Tensor
    distance: Tensor

    @classmethod
    def none(cls, images: Tensor) -> Nearest:
        """Start with nothing found."""
        return cls(images.clone(), images.new_full((len(images),), torch.inf))

    def offer(self, rows: Tensor, points: Tensor, distance: Tensor, adversarial: Tensor) -> None:
        """Keep the points (n, ...) of `rows` (n,) that are adversarial and nearer than what is known."""
        better = adversarial & (distance < self.distance[rows])
        found = rows[better]
        self.images[found], self.distance[found] = points[better], distance[better]

    def result(self, images: Tensor, threat: ThreatModel) -> Tensor:
        """Return what was found, and the last iterates projected onto the ball where nothing was."""
        none = self.distance.isinf()
        self.images[none] = threat.project(images[none], self.images[none])
        return self.images


def search(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, linearise: Linearise, nearest: Nearest, *,
    rng: SampleRng, steps: int, restarts: int, alpha_max: float, eta: float, beta: float, stop_within_eps: bool,
) -> None:  # fmt: skip
    """Walk once from the clean images and `restarts` - 1 times from random starts; with `stop_within_eps` only rows
    that have found nothing inside the ball. What is found goes into `nearest`."""
    for restart in range(restarts):
        rows = torch.arange(len(images), device=images.device)
        if stop_within_eps:
            rows = rows[nearest.distance > threat.radius]
        if len(rows) == 0:
            return
        start = images[rows]
        if restart:
            start = random_start(start, threat, rng[rows].fold("start"), draw=restart)
        walk(
            model, images[rows], labels[rows], threat, start, rows, linearise, nearest, steps=steps,
            alpha_max=alpha_max, eta=eta, beta=beta, stop_within_eps=stop_within_eps,
        )  # fmt: skip


def walk(
    model: nn.Module, clean: Tensor, labels: Tensor, threat: ThreatModel, start: Tensor, rows: Tensor,
    linearise: Linearise, nearest: Nearest, *, steps: int = 100, alpha_max: float = 0.1, eta: float = 1.05,
    beta: float = 0.9, stop_within_eps: bool = True, watch: Watch | None = None,
) -> None:  # fmt: skip
    """Walk `steps` steps from `start`; `clean`, `labels` and `start` (n, ...) belong to `rows` (n,) of `nearest`.

    `linearise(points, rows)` returns the normal (n, ...), value (n,) and logits (n, K) at the points. `watch(step,
    rows, points)` sees each iterate as it is checked, before it is pulled back.
    """
    point = start
    for step in range(steps):
        normal, value, logits = linearise(point, rows)
        if step == 0:
            done, distance = misclassified(logits, labels), fold_length((point - clean), threat.norm)
            nearest.offer(rows, point, distance, done)
            keep = ~(done & (distance <= threat.radius)) if stop_within_eps else torch.ones_like(done)
            rows, clean, labels, point, normal, value = _rows(keep, rows, clean, labels, point, normal, value)
        if len(rows) == 0:
            return
        point = mixed_step(point, clean, normal, value, threat.norm, alpha_max, eta)
        if watch is not None:
            watch(step, rows, point)
        with torch.no_grad():
            done = misclassified(model(point), labels)
        delta = point - clean
        distance = fold_length(delta, threat.norm)
        nearest.offer(rows, point, distance, done)
        pulled = delta.mul_(beta).add_(clean)
        pulled[~done] = point[~done]
        point = pulled
        if stop_within_eps:
            rows, clean, labels, point = _rows(~(done & (distance <= threat.radius)), rows, clean, labels, point)
    none = nearest.distance[rows].isinf()
    nearest.images[rows[none]] = point[none]


def mixed_step(
    point: Tensor, clean: Tensor, normal: Tensor, value: Tensor, norm: str, alpha_max: float, eta: float
) -> Tensor:
    """Return the next iterate: a mix of the hyperplane's nearest points to the iterate and to the clean image.

    `point`, `clean` and `normal` are (N, ...), `value` (N,) is the linearisation at `point`.
    """
    at, origin, weight = point.flatten(1), clean.flatten(1), normal.flatten(1)
    change = fold_sum(weight * (origin - at))
    if not bool((change + value).isfinite().all()):
        weight, value = weight.nan_to_num(0, 0, 0), value.nan_to_num(0, 0, 0)
        change = fold_sum(weight * (origin - at))
    order = largest_first(weight) if norm == "L1" else None
    onto = hyperplane_step(at, weight, value, norm, order=order)
    across = hyperplane_step(origin, weight, value + change, norm, order=order)
    near, far = fold_length(onto, norm).clamp(min=1e-8), fold_length(across, norm).clamp(min=1e-8)
    alpha = (near / (near + far)).clamp(0, alpha_max)[:, None]
    mixed = onto.mul_(eta).add_(at).mul_(1 - alpha)
    return mixed.add_(across.mul_(eta).add_(origin).mul_(alpha)).clamp_(0, 1).view_as(point)


def nearest_boundary(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Linearise at the images the class whose boundary seems nearest: (normal (N, ...), value (N,), logits (N, K)).

    One forward pass a row and one backward pass a class, walking the micro-batches of a `Passes`; of the gradients only
    the label's and the best are held. Raises UserError for a model of one class.
    """
    parts = [
        _nearest_boundary(model, images[rows], labels[rows], norm) for rows in in_micro_batches(model, len(images))
    ]
    normal, value, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return normal, value, logits


def _nearest_boundary(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        logits = model(point)
    classes = check_classes("fab", logits)

    def gradient(of: Tensor, *, last: bool = False) -> Tensor:
        with torch.enable_grad():
            chosen = logits.gather(1, of[:, None]).sum()
        return torch.autograd.grad(chosen, point, retain_graph=not last)[0]

    own, own_logit = gradient(labels), logits.detach().gather(1, labels[:, None])[:, 0]
    normal, value, best = torch.zeros_like(own), torch.zeros_like(own_logit), torch.full_like(own_logit, torch.inf)
    for place in range(classes - 1):
        other = place + (labels <= place).long()  # every class but the label, in order
        slope = gradient(other, last=place == classes - 2) - own
        gap = logits.detach().gather(1, other[:, None])[:, 0] - own_logit
        steepness = fold_length(slope, DUAL[norm])
        if not bool(steepness.isfinite().all()):
            slope = slope.nan_to_num(0, 0, 0)
            steepness = fold_length(slope, DUAL[norm])
        distance = gap.abs() / (1e-12 + steepness)
        closer = distance < best
        normal[closer], value[closer], best[closer] = slope[closer], gap[closer], distance[closer]
    return normal, value, logits.detach()


def random_start(images: Tensor, threat: ThreatModel, rng: SampleRng, *, draw: int) -> Tensor:
    """Return random points at a distance of eps / 2 of the images (N, ...), clipped to the box."""
    size = images[0].numel()
    if threat.norm == "Linf":
        direction = rng.uniform((size,), draw=draw, low=-1.0, high=1.0, dtype=torch.float64)
    else:
        direction = rng.normal((size,), draw=draw, dtype=torch.float64)
    delta = direction / row_length(direction, threat.norm)[:, None] * (threat.radius / 2)
    return (images + delta.to(images.dtype).view_as(images)).clamp(0, 1)


def check_classes(attack: str, logits: Tensor) -> int:
    """Return the number of classes. Raises UserError where there is no other class to go to."""
    if logits.shape[1] < 2:
        raise UserError(
            f"{attack} needs a model with at least 2 classes; this one returns {logits.shape[1]} logit(s).",
            code="too-few-classes",
        )
    return logits.shape[1]


def check_settings(attack: str, *, alpha_max: float, eta: float, beta: float, **counts: int) -> None:
    """Raise UserError for a setting that cannot work."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{attack}: {name} must be at least 1, got {count}.", code="bad-option")
    for name, value in (("alpha_max", alpha_max), ("beta", beta)):
        if not 0 <= value <= 1:
            raise UserError(f"{attack}: {name} must be between 0 and 1, got {value}.", code="bad-option")
    if not 0 < eta < float("inf"):
        raise UserError(
            f"{attack}: eta must be above 0 (1 steps onto the hyperplane, 1.05 a little over), got {eta}.",
            code="bad-option",
        )


def _rows(keep: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if bool(keep.all()) else tuple(tensor[keep] for tensor in tensors)
