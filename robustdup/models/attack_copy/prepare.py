"""Prepare a copy of a model for attacking: frozen, BatchNorm folded, channels last, compiled, in a chosen precision.

Each step is tried on a copy and kept only where logits and input gradients stay those of the original on example
images; otherwise it is undone and a note says why. The original is never changed; it stays the one that is judged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustdup.errors import unknown
from robustdup.models.attack_copy.agreement import (
    TOLERANCE,
    Answer,
    Probe,
    answers,
    differences,
    probes_of,
    reason_of,
    undisturbed,
    within,
)
from robustdup.models.attack_copy.compile import OPTIONS, compile_mode
from robustdup.models.attack_copy.fold import fold_batchnorm, has_own_backward
from robustdup.models.attack_copy.layout import AttackCopy, fits_channels_last

PROBE_ROWS = 16  # rows of a call that compares answers: a few are enough, and a large model takes long for more


@dataclass(frozen=True)
class Prepared:
    """A model ready to be attacked, and what was done to it.

    `error` is the largest difference of a logit to the original's on the example images, relative to the logits' scale
    (their largest magnitude, at least 1); NaN where the two could not be compared. `compiled` is "off", "default" or
    "cudagraphs", `precision` "fp32", "tf32" or "bf16"; `notes` says, a sentence each, what was left alone and why.
    """

    model: nn.Module
    folded: int
    channels_last: bool
    compiled: str
    precision: str
    error: float
    notes: tuple[str, ...]


def prepare(
    model: nn.Module, images: Tensor, *, micro_batch: int, fold: bool = True, channels_last: bool = True,
    compile: str = "auto", precision: str = "fp32", randomized: bool = False,
) -> Prepared:  # fmt: skip
    """Return a copy of a model for attacking that answers as the model does on `images`, only faster.

    A step that fails or changes the answers is undone and noted. https://docs.pytorch.org/docs/stable/fx.html

    Args:
        model: images (N, C, H, W) -> logits (N, K), in the mode in which it is attacked.
        images: clean examples (n, C, H, W) in [0, 1] on the model's device, n <= `micro_batch`.
        micro_batch: rows for which compiled code is made; the copy itself takes any number.
        fold: whether to fold BatchNorm into the layer before it.
        channels_last: whether to use that memory layout where there are convolutions.
        compile: "off", "on", "auto" (off on a CPU, on with CUDA) or "cudagraphs".
        precision: "fp32", "tf32" or "bf16".
        randomized: whether the model draws at random: it is neither folded nor compiled, which could freeze a draw.

    Raises:
        UserError: an unknown `compile` or `precision`.
    """
    if compile not in OPTIONS:
        raise unknown("value of compile", compile, OPTIONS)
    if precision not in TOLERANCE:
        raise unknown("precision", precision, TOLERANCE)
    trial = _Trial(model, probes_of(images, min(micro_batch, PROBE_ROWS)))
    if trial.expected is not None:
        if fold and not randomized:
            trial.try_fold()
        if channels_last and fits_channels_last(trial.best, images.device):
            trial.attempt("channels_last", _to_channels_last)
    if precision == "tf32" and not images.is_cuda:
        trial.notes.append("TF32 is for CUDA: the copy computes in fp32.")
    elif precision != "fp32":
        trial.attempt(precision, lambda best: best.changed(precision=precision))
    mode = compile_mode(compile, images.device, trial.notes, subject="copy", randomized=randomized)
    if mode != "off" and trial.expected is not None:

        def compiled(best: AttackCopy) -> AttackCopy:  # its code serves one shape, which the answers must have too
            trial.probes = probes_of(images, micro_batch)
            trial.expected = answers(AttackCopy(model), trial.probes)
            return best.changed(compiled=mode, shape=(micro_batch, *images.shape[1:]))

        trial.attempt("torch.compile", compiled)
    best = trial.best
    return Prepared(best, trial.folded, best.channels_last, best.compiled, best.precision, trial.error,
                    tuple(trial.notes))  # fmt: skip


def _to_channels_last(best: AttackCopy) -> AttackCopy:
    net = copy.deepcopy(best.net).to(memory_format=torch.channels_last)
    return best.changed(net=net, channels_last=True)


class _Trial:
    """The best copy so far, and the original's answers that the next one is held against (None: no answers)."""

    def __init__(self, model: nn.Module, probes: list[Probe]) -> None:
        self.probes = probes
        self.notes: list[str] = []
        self.folded = 0
        self.error = float("nan")
        self.best = self._copied(model)
        self.expected = self._ask(model)

    def _copied(self, model: nn.Module) -> AttackCopy:
        try:
            net = _copy(model).requires_grad_(False)
        except Exception as error:  # noqa: BLE001
            self.notes.append(f"The model could not be copied ({reason_of(error)}): the original itself is attacked.")
            net = model
        return AttackCopy(net)

    def _ask(self, model: nn.Module) -> list[Answer] | None:
        """Ask the original; None, with a note, where it fails, does not repeat itself, or its copy disagrees."""
        try:
            expected = answers(AttackCopy(model), self.probes)
            repeated = answers(AttackCopy(model), self.probes[:1])
            copied = answers(self.best, self.probes[:2])
        except Exception as error:  # noqa: BLE001
            reason = reason_of(error)
            why = (
                "gives no gradient" if "does not require grad" in reason else f"failed on the example images ({reason})"
            )
            self.notes.append(f"The model {why}: it was only copied.")
            return None
        if not within(differences(expected[:1], repeated), TOLERANCE["fp32"]):
            self.notes.append(
                "The model does not repeat itself under one seed, so nothing could be compared: only copied."
            )
            return None
        gaps = differences(expected[:2], copied)
        if not within(gaps, TOLERANCE["fp32"]):
            self.notes.append("A copy of the model answers differently: the original itself is attacked.")
            self.best = AttackCopy(model)
            return None
        self.error = gaps[0]
        return expected

    def try_fold(self) -> None:
        """Fold BatchNorm where there is any."""
        norms = [m for m in self.best.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        count = 0

        def build(best: AttackCopy) -> AttackCopy:
            nonlocal count
            probe = self.probes[-1]
            with undisturbed(best, probe.seed):
                if has_own_backward(best.net, probe.images):
                    raise ValueError("the model has a backward pass of its own, which tracing would drop")
            net, count = fold_batchnorm(best.net)
            return best.changed(net=net) if count else best

        if self.attempt("BatchNorm folding", build):
            self.folded = count
            if count < len(norms):
                self.notes.append(f"{len(norms) - count} of {len(norms)} BatchNorm layers do not fold and were left.")

    def attempt(self, step: str, build: Callable[[AttackCopy], AttackCopy]) -> bool:
        """Keep what `build` makes of the best copy if its answers hold; note and return False where they do not."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                candidate = build(self.best)
                actual = answers(candidate, self.probes) if self.expected is not None else []
        except Exception as error:  # noqa: BLE001
            self.notes.append(f"{step} was left out: {reason_of(error)}.")
            return False
        if self.expected is not None:
            gaps = differences(self.expected, actual)
            if not within(gaps, TOLERANCE[candidate.precision]):
                self.notes.append(
                    f"{step} was left out: it changes the answers (logits by {gaps[0]:.1e} of their scale, "
                    f"input gradients by {gaps[1]:.1e} of their length)."
                )
                return False
            self.error = gaps[0]
        self.best = candidate
        return True


def _copy(model: nn.Module) -> nn.Module:
    # Old-style weight and spectral normalisation keep computed tensors, which deepcopy refuses and a hook renews.
    values = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in values if value.grad_fn is not None})
