"""Signs that a robust accuracy should not be believed, each with what to do about it.

The checks follow Carlini et al. (https://arxiv.org/abs/1902.06705), Athalye et al.
(https://arxiv.org/abs/1802.00420) and the flags of AutoAttack (https://github.com/fra31/auto-attack). All are computed
before unions over attacks and eps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from robustdup.attacks.passes import Count
from robustdup.evaluation.cascade import CascadeResult, CleanSamples
from robustdup.evaluation.clean import CleanAnswers
from robustdup.evaluation.context import Context
from robustdup.evaluation.masking import (
    LOOKED_AT,
    THRESHOLDS,
    MaskingSigns,
    Probe,
    black_box_wins,
    left_by_a_long_run,
    look_first,
    masking_signs,
)
from robustdup.evaluation.referee import NOT_FINITE
from robustdup.projections import COUNTS
from robustdup.records import Diagnostic, Outcome

ALIKE = 10  # images whose same answer says something


def diagnose(
    context: Context,
    samples: CleanSamples,
    clean: CleanAnswers,
    results: list[CascadeResult],
    *,
    mode: str,
    was_training: bool,
) -> tuple[list[Diagnostic], Count]:
    """Look at the model and at what the attacks did, before any union; return signs and the passes that looking cost.

    Args:
        context: what the evaluation ran on.
        samples: the samples of the run.
        clean: what the model says of their clean images.
        results: a cascade for each eps, rising, or for each ball of a union over norms.
        mode: whether the model was put in eval mode or left as it came.
        was_training: whether the model came in training mode.
    """
    correct = (~samples.clean.is_adv).nonzero()[:LOOKED_AT, 0]
    signs = of_accuracy(float(samples.clean.correct_share.mean()), clean.num_classes)
    signs += of_answers(samples.clean.prediction, samples.labels)
    spent = Count()
    if len(correct):
        look = look_first(
            context, samples.images[correct], samples.labels[correct], samples.index[correct], results[-1].threat.norm
        )
        signs += [] if look.error is None else [_failed_probe(look.error)]
        seen, spent = look.probe, look.passes
        signs += of_mode(was_training, mode) + of_probe(seen)
    signs += of_randomness(clean.randomized, context.draws)
    signs += of_company(clean.batch_dependent, context.original.micro_batch) + of_memory(clean.remembers)
    for result in results:
        signs += of_cascade(result)
        black_box, passes = of_black_boxes(context, samples, result)
        signs, spent = signs + black_box, spent + passes
        if result.masking is None and result.threat.norm not in COUNTS:  # no stage asked on the way
            seen_there = _look_at_what_is_left(context, samples, result)
            signs += of_gradients(seen_there, {sign.code for sign in signs})
            spent = spent + seen_there.passes
    n = len(samples.labels)
    decided = [r for r in results if not r.undecided.any()]  # an attack that failed says nothing of its eps
    alone = {
        r.threat.eps_text: float((~samples.clean.is_adv & ~r.broken).sum()) / n
        if r.expected is None
        else float(r.expected.mean())
        for r in decided
    }
    signs += of_curve(alone, n) if not any(r.ball for r in results) else []
    return list({(sign.code, sign.message): sign for sign in signs}.values()), spent


def _failed_probe(error: Exception) -> Diagnostic:
    return _sign(
        "probe_failed",
        "serious",
        f"The model's gradients and outputs could not be looked at: {type(error).__name__}: {error}.",
        "Gradient attacks fail on such a model, and black-box attacks alone prove little. Attack a differentiable stand-in "
        "(--attack-model, BPDA).",
    )


def of_randomness(randomized: bool, draws: int) -> list[Diagnostic]:
    """Return a sign where the model answers at random."""
    return _where(
        randomized,
        "randomized",
        "warning",
        f"The model answers differently when asked again. Accuracies are expected values: shares of {draws} fresh draws "
        "that had no part in choosing the images. Samples that are right in only a few draws are attacked too.",
        "Raise --eot (draws of a gradient) and --judge-draws and see whether the number stays. If the randomness is "
        "not part of the defence, check that dropout and noise layers are off.",
    )


def of_company(batch_dependent: bool, rows: int | None) -> list[Diagnostic]:
    """Return a sign where an answer depends on which images share a batch; `rows` are in the batches of the judgement."""
    return _where(
        batch_dependent,
        "batch_dependent",
        "serious",
        "The model's answer to an image depends on the other images in its batch (BatchNorm with batch statistics, "
        f"perhaps). It was judged in batches of {rows}, in the order of the data, clean among clean images and attacked "
        "among attacked ones; other batches give another number.",
        "Put BatchNorm into eval mode with running statistics. If the batch belongs to the defence, state it: "
        "--micro-batch.",
    )


def of_memory(remembers: bool) -> list[Diagnostic]:
    """Return a sign where an answer depends on what the model was asked before."""
    return _where(
        remembers,
        "remembers",
        "serious",
        "The model's answer to an image depends on what it was asked before. Attacks and the judge ask about neighbours "
        "of images that it has seen; who shows it an attacked image first may get another answer.",
        "Evaluate the network without its memory. If that belongs to the defence, attack the network without it "
        "(--attack-model) and judge those images by a model that was asked nothing before.",
    )


def of_mode(was_training: bool, mode: str) -> list[Diagnostic]:
    """Return a sign where the model came in training mode: a warning where it was put in eval mode."""
    return _where(
        was_training and mode == "eval",
        "not_eval_mode",
        "warning",
        "The model came in training mode; it was evaluated in eval mode.",
        "Call model.eval() yourself, or use --mode as-is if behaviour in training mode is part of the defence.",
    ) + _where(
        was_training and mode != "eval",
        "not_eval_mode",
        "serious",
        "The model is in training mode: dropout is active and BatchNorm depends on who shares a batch.",
        "Unless that is part of the defence, evaluate with --mode eval.",
    )


def of_probe(seen: Probe) -> list[Diagnostic]:
    """Return what a look at the model shows: probabilities for logits, gradient masking."""
    signs = _where(
        seen.softmax_outputs,
        "softmax_outputs",
        "serious",
        "The outputs are probabilities (non-negative, rows sum to 1), not logits. Gradients of confident samples vanish in "
        "float32, which hides weakness from gradient attacks.",
        "Return logits: remove the softmax from the model.",
    )
    signs += _where(
        seen.zero_gradients > THRESHOLDS["zero_gradients"],
        "zero_gradients",
        "serious",
        f"The gradient of the loss is exactly zero for {seen.zero_gradients:.0%} of {seen.n} samples.",
        "Gradient attacks cannot see these samples. Attack a differentiable stand-in (--attack-model, BPDA), use --loss "
        "margin, or add score-based attacks such as square.",
    )
    if seen.robust_at_half > THRESHOLDS["robust_at_half"]:
        signs.append(
            _sign(
                "robust_at_half",
                "serious",
                f"At eps = 0.5 in Linf, {seen.at_half:.0%} of {seen.n} samples survive 20 steps of PGD, where the grey "
                f"image, which lies in every ball, explains {seen.explained_by_grey:.0%}.",
                "The attack fails where an attack cannot fail: gradients are masked or misleading. Use score-based "
                "attacks and an attack made for this defence.",
            )
        )
    return signs


def _look_at_what_is_left(context: Context, samples: CleanSamples, result: CascadeResult) -> MaskingSigns:
    left = ~samples.clean.is_adv & ~result.broken
    return masking_signs(context, samples.images, samples.labels, result.adv_images, left, result.threat, stages=[])


def of_gradients(seen: MaskingSigns, said: Collection[str] = ()) -> list[Diagnostic]:
    """Return what the gradients of samples that are left show, but for the codes of signs that were `said` before."""
    return [
        _sign(
            code,
            "serious",
            f"Of what the attacks left, {reason}.",
            "What follows the gradient cannot see these samples. Use --attacks fast, which goes on where gradients look "
            "masked, or attack a differentiable stand-in (--attack-model).",
        )
        for code, reason in seen.of_gradients.items()
        if code not in said
    ]


def of_accuracy(clean_accuracy: float, num_classes: int) -> list[Diagnostic]:
    """Return a sign where the clean accuracy is no better than guessing."""
    return _where(
        not clean_accuracy > 1.5 / num_classes,
        "clean_near_chance",
        "serious",
        f"The clean accuracy, {clean_accuracy:.1%}, is near chance for {num_classes} classes.",
        "Check that the model normalises its inputs itself (it is given images in [0, 1]), that channels are in RGB "
        "order, and that labels and classes mean the same.",
    )


def of_answers(prediction: Tensor, labels: Tensor) -> list[Diagnostic]:
    """Return a sign where all of ten or more images get the same class and their labels differ; both arguments are (N,)."""
    if len(labels) < ALIKE or bool((prediction != prediction[0]).any()) or bool((labels == labels[0]).all()):
        return []
    return [
        _sign(
            "same_answer",
            "serious",
            f"The model gives every one of the {len(labels)} clean images the same class, {int(prediction[0])}.",
            "Look at its weights (all zero, never trained, or another network's) and at its normalisation: such an accuracy says "
            "nothing.",
        )
    ]


def of_cascade(result: CascadeResult) -> list[Diagnostic]:
    """Return what the stages show by themselves: that they failed or did nothing."""
    return [*_idle_stages(result), *_failed_stages(result)]


def _idle_stages(result: CascadeResult) -> list[Diagnostic]:
    signs: list[Diagnostic] = []
    for stage in result.stages:
        spec = stage.stage.spec
        verdicts = [call.verdict for call in stage.calls if call.verdict is not None]
        judged = sum(len(verdict.unchanged) for verdict in verdicts)
        unchanged = sum(int(verdict.unchanged.sum()) for verdict in verdicts)
        lost = sum(int((verdict.violation & NOT_FINITE != 0).sum()) for verdict in verdicts)
        passes = sum((call.attack_passes for call in stage.calls), Count())
        returned = f"{lost} of {judged} images with NaN or infinity" if lost else f"all {judged} images unchanged"
        seen = f"{spec.name} returned {returned}{' and the others unchanged' if 0 < lost < judged else ''}."
        unasked = spec.knowledge != "transfer" and passes.forward + passes.backward == 0
        signs += _where(
            judged > 0 and (unasked or unchanged + lost == judged),
            "no_op",
            "warning",
            seen if unchanged + lost == judged else f"{spec.name} never asked the model.",
            f"What it leaves standing says nothing. Try 'robustdup attacks check {spec.name}'.",
        )
    return signs


def of_black_boxes(context: Context, samples: CleanSamples, result: CascadeResult) -> tuple[list[Diagnostic], Count]:
    """Return a sign for each black-box attack that broke what the white-box ones left, and what looking cost.

    Short runs leave what longer ones would break. So one is made on what the black-box attack won: gradients are masked
    only where it too leaves more than is allowed.
    """
    ran = [stage for stage in result.stages if any(call.verdict is not None for call in stage.calls)]
    tried = [(stage.stage.spec.knowledge, stage.outcome) for stage in ran]
    signs, spent = [], Count()
    for number, won, share in black_box_wins(tried, finished=True):
        if share <= THRESHOLDS["black_box_won"]:
            continue
        spec, stood = ran[number].stage.spec, torch.ones_like(result.broken)
        for knowledge, outcome in tried:
            stood &= (outcome == Outcome.ROBUST) | (knowledge != "white-box")
        rows = (stood & (ran[number].outcome == Outcome.BROKEN)).nonzero()[:LOOKED_AT, 0]
        beyond, passes = left_by_a_long_run(
            context, samples.images[rows], samples.labels[rows], samples.index[rows], result.threat
        )
        spent = spent + passes
        hidden = beyond * won / len(rows)
        masked = hidden > 1 and share * hidden / won > THRESHOLDS["black_box_won"]
        signs.append(
            _sign(
                "black_box_beats_white_box",
                "serious" if masked else "warning",
                f"{spec.name} ({spec.knowledge}) broke {won} samples that every white-box attack left standing"
                + ("." if masked else "; a longer targeted run by gradients breaks them too."),
                "Gradients are masked. Raise the steps and restarts of the white-box attacks, try other losses, "
                "or attack a differentiable stand-in (--attack-model)."
                if masked
                else "The white-box attacks were too weak: use --attacks fast or autoattack, or more steps and restarts.",
            )
        )
    return signs, spent


def _failed_stages(result: CascadeResult) -> list[Diagnostic]:
    signs: list[Diagnostic] = []
    lost: list[str] = []
    for stage in result.stages:
        failed = [call for call in stage.calls if call.error and not call.lost_gradient]
        lost += [stage.stage.spec.name] if any(call.error and call.lost_gradient for call in stage.calls) else []
        if failed:
            count = sum(len(call.positions) for call in failed)
            signs.append(
                _sign(
                    "attack_failed",
                    "serious",
                    f"{stage.stage.spec.name} failed on {count} samples: {failed[0].error}",
                    "These samples are undecided unless another attack broke them. --resume tries them again with the "
                    "same settings; for another model, or without this attack, start a new run.",
                )
            )
    return signs + _where(
        bool(lost),
        "attack_failed",
        "warning",
        f"{', '.join(dict.fromkeys(lost))} could not run: no gradient of the model reaches the images.",
        "Other attacks decide. Where a sample stays undecided, use --attacks fast, which sees through what cuts gradients, "
        "or attacks that ask for none, such as square.",
    )


def of_curve(alone: Mapping[str, float], n: int) -> list[Diagnostic]:
    """Return a sign where a larger eps gave a higher robust accuracy; `alone` counts each eps by its own attacks."""
    signs: list[Diagnostic] = []
    for (small, low), (large, high) in pairwise(alone.items()):
        signs += _where(
            round((high - low) * n) > max(1, 0.005 * n),
            "more_eps_more_accuracy",
            "serious",
            f"Robust accuracy rose from {low:.1%} at eps = {small} to {high:.1%} at eps = {large}.",
            "An attack with more room cannot do worse: it is not converged. Raise its steps and restarts.",
        )
    return signs


def _sign(code: str, severity: Literal["info", "warning", "serious"], message: str, advice: str) -> Diagnostic:
    return Diagnostic(code=code, severity=severity, message=message, advice=advice)


def _where(
    seen: bool, code: str, severity: Literal["info", "warning", "serious"], message: str, advice: str
) -> list[Diagnostic]:
    """Return a sign where it was seen, nothing where it was not."""
    return [_sign(code, severity, message, advice)] if seen else []
