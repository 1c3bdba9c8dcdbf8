"""N-FGSM: one gradient step from strong noise, with the sum left as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustdup.attacks.noise import ball_noise
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from robustdup.threat import parse_eps
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy
from robustdup.training.pgd import check_step, direction


def n_fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng,
    k: float = 2.0, step_size: str | float | None = None,
) -> Outcome:  # fmt: skip
    """Return the cross-entropy of images moved by uniform noise of k * eps and one step of `step_size` (eps if None).

    Noise and step stay in the box but not in the ball: the paper finds that projecting brings catastrophic overfitting
    back. The gradient is that of the inner network, in its BatchNorm mode; the inner attack itself is not run. The paper
    is about Linf; in L2 and L1 the noise is uniform in the ball of k * eps, and the step has length `step_size` in the
    norm. https://arxiv.org/abs/2202.01181
    """
    step = attack.threat.radius if step_size is None else float(parse_eps(step_size))

    def moved() -> Tensor:
        noise = ball_noise(images, attack.threat, rng.fold("n_fgsm"))
        noisy = (images + k * noise).clamp_(0, 1)
        up = direction(images, attack.gradient(noisy, labels), attack.threat)
        return noisy.add_(up, alpha=step).clamp_(0, 1)

    logits = model(attack.once("n_fgsm", moved, images, labels))
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}


def check_n_fgsm(*, k: float, step_size: str | float | None, **_: Any) -> None:
    """Raise UserError for noise or a step that cannot be."""
    if k < 0:
        raise UserError(f"n_fgsm: k, the noise in units of eps, must be 0 or more; got {k:g}.")
    check_step(step_size)
