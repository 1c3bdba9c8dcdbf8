"""Signs that a robust accuracy should not be believed, each with what to do about it.

The checks follow Carlini et al. (https://arxiv.org/abs/1902.06705), Athalye et al.
(https://arxiv.org/abs/1802.00420) and the flags of AutoAttack (https://github.com/fra31/auto-attack). All are computed
before unions over attacks and eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.attacks.pgd import pgd
from robustdup.config import EvalConfig
from robustdup.evaluation.bench import Bench, CleanVerdict, fresh_copy
from robustdup.evaluation.cascade import BROKEN, SURVIVED, CascadeResult, Points
from robustdup.evaluation.masking import BLACK_BOX
from robustdup.evaluation.referee import judge, judge_images
from robustdup.records import Diagnostic
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

PROBE_POINTS = 64


@dataclass(frozen=True)
class Probe:
    """What a look at the model showed on a few points: shares in [0, 1]; None where it does not apply."""

    zero_gradients: float
    softmax_outputs: bool
    n: int
    at_half: float | None = None
    explained_by_grey: float | None = None


def diagnose(
    bench: Bench,
    points: Points,
    clean: CleanVerdict,
    results: list[CascadeResult],
    config: EvalConfig,
    *,
    was_training: bool,
) -> tuple[list[Diagnostic], Count]:
    """Look at the model and at what the attacks did, before any union; returns signs and the passes that looking cost."""
    right = (~points.clean.broken).nonzero()[:PROBE_POINTS, 0]
    signs = of_accuracy(float(points.clean.correct_share.mean()), clean.num_classes)
    spent = Count()
    if len(right):
        judged = Passes(bench.judged.model, bench.micro_batch)
        attacked = Passes(fresh_copy(bench.attacked), bench.micro_batch)
        images, labels, index = (t[right].to(bench.device) for t in (points.images, points.labels, points.index))
        found = Probe(zero_gradients=0.0, softmax_outputs=False, n=len(right))
        try:
            with isolated(attacked.model, seed=config.seed):
                found = probe(judged, attacked, images, labels, index, config.norm, config.seed)
        except Exception as error:  # gradients may fail in any way; the attacks' results must not be lost over it
            signs.append(_failed_probe(error))
        spent = judged.count + attacked.count
        signs += of_model(
            found,
            was_training=was_training,
            mode=config.mode,
            randomized=clean.randomized,
            draws=bench.draws,
        )
    for result in results:
        signs += of_cascade(result)
    n = len(points.labels)
    decided = [r for r in results if not r.undecided.any()]  # an attack that failed says nothing of its eps
    alone = {r.threat.eps_text: float((~points.clean.broken & ~r.broken).sum()) / n for r in decided}
    signs += of_curve(alone, n)
    return list({(sign.code, sign.message): sign for sign in signs}.values()), spent


def probe(
    judged: Passes, attacked: Passes, images: Tensor, labels: Tensor, index: Tensor, norm: str, seed: int
) -> Probe:
    """Look at gradients, outputs and, in Linf, at eps = 0.5 on a few points (N, C, H, W) that the model gets right.

    At eps = 0.5 in Linf the grey image lies in every ball: a model can only keep points whose label it gives to the grey
    image. What survives an attack above that share was not looked for well enough.
    """
    with torch.no_grad():
        logits = attacked(images)
    softmax = bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-4).all())
    if logits.requires_grad or _differentiable(attacked, images[:1]):
        grad, _, _ = input_gradient(
            attacked, images, lambda out, rows: F.cross_entropy(out, labels[rows], reduction="none")
        )
        zero = float((grad.flatten(1) == 0).all(dim=1).float().mean())
    else:
        zero = 1.0
    if norm != "Linf" or zero == 1.0:
        return Probe(zero, softmax, len(images))
    half = ThreatModel("Linf", "0.5")
    adv = pgd(attacked, images, labels, half, rng=SampleRng(seed, index).fold("probe"), steps=20)
    verdict = judge(judged, images, adv, labels, half)
    grey = judge_images(judged, torch.full_like(images[:1], 0.5), labels[:1]).prediction
    return Probe(
        zero,
        softmax,
        len(images),
        at_half=float((~verdict.broken).double().mean()),
        explained_by_grey=float((labels.cpu() == grey).double().mean()),
    )


def _failed_probe(error: Exception) -> Diagnostic:
    return _sign(
        "probe_failed",
        "serious",
        f"The model's gradients and outputs could not be looked at: {type(error).__name__}: {error}.",
        "Gradient attacks fail on such a model, and black-box attacks alone prove little. Attack a differentiable stand-in "
        "(--attack-model, BPDA).",
    )


def _differentiable(model: nn.Module, images: Tensor) -> bool:
    with torch.enable_grad():
        logits = model(images.detach().clone().requires_grad_(True))
    return bool(logits.requires_grad)


def of_model(found: Probe, *, was_training: bool, mode: str, randomized: bool, draws: int) -> list[Diagnostic]:
    """Return what the model itself shows."""
    signs = []
    if randomized:
        signs.append(
            _sign(
                "randomized",
                "warning",
                f"The model answers differently when asked twice. Each final example is judged by {draws} fresh draws, "
                "and the accuracies are expected values.",
                "Attack the expected gradient: add --eot 20. If the randomness is not part of the defence, check that "
                "dropout and noise layers are off.",
            )
        )
    if was_training and mode == "eval":
        signs.append(
            _sign(
                "not_eval_mode",
                "warning",
                "The model came in training mode; it was evaluated in eval mode.",
                "Call model.eval() yourself, or use --mode as-is if behaviour in training mode is part of the defence.",
            )
        )
    if was_training and mode == "as-is":
        signs.append(
            _sign(
                "not_eval_mode",
                "serious",
                "The model is in training mode: dropout is active and BatchNorm depends on who shares a batch.",
                "Unless that is part of the defence, evaluate with --mode eval.",
            )
        )
    if found.softmax_outputs:
        signs.append(
            _sign(
                "softmax_outputs",
                "serious",
                "The outputs are probabilities (non-negative, rows sum to 1), not logits. Gradients of confident points "
                "vanish in float32, which hides weakness from gradient attacks.",
                "Return logits: remove the softmax from the model.",
            )
        )
    if found.zero_gradients > 0.05:
        signs.append(
            _sign(
                "zero_gradients",
                "serious",
                f"The gradient of the loss is exactly zero for {found.zero_gradients:.0%} of {found.n} points.",
                "Gradient attacks cannot see these points. Attack a differentiable stand-in (--attack-model, BPDA), "
                "use --loss margin, or add score-based attacks such as square.",
            )
        )
    if found.at_half is not None and found.at_half > (found.explained_by_grey or 0.0) + 0.05:
        signs.append(
            _sign(
                "robust_at_half",
                "serious",
                f"At eps = 0.5 in Linf, {found.at_half:.0%} of {found.n} points survive 20 steps of PGD, where the grey "
                f"image, which lies in every ball, explains {found.explained_by_grey:.0%}.",
                "The attack fails where an attack cannot fail: gradients are masked or misleading. Use score-based "
                "attacks and an attack made for this defence.",
            )
        )
    return signs


def of_accuracy(clean_accuracy: float, num_classes: int) -> list[Diagnostic]:
    """Return a sign where the clean accuracy is no better than guessing."""
    if clean_accuracy > 1.5 / num_classes:
        return []
    return [
        _sign(
            "clean_near_chance",
            "serious",
            f"The clean accuracy, {clean_accuracy:.1%}, is near chance for {num_classes} classes.",
            "Check that the model normalises its inputs itself (it is given images in [0, 1]), that channels are in RGB "
            "order, and that labels and classes mean the same.",
        )
    ]


def of_cascade(result: CascadeResult) -> list[Diagnostic]:
    """Return what the stages show: black-box attacks that beat white-box ones, stages that failed or did nothing."""
    signs = []
    ran = [stage for stage in result.stages if any(call.verdict is not None for call in stage.calls)]
    white = [stage for stage in ran if stage.stage.spec.knowledge == "white-box"]
    for stage in ran:
        spec = stage.stage.spec
        unchanged = sum(int(call.verdict.unchanged.sum()) for call in stage.calls if call.verdict is not None)
        judged = int(((stage.outcome == SURVIVED) | (stage.outcome == BROKEN)).sum())
        if judged and unchanged == judged:
            signs.append(
                _sign(
                    "no_op",
                    "warning",
                    f"{spec.name} returned all {judged} images unchanged.",
                    f"It did nothing here: its survivors say nothing. Try 'robustdup attacks check {spec.name}'.",
                )
            )
        if spec.knowledge in BLACK_BOX and white:
            beaten = torch.stack([w.outcome == SURVIVED for w in white]).all(dim=0)
            won = int(((stage.outcome == BROKEN) & beaten).sum())
            if won > max(1, 0.01 * int(beaten.sum())):
                signs.append(
                    _sign(
                        "black_box_beats_white_box",
                        "serious",
                        f"{spec.name} ({spec.knowledge}) broke {won} points that every white-box attack left standing.",
                        "Gradients are masked. Raise the steps and restarts of the white-box attacks, try other losses, "
                        "or attack a differentiable stand-in (--attack-model).",
                    )
                )
    for stage in result.stages:
        failed = [call for call in stage.calls if call.error]
        if failed:
            points = sum(len(call.rows) for call in failed)
            signs.append(
                _sign(
                    "attack_failed",
                    "serious",
                    f"{stage.stage.spec.name} failed on {points} points: {failed[0].error}",
                    "These points are undecided unless another attack broke them. Fix or drop the attack and run again "
                    "with --resume.",
                )
            )
    return signs


def of_curve(alone: Mapping[str, float], n: int) -> list[Diagnostic]:
    """Return a sign where a larger eps gave a higher robust accuracy; `alone` counts each eps by its own attacks."""
    signs = []
    for (small, low), (large, high) in pairwise(alone.items()):
        if round((high - low) * n) > max(1, 0.005 * n):
            signs.append(
                _sign(
                    "more_eps_more_accuracy",
                    "serious",
                    f"Robust accuracy rose from {low:.1%} at eps = {small} to {high:.1%} at eps = {large}.",
                    "An attack with more room cannot do worse: it is not converged. Raise its steps and restarts.",
                )
            )
    return signs


def _sign(code: str, severity: str, message: str, advice: str) -> Diagnostic:
    return Diagnostic.model_validate({"code": code, "severity": severity, "message": message, "advice": advice})
