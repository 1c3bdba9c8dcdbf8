"""σ-zero: the fewest changed values that fool a model (L0), by descent on a smooth count. https://arxiv.org/abs/2402.01879

The number of changed values is replaced by the mean of δ² / (δ² + σ), which has a gradient. Adam minimises the logit
difference plus that, and after each step values below a threshold τ become zero again; τ rises while the sample is
adversarial and falls while it is not. A value is one channel of one pixel.

In L0-pixels the squares of a pixel's channels are added before they are counted, and a pixel becomes clean where all of its
changes are below τ: the paper counts values alone.

Deviations: the last step is looked at too; in the end the largest changes alone are tried (`nearest.pull_back`); with
`stop_within_eps` a sample leaves at its first adversarial iterate of eps values or fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import fools, margin, misclassified
from robustdup.attacks.nearest import Nearest, check_between, cosine, pull_back
from robustdup.attacks.passes import in_micro_batches
from robustdup.errors import check_counts
from robustdup.projections import fold_length, per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8  # of Adam, https://arxiv.org/abs/1412.6980


def sigma_zero(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 300,
    step_size: float = 1.0,
    sigma: float = 0.001,
    threshold: float = 0.3,
    threshold_rate: float = 0.01,
    halvings: int = 10,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the adversarial image with the fewest changed values or pixels. https://arxiv.org/abs/2402.01879

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: L0 or L0-pixels; its eps says which samples are broken.
        rng: not used: nothing is random.
        steps: gradient steps.
        step_size: of the first step, in pixel units; it falls to a tenth of that.
        sigma: how sharply a change counts as one: a change of its square root counts as half.
        threshold: changes below this become zero, at first; from 0 to 1.
        threshold_rate: by which share of the step size the threshold rises and falls.
        halvings: of the changed values of the nearest image, in the end.
        stop_within_eps: whether a sample stops at its first adversarial iterate within eps; otherwise every sample goes on to
            the end and returns its nearest one, whatever eps.

    Returns:
        Images (N, C, H, W) in [0, 1]: each sample's nearest adversarial one, wherever it lies, or its last iterate projected
        onto the ball where none was met.

    Raises:
        UserError: a setting that cannot work.
    """
    _check(steps, halvings, step_size=step_size, sigma=sigma, threshold=threshold, threshold_rate=threshold_rate)
    nearest = Nearest.none(images)
    index = torch.arange(len(images), device=images.device)
    iterate = images
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    limit = torch.full_like(nearest.distance, threshold)
    rate, pixels = step_size, threat.norm == "L0-pixels"
    for step in range(steps + 1):
        clean, true = images[index], labels[index]
        gradient, is_adv = _look(model, clean, iterate, true, sigma, pixels, last=step == steps)
        distance = fold_length(iterate - clean, threat.norm)
        nearest.offer(index, iterate, distance, is_adv)
        if stop_within_eps:
            keep = ~(is_adv & (distance <= threat.radius))
            index, clean, iterate, gradient = (t[keep] for t in (index, clean, iterate, gradient))
            mean, square, limit, is_adv = (t[keep] for t in (mean, square, limit, is_adv))
        if step == steps or len(index) == 0:
            break
        gradient = gradient / per_sample(fold_length(gradient, "Linf").clamp(min=1e-12), gradient)
        mean, square = BETA_1 * mean + (1 - BETA_1) * gradient, BETA_2 * square + (1 - BETA_2) * gradient.square()
        scale = (square / (1 - BETA_2 ** (step + 1))).sqrt() + TINY
        moved = (iterate - rate / (1 - BETA_1 ** (step + 1)) * mean / scale).clamp(0, 1)
        rate = cosine(step_size, step_size / 10, step, steps)
        limit = (limit + torch.where(is_adv, 1.0, -1.0) * threshold_rate * rate).clamp(0, 1)
        changed = (moved - clean).abs()
        iterate = torch.where(
            (changed.amax(dim=1, keepdim=True) if pixels else changed) < per_sample(limit, clean), clean, moved
        )
    nearest.keep_last(index, iterate)
    pull_back(model, images, labels, threat, nearest, halvings=halvings, stop_within_eps=stop_within_eps)
    return nearest.result(images, threat)


def _look(
    model: nn.Module, clean: Tensor, images: Tensor, labels: Tensor, sigma: float, pixels: bool, *, last: bool
) -> tuple[Tensor, Tensor]:
    """Return (gradient of what is minimised (N, ...), is_adv (N,)) at the images; no gradient in the last look."""
    if last:
        return torch.zeros_like(images), fools(model, images, labels)
    gradients, answers = [], []
    for rows in in_micro_batches(model, len(images)):
        with torch.enable_grad():
            leaf = images[rows].detach().requires_grad_(True)
            logits = model(leaf)
            change = (leaf - clean[rows]).square()
            change = change.sum(dim=1, keepdim=True) if pixels else change
            count = (change / (change + sigma)).flatten(1).sum(dim=1) / max(change[:1].numel(), 1)
            (gradient,) = torch.autograd.grad((margin(logits, labels[rows]).clamp(min=0) + count).sum(), leaf)
        gradients.append(gradient.nan_to_num(0, 0, 0))
        answers.append(misclassified(logits.detach(), labels[rows]))
    return torch.cat(gradients), torch.cat(answers)


def _check(steps: int, halvings: int, **sizes: float) -> None:
    check_counts("sigma-zero", steps=steps)
    check_counts("sigma-zero", least=0, halvings=halvings)
    for option, value in sizes.items():
        check_between("sigma-zero", option, value, 0, 1 if option.startswith("threshold") else float("inf"))
