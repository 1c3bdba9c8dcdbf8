"""PGD made for training: fixed steps, no sample dropped, input gradients only, nothing that waits for the device.

https://arxiv.org/abs/1706.06083. Evaluation has its own (`robustdup.attacks.pgd`), which stops at samples that are
misclassified and projects exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.attacks.noise import ball_noise
from robustdup.attacks.pgd import ascent
from robustdup.errors import UserError
from robustdup.projections import onto_l1_ball
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel, parse_eps
from robustdup.training.captured import CapturedSteps

RowLoss = Callable[[Tensor, slice], Tensor]
# Of losses in fp16, whose smallest number is 6e-8: where a sample is right for sure, gradients are smaller.
HALF_SCALE = 256.0
PATH = 2.5  # steps times step size, in eps
TINY_START = 0.001  # without a random start a divergence from the clean answer has no gradient: as TRADES' authors do


@dataclass(frozen=True)
class Execution:
    """How steps are made: in micro-batches of so many rows (None: all at once), and where `captured` as CUDA graphs."""

    micro_batch: int | None = None
    captured: CapturedSteps | None = None


def training_pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    loss: RowLoss | None = None,
    execution: Execution = Execution(),
    steps: int = 10,
    step_size: str | float | None = None,
    random_start: bool = True,
) -> Tensor:
    """Maximise `loss` (cross-entropy if None) for a fixed number of steps: the last iterate, in the ball and the box.

    Images (N, C, H, W) in [0, 1], labels (N,) -> the same shape. `network` must have no parameter that requires a
    gradient. `step_size` is in pixel units, in the threat model's norm; by default 2.5 eps / steps. All steps of a
    micro-batch are taken before the next one's, which keeps it in cache on a CPU.
    Steps up the cross-entropy may be one CUDA graph.
    """
    step = PATH * threat.radius / steps if step_size is None else float(parse_eps(step_size))
    adv_images = start_images(images, threat, rng, random=random_start, away=loss is not None)
    for rows in slices(len(images), execution.micro_batch):
        clean, moving = images[rows], adv_images[rows]  # views: steps are taken in place
        if loss is not None:
            climb(network, moving, clean, loss, rows, threat, steps, step)
            continue

        def steepest(moving: Tensor, clean: Tensor, labels: Tensor) -> None:
            climb(network, moving, clean, _cross_entropy(labels), slice(None), threat, steps, step)

        if execution.captured is None:
            steepest(moving, clean, labels[rows])
        else:
            key = threat.norm, threat.radius, steps, step, torch.is_autocast_enabled(images.device.type)
            weights = network.state_dict(keep_vars=True).values()
            execution.captured(steepest, moving, clean, labels[rows], key=key, weights=weights)
    return adv_images


def climb(
    network: nn.Module,
    moving: Tensor,
    clean: Tensor,
    loss: RowLoss,
    rows: slice,
    threat: ThreatModel,
    steps: int,
    step: float,
) -> None:
    """Make `steps` steps of length `step` up the loss in place, from `moving` (n, C, H, W), the rows `rows` of a batch."""
    project = projector(clean, threat)
    for _ in range(steps):
        gradient = row_gradient(network, moving, loss, rows)
        project(moving.add_(direction(clean, gradient, threat), alpha=step))


def check_training_pgd(steps: int = 10, step_size: str | float | None = None, random_start: bool = True) -> None:
    """Raise UserError for options that cannot work."""
    if steps < 1:
        raise UserError(
            f"Inner attack 'pgd': steps must be at least 1, got {steps}. For clean training: standard.",
            code="bad-value",
        )
    check_step(step_size)


def check_step(step_size: str | float | None) -> None:
    """Raise UserError for a step size (pixel units, None: the usual one) that is no number above 0."""
    try:
        parse_eps(1 if step_size is None else step_size)
    except UserError:
        raise UserError(
            f"step_size {step_size!r} is not a number above 0. Write a fraction such as '2/255' or a decimal such as 0.01.",
            code="bad-value",
        ) from None


def slices(count: int, size: int | None) -> Iterator[slice]:
    """Walk `count` rows in slices of `size`; all at once where that is None."""
    for start in range(0, count, size or max(count, 1)):
        yield slice(start, min(start + (size or count), count))


def start_images(images: Tensor, threat: ThreatModel, rng: SampleRng, *, random: bool, away: bool) -> Tensor:
    """Return new images in the ball and the box to start from: random ones, the clean ones, or slightly `away` from those."""
    if random:
        noise = ball_noise(images, threat, rng.fold("start"))
    elif away:
        noise = (TINY_START * rng.fold("start").normal(images.shape[1:])).to(images.dtype)
    else:
        return images.detach().clone()
    adv_images = torch.empty_like(images).copy_(noise).add_(images)
    projector(images, threat)(adv_images)
    return adv_images


def row_gradient(network: nn.Module, images: Tensor, loss: RowLoss, rows: slice) -> Tensor:
    """Return the gradient of the summed loss by the images (n, C, H, W), which are the rows `rows` of a batch.

    Under fp16 the loss is scaled on the way back, and what overflows counts as zero.
    """
    kind = images.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        value = loss(network(leaf), rows).sum()
        (gradient,) = torch.autograd.grad(value * HALF_SCALE if half else value, leaf)
    return gradient.div_(HALF_SCALE).nan_to_num_(0.0, 0.0, 0.0) if half else gradient


def direction(images: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Return the step of length 1 in the norm along which the loss rises; `gradient` (N, C, H, W) is used up."""
    if threat.norm == "Linf":
        return gradient.sign_()
    if threat.norm == "L2":
        return gradient.div_(_lengths(gradient).clamp_min_(1e-30))
    return ascent(images, gradient, threat)


def projector(images: Tensor, threat: ThreatModel) -> Callable[[Tensor], Tensor]:
    """Return a function that puts images near `images` back into the ball, then into the box, in place.

    Pulling into the box after the ball never leads out of the ball, since the images are in the box; in L1 and L2 it is
    not always the nearest image, which training does not need.
    """
    if threat.norm == "Linf":
        lower, upper = (images - threat.radius).clamp_(min=0), (images + threat.radius).clamp_(max=1)
        return lambda moved: moved.clamp_(lower, upper)
    return lambda moved: moved.sub_(images).copy_(project_delta(moved, threat)).add_(images).clamp_(0, 1)


def project_delta(delta: Tensor, threat: ThreatModel) -> Tensor:
    """Return the perturbations (N, ...) of length eps or less that are nearest to `delta`; samples never wait for each other."""
    if threat.norm == "Linf":
        return delta.clamp(-threat.radius, threat.radius)
    if threat.norm == "L2":
        return delta * (threat.radius / _lengths(delta).clamp_min_(1e-30)).clamp_max_(1)
    return onto_l1_ball(delta, threat.radius)


def _lengths(values: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)
    return lengths


def _cross_entropy(labels: Tensor) -> RowLoss:
    return lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="sum")
