"""The referee: the only one who decides whether an adversarial example counts.

It looks at what an attack returned on the original, untouched fp32 model: an example counts when it is finite, inside
[0, 1], inside the ball, and misclassified. What lies outside is a violation; its projection is judged instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import margin
from robustdup.attacks.passes import Passes
from robustdup.precision import fp32_switches_kept, set_tf32
from robustdup.threat import ThreatModel

NOT_FINITE, BOX, BALL = 1, 2, 4  # bits of `violation`
VIOLATION_NAMES = {NOT_FINITE: "not_finite", BOX: "box", BALL: "ball"}


@dataclass(frozen=True)
class Answers:
    """What a model says of some images: `prediction` (N,), `margin` (N,) float64, `correct_share` (N,) float64.

    `correct_share` is the share of draws in which the model was right: 0 or 1 for a deterministic model. Logits that are
    not finite count as wrong.
    """

    prediction: Tensor
    margin: Tensor
    correct_share: Tensor

    @property
    def is_adv(self) -> Tensor:
        """(N,) bool: misclassified, for a randomised model in at least half of the draws."""
        return self.correct_share <= 0.5


@dataclass(frozen=True)
class Verdict:
    """The referee's word on what an attack returned, per sample (tensors on CPU).

    `adv_images` are those that were judged: inside the ball and the box. `violation` is a sum of NOT_FINITE, BOX and BALL
    for what came in; `excess` is how far it lay over eps. `raw_distance` and `raw_is_adv` speak of what came in,
    clipped to the box but not to the ball: the result of a minimum-norm attack.
    """

    adv_images: Tensor
    is_adv: Tensor
    prediction: Tensor
    margin: Tensor
    correct_share: Tensor
    distance: Tensor
    violation: Tensor
    excess: Tensor
    unchanged: Tensor
    raw_distance: Tensor
    raw_is_adv: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def violation_counts(violation: Tensor) -> dict[str, int]:
    """Count the rows of each kind in `violation` (N,) of a verdict; kinds that do not occur are left out."""
    counts = {name: int((violation & bit != 0).sum()) for bit, name in VIOLATION_NAMES.items()}
    return {name: count for name, count in counts.items() if count}


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Compute matrix products and convolutions in true fp32 (no TF32, no autocast) inside the block."""
    with fp32_switches_kept():
        set_tf32(False)
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield


def judge_images(model: Passes, images: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> Answers:
    """Judge images (N, C, H, W) by `draws` calls of the original model in true fp32; tensors come back on CPU.

    With more than one draw (randomised models) the margin is the mean over the draws and the prediction the last one's.
    The global random state is forked and seeded, so that judging again says the same.
    """
    with exact_fp32(), isolated(model.model, seed=seed), torch.no_grad():
        shares, sums = torch.zeros(len(images), dtype=torch.float64), torch.zeros(len(images), dtype=torch.float64)
        prediction = torch.zeros(len(images), dtype=torch.int64)
        for _ in range(draws if len(images) else 0):  # many models cannot take an empty batch
            logits = model(images)
            finite = logits.isfinite().all(dim=1)
            top = logits.argmax(dim=1)
            shares += ((top == labels) & finite).cpu()
            sums += torch.where(finite, margin(logits.double(), labels), -torch.inf).cpu()
            prediction = top.cpu()
    return Answers(prediction, sums / draws, shares / draws)


def judge(
    model: Passes | nn.Module,
    clean: Tensor,
    adv_images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    bounded: bool = True,
    draws: int = 1,
    seed: int = 0,
) -> Verdict:
    """Judge what an attack returned for clean images: the projection onto the threat model decides.

    What lies outside is judged a second time without projection, for the distances and for the count of claims that were
    not earned.

    Args:
        model: the original, images (N, C, H, W) -> logits (N, K).
        clean: clean images (N, C, H, W) in [0, 1].
        adv_images: what came back for them, of the same shape.
        labels: true classes (N,).
        threat: the threat model.
        bounded: False for attacks that do not know eps: lying outside the ball is then no violation.
        draws: calls of the model, for one that answers at random.
        seed: of the global random state while the model is asked.
    """
    passes = model if isinstance(model, Passes) else Passes(model)
    adv_images = adv_images.detach().to(clean)
    violations = threat.violations(clean, adv_images)
    projected = threat.project(clean, adv_images) if bool(violations.any.any()) else adv_images
    answers = judge_images(passes, projected, labels, draws=draws, seed=seed)
    raw_images = torch.where(adv_images.isfinite(), adv_images, clean).clamp(0, 1)
    raw_distance = threat.distance(clean, raw_images).cpu()
    raw_is_adv = answers.is_adv.clone()
    outside = violations.any.cpu()
    if bool(outside.any()):
        rows = outside.nonzero()[:, 0].to(clean.device)
        raw_answers = judge_images(passes, raw_images[rows], labels[rows], draws=draws, seed=seed)
        raw_is_adv[outside] = raw_answers.is_adv
    violation = violations.not_finite * NOT_FINITE + violations.box * BOX + violations.ball * (BALL if bounded else 0)
    return Verdict(
        adv_images=projected.cpu(),
        is_adv=answers.is_adv,
        prediction=answers.prediction,
        margin=answers.margin,
        correct_share=answers.correct_share,
        distance=threat.distance(clean, projected).cpu(),
        violation=violation.cpu().to(torch.uint8),
        excess=(raw_distance - threat.radius).clamp(min=0) if bounded else torch.zeros_like(raw_distance),
        unchanged=(adv_images == clean).flatten(1).all(dim=1).cpu(),
        raw_distance=raw_distance,
        raw_is_adv=raw_is_adv,
    )


def join(parts: list[Verdict]) -> Verdict:
    """Put the verdicts on parts of a batch together, in order."""
    return replace(
        parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors()}
    )
