"""FGSM: one gradient, and the image of the ball inside [0, 1] where the linearised loss is largest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import Loss, find_loss
from robustdup.attacks.passes import input_gradient
from robustdup.projections import per_sample, row_length
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, loss: str | Loss = "ce"
) -> Tensor:
    """Step once from the clean image, as far as the threat model allows: in Linf the sign step.

    https://arxiv.org/abs/1412.6572

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: not used: the attack draws nothing.
        loss: the name of a loss, or a function (logits (N, K), labels (N,)) -> (N,).

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: an unknown loss.
    """
    function = find_loss(loss)
    gradient, _, _ = input_gradient(model, images, lambda logits, rows: function(logits, labels[rows]))
    return linear_maximum(images, gradient, threat)


def linear_maximum(images: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Return the images of the ball inside [0, 1] with the largest inner product with `gradient`, both (N, ...).

    Samples with a zero gradient stay as they are.
    """
    clean, gradient = images.double(), gradient.nan_to_num(0, 0, 0).double()
    if threat.norm == "Linf":
        return threat.project(images, images + threat.radius * gradient.sign().to(images.dtype))
    # A linear function's maximum over a convex set is the projection of a point far enough along its gradient.
    largest = row_length(gradient, "Linf").clamp(min=torch.finfo(torch.float64).tiny)
    far = clean + 1e6 * gradient / per_sample(largest, images)
    return threat.project(clean, far).to(images.dtype)
