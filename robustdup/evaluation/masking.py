"""Gradient masking: the signs that gradients mislead, how each is measured, and from which size on it counts.

These are the signs by which published defences that masked their gradients were found out: black-box success where
white-box attacks failed, gradients of exactly zero, a loss that does not follow its own gradient, and robustness where
none is possible (https://arxiv.org/abs/1802.00420, section 3.1; https://arxiv.org/abs/1902.06705). An ensemble that trusts
gradients asks between its stages whether to go on with the full one; the diagnostics of a run ask at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import ce
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.attacks.pgd import pgd
from robustdup.evaluation.context import Context, fresh_copy
from robustdup.evaluation.gradients import STEPS, gradient_signs, is_zero
from robustdup.evaluation.referee import judge, judge_images
from robustdup.records import Outcome
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

BLACK_BOX = ("score-based", "decision-based", "transfer")
LOOKED_AT = 64  # samples
# The share above which a sign counts.
THRESHOLDS = {
    "black_box_won": 0.05,  # of the samples that white-box attacks left and a black-box one tried; a single one never
    "zero_gradients": 0.05,  # of the samples looked at
    "erratic": 0.10,  # of the samples looked at; a single one never
    "unseen": 0.10,  # of the samples looked at; a single one never
    "evades": 0.10,  # of the samples looked at; a single one never
    "misses_boundary": 0.15,  # of the samples looked at; a single one never
    "kept_promise": 1.2,  # times what its gradient promises, or that part of it, that the loss changes by at the median
    "robust_at_half": 0.05,  # of the samples looked at, above what the grey image explains
}
MISLED = (
    "black_box_beats_white_box",
    "partial_gradients",
    "evasive_answers",
    "misses_boundary",
)  # codes of signs that the model's own gradient is no way through

Tried = tuple[str, Tensor]  # the knowledge of a stage, and its Outcome for each sample (N,)


@dataclass(frozen=True)
class MaskingSigns:
    """What was looked at: `reasons` to distrust gradients in plain words, the `signs` measured, and what looking cost."""

    reasons: tuple[str, ...]
    signs: dict[str, float]
    passes: Count = field(default_factory=Count)
    of_gradients: dict[str, str] = field(
        default_factory=dict
    )  # those of the reasons that gradients give, by their code
    route: str = ""  # the attack that was seen to get through
    looked_after: int = -1  # stages, when it was last looked for

    @property
    def misled(self) -> bool:
        """Whether attacks by the model's own gradient were led astray, or not to the end, however well the loss follows it."""
        return self.signs["black_box_won"] > THRESHOLDS["black_box_won"] or any(map(self.of_gradients.get, MISLED))


@dataclass(frozen=True)
class Probe:
    """What a look at the model showed on `n` samples: shares in [0, 1]; None where it does not apply."""

    zero_gradients: float
    softmax_outputs: bool
    n: int
    at_half: float | None = None
    explained_by_grey: float | None = None

    @property
    def robust_at_half(self) -> float:
        """The share that is robust at eps = 0.5 and should not be."""
        return 0.0 if self.at_half is None else self.at_half - (self.explained_by_grey or 0.0)


def masking_signs(
    context: Context, images: Tensor, labels: Tensor, adv_images: Tensor, left: Tensor, threat: ThreatModel,
    stages: Sequence[Tried], seen: Probe | None = None,
) -> MaskingSigns:  # fmt: skip
    """Look for signs of gradient masking on the samples that are `left`, and in the stages so far.

    Args:
        context: what the evaluation runs on.
        images: clean images (N, C, H, W) in [0, 1].
        labels: their classes (N,).
        adv_images: the worst image of each sample so far (N, C, H, W).
        left: which samples no attack has broken (N,) bool; gradients are not looked at where there are none.
        threat: the threat model.
        stages: what the stages so far knew of the model, and the outcome of each sample (N,).
        seen: what a look at the model showed, if there was one.
    """
    signs = {"black_box_won": max((share for _, _, share in black_box_wins(stages)), default=0.0)}
    rows = left.nonzero()[:, 0]
    if len(rows) > LOOKED_AT:
        rows = rows[torch.linspace(0, len(rows) - 1, LOOKED_AT).long()]
    model = context.looking_at(fresh_copy(context.attacked))
    reasons = []
    if signs["black_box_won"] > THRESHOLDS["black_box_won"]:
        reasons.append(f"black-box attacks broke {signs['black_box_won']:.1%} of what white-box attacks left standing")
    if len(rows):
        clean, attacked, classes = (tensor[rows].to(context.device) for tensor in (images, adv_images, labels))
        try:
            with isolated(model.model, seed=context.seed):
                signs |= gradient_signs(model, clean, attacked, classes, threat)
        except Exception as error:  # gradients may fail in any way  # noqa: BLE001
            reasons.append(f"gradients cannot be computed ({error})")
    if context.draws > 1:  # a loss that is drawn anew at each step does not follow its own gradient, and hides nothing
        signs = {name: value for name, value in signs.items() if name == "zero_gradients" or name == "black_box_won"}
    of_gradients = _gradient_reasons(signs, len(rows))
    reasons += of_gradients.values()
    if seen is not None and seen.robust_at_half > THRESHOLDS["robust_at_half"]:
        reasons.append(f"at eps = 0.5, where nothing can survive, {seen.at_half:.0%} of {seen.n} samples survive PGD")
    return MaskingSigns(tuple(reasons), signs, model.count, of_gradients)


def _gradient_reasons(signs: dict[str, float], n: int) -> dict[str, str]:
    """Return why the gradients of `n` samples that were looked at are to be distrusted, by the code of a diagnostic."""
    reasons = {}
    if signs.get("zero_gradients", 0.0) > THRESHOLDS["zero_gradients"]:
        reasons["zero_gradients"] = f"the gradient is zero for {signs['zero_gradients']:.0%} of {n} samples"
    steps = [f"eps/{round(1 / step)}" for step in STEPS]
    if more_than_one(signs, "erratic", n):
        reasons["erratic_gradients"] = (
            f"the loss does not follow its gradient over a step of {' or '.join(steps)} for {signs['erratic']:.0%} of {n} "
            "samples"
        )
    kept = signs.get("kept_promise", 1.0)
    if n > 1 and not 1 / THRESHOLDS["kept_promise"] <= kept <= THRESHOLDS["kept_promise"]:
        reasons["partial_gradients"] = (
            f"over a step of {steps[0]} the loss changes by {kept:.2g} times what its gradient promises, at the median of {n} "
            "samples: a part of the gradient is lost or wrong"
        )
    elif more_than_one(signs, "unseen", n):
        reasons["partial_gradients"] = (
            f"pixels whose gradient is exactly zero matter for {signs['unseen']:.0%} of {n} samples"
        )
    if more_than_one(signs, "evades", n):
        reasons["evasive_answers"] = (
            "the model answers otherwise just where attacks end, on the surface of the ball or off 8 bits, for "
            f"{signs['evades']:.0%} of {n} samples"
        )
    if more_than_one(signs, "misses_boundary", n):
        reasons["misses_boundary"] = (
            "near the decision boundary the gradient does not tell on which side steps end, or does not lead across it, for "
            f"{signs['misses_boundary']:.0%} of {n} samples: what it follows is not what decides"
        )
    return reasons


def black_box_wins(stages: Sequence[Tried], *, finished: bool = False) -> list[tuple[int, int, float]]:
    """Return (number of the stage, samples won, share) for each black-box stage that won what white-box ones had left.

    The share is of the samples that white-box stages left and that it tried. A single sample is no sign: a stage is named
    from the second on.

    Args:
        stages: what each stage knew of the model, and the outcome of each sample (N,).
        finished: while a run goes on, the white-box stages before a black-box one count, and what they did not take counts
            as left; of a finished run all count, and only the samples that each of them tried.
    """
    wins: list[tuple[int, int, float]] = []
    white = [outcome for knowledge, outcome in stages if knowledge == "white-box"] if finished else []
    for number, (knowledge, outcome) in enumerate(stages):
        if knowledge == "white-box" and not finished:
            white.append(outcome)
        if knowledge not in BLACK_BOX or not white:
            continue
        left = torch.stack(
            [white_box == Outcome.ROBUST if finished else white_box != Outcome.BROKEN for white_box in white]
        )
        tried = (outcome == Outcome.ROBUST) | (outcome == Outcome.BROKEN)
        looked_at = left.all(dim=0) & tried
        won = int((looked_at & (outcome == Outcome.BROKEN)).sum())
        if won > 1:
            wins.append((number, won, won / int(looked_at.sum())))
    return wins


def more_than_one(signs: dict[str, float], name: str, n: int, *, limit: float | None = None) -> bool:
    """Whether the share of a sign, of n samples looked at, is above its threshold (or `limit`), and not of a single one."""
    return signs.get(name, 0.0) > max(THRESHOLDS[name] if limit is None else limit, 1.5 / max(n, 1))


def left_by_a_long_run(
    context: Context, images: Tensor, labels: Tensor, index: Tensor, threat: ThreatModel
) -> tuple[int, Count]:
    """Return how many samples a long targeted run by gradients does not break, and its passes.

    Args:
        context: what the evaluation runs on.
        images: clean images (n, C, H, W) in [0, 1].
        labels: their classes (n,).
        index: their rows in the dataset (n,).
        threat: the threat model.
    """
    from robustdup.attacks.apgd_t import apgd_t  # here, so that a run of one attack imports no other

    images, labels, index = (tensor.to(context.device) for tensor in (images, labels, index))
    model = context.looking_at(fresh_copy(context.attacked))
    original = context.looking_at(context.original.model)
    rng = SampleRng(context.seed, index).fold("long run")
    try:
        with isolated(model.model, seed=context.seed):
            adv_images = apgd_t(model, images, labels, threat, rng=rng, steps=50, larger_eps=threat.norm == "L1")
            is_adv = judge(original, images, adv_images, labels, threat).is_adv
    except Exception:  # a model may fail in any way under gradients; then they break nothing  # noqa: BLE001
        is_adv = torch.zeros(len(labels), dtype=torch.bool)
    return int((~is_adv).sum()), model.count + original.count


def probe(
    original: Passes, attacked: Passes, images: Tensor, labels: Tensor, index: Tensor, norm: str, seed: int
) -> Probe:
    """Look at gradients, outputs and, in Linf, at eps = 0.5 on a few samples that the model gets right.

    At eps = 0.5 in Linf the grey image lies in every ball: a model can only keep samples whose label it gives to the grey
    image. What survives an attack above that share was not looked for well enough.

    Args:
        original: the model that the referee asks.
        attacked: a copy of the model under attack.
        images: clean images (n, C, H, W) in [0, 1].
        labels: their classes (n,).
        index: their rows in the dataset (n,).
        norm: of the threat model.
        seed: of the attack at eps = 0.5.
    """
    with torch.no_grad():
        logits = attacked(images)
    softmax = bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-4).all())
    zero = 1.0
    if logits.requires_grad or _differentiable(attacked, images[:1]):
        gradient, _, _ = input_gradient(attacked, images, lambda out, rows: ce(out, labels[rows]))
        zero = float(is_zero(gradient).float().mean())
    if norm != "Linf" or zero == 1.0:
        return Probe(zero, softmax, len(images))
    half = ThreatModel("Linf", "0.5")
    adv_images = pgd(attacked, images, labels, half, rng=SampleRng(seed, index).fold("probe"), steps=20)
    verdict = judge(original, images, adv_images, labels, half)
    grey = judge_images(original, torch.full_like(images[:1], 0.5), labels[:1]).prediction
    return Probe(
        zero,
        softmax,
        len(images),
        at_half=float((~verdict.is_adv).double().mean()),
        explained_by_grey=float((labels.cpu() == grey).double().mean()),
    )


def _differentiable(model: nn.Module, images: Tensor) -> bool:
    with torch.enable_grad():
        logits = model(images.detach().clone().requires_grad_(True))
    return bool(logits.requires_grad)


@dataclass(frozen=True)
class FirstLook:
    """A probe of the model on some samples that it gets right, the error where it failed, and what it cost."""

    probe: Probe
    passes: Count
    error: Exception | None = None


def look_first(context: Context, images: Tensor, labels: Tensor, index: Tensor, norm: str) -> FirstLook:
    """Probe the model once in a run, on at most 64 samples that it gets right.

    Args:
        context: what the evaluation runs on, which keeps what was seen.
        images: clean images (n, C, H, W) in [0, 1].
        labels: their classes (n,).
        index: their rows in the dataset (n,).
        norm: of the threat model.
    """
    if not isinstance(context.first_look, FirstLook):
        images, labels, index = (tensor[:LOOKED_AT].to(context.device) for tensor in (images, labels, index))
        original = context.looking_at(context.original.model)
        attacked = context.looking_at(fresh_copy(context.attacked))
        seen, failed = Probe(zero_gradients=0.0, softmax_outputs=False, n=len(labels)), None
        try:
            with isolated(attacked.model, seed=context.seed):
                seen = probe(original, attacked, images, labels, index, norm, context.seed)
        except Exception as error:  # gradients may fail in any way; the attacks' results must not be lost over it  # noqa: BLE001
            failed = error
        context.first_look = FirstLook(seen, original.count + attacked.count, failed)
    return context.first_look
