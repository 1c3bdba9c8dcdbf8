"""Certified training with tighter bounds: intervals forward, linear bounds of the margins backward.

Every layer gets interval bounds; then each margin is pulled back to the image once, as CROWN does it
(https://arxiv.org/abs/1906.06316).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.certification.crown import margin_rows, pull_back
from robustdup.certification.region import Region
from robustdup.errors import UserError
from robustdup.models.attack_copy.compile import TrainedModel
from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.adversarial import correct, cross_entropy
from robustdup.training.objectives.intervals import Tape, interval_logits
from robustdup.training.updates import LossAndMetrics


def crown_ibp(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, kappa: float = 0.5,
    beta: float = 0.0,
) -> LossAndMetrics:  # fmt: skip
    """Return k CE(clean) + (1 - k) CE(least margins), for certified training in Linf.

    The margins are b CROWN + (1 - b) intervals. As the radius grows to that of the run (`eps_schedule`), k falls from 1 to
    `kappa` and b from 1 to `beta`: linear bounds steady the start, where intervals are loose; with beta=1 they are used to
    the end, which is better for a small radius. A batch costs about as many backward passes more as there are classes.
    "correct" counts images on which the bounds prove the answer, "correct_clean" the clean ones.
    https://arxiv.org/abs/1906.06316
    """
    if attack.threat.norm != "Linf":
        raise UserError(f"crown_ibp trains in Linf, not in {attack.threat.norm}: write --norm Linf.", code="bad-norm")
    radius, tape = float(attack.threat.radius), Tape()
    done = min(radius / float(attack.inner.threat.radius), 1.0)
    clean_share, linear_share = 1 - (1 - kappa) * done, 1 - (1 - beta) * done
    box = interval_logits(model, images, radius, tape)
    classes = box.clean.shape[1]
    rows = margin_rows(labels, classes).to(images)
    margins = (rows.clamp(min=0) @ box.low.unsqueeze(2) + rows.clamp(max=0) @ box.high.unsqueeze(2)).squeeze(2)
    if linear_share > 0:
        if isinstance(model, TrainedModel):
            model.forward_rows += (classes - 1) * len(images)
            model.backward_rows += (classes - 1) * len(images) if torch.is_grad_enabled() else 0
        linear = pull_back(tape.operations, box.number, rows, tape.bounds, Region(images, "Linf", radius))
        margins = linear_share * linear + (1 - linear_share) * margins
    others = torch.arange(classes, device=labels.device).expand(len(labels), -1)
    others = others[others != labels.unsqueeze(1)].view(len(labels), -1)
    worst = torch.zeros_like(box.clean).scatter(1, others, -margins)
    loss = clean_share * cross_entropy(box.clean, labels, attack.label_smoothing)
    loss = loss + (1 - clean_share) * cross_entropy(worst, labels)
    return loss, {"correct": correct(worst, labels), "correct_clean": correct(box.clean, labels)}
