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
from robustdup.models.answers import Answer, Probe, answers, differences, probes_of, undisturbed
from robustdup.models.attack_copy import AttackCopy
from robustdup.models.fold import fold_batchnorm, has_own_backward

PROBE_ROWS = 16  # rows of a call that compares answers: a few are enough, and a large model takes long for more
COMPILE = ("auto", "off", "on", "cudagraphs")
# Largest difference that a step may make, by precision: (logits relative to their scale, a row's input gradient
# relative to its length). 0.045 is a cosine of 0.999, and sees a changed length besides.
TOLERANCE = {"fp32": (1e-4, 0.045), "tf32": (2e-2, 0.3), "bf16": (1e-1, 0.7)}


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
    """Return a copy of `model` for attacking that answers as the original does on `images`, only faster.

    `images` (n, C, H, W), n <= `micro_batch`: clean examples in [0, 1] on the model's device. The copy takes any number
    of rows; compiled code serves calls of exactly `micro_batch` rows. `compile`: "auto" is off on CPU and on for CUDA
    (where its gain has not been measured), "cudagraphs" is torch's mode "reduce-overhead". A `randomized` model is
    neither folded nor compiled: both could freeze a random draw. A step that fails or changes the answers is undone
    and noted. Raises UserError for an unknown `compile` or `precision`.
    https://docs.pytorch.org/docs/stable/fx.html https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    """
    if compile not in COMPILE:
        raise unknown("value of compile", compile, COMPILE)
    if precision not in TOLERANCE:
        raise unknown("precision", precision, TOLERANCE)
    bench = _Bench(model, probes_of(images, min(micro_batch, PROBE_ROWS)))
    if bench.truth is not None:
        if fold and not randomized:
            bench.try_fold()
        if channels_last and fits_channels_last(bench.best, images.device):
            bench.attempt("channels_last", _to_channels_last)
    if precision == "tf32" and not images.is_cuda:
        bench.notes.append("TF32 is for CUDA: the copy computes in fp32.")
    elif precision != "fp32":
        bench.attempt(precision, lambda best: best.changed(precision=precision))
    mode = _compile_mode(compile, images.is_cuda, randomized, bench.notes)
    if mode != "off" and bench.truth is not None:

        def compiled(best: AttackCopy) -> AttackCopy:  # its code serves one shape, which the answers must have too
            bench.probes = probes_of(images, micro_batch)
            bench.truth = answers(AttackCopy(model), bench.probes)
            return best.changed(compiled=mode, shape=(micro_batch, *images.shape[1:]))

        bench.attempt("torch.compile", compiled)
    best = bench.best
    return Prepared(best, bench.folded, best.channels_last, best.compiled, best.precision, bench.error,
                    tuple(bench.notes))  # fmt: skip


def fits_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Tell whether a model has convolutions, and none whose backward pass in that layout brings the process down.

    On a CPU oneDNN was seen to corrupt memory in the backward pass of a 1x1 convolution with stride and 4 input channels.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    risky = [c for c in layers if c.in_channels // c.groups < 8 and c.kernel_size == (1, 1) and c.stride != (1, 1)]
    return bool(layers) and not (device.type == "cpu" and risky)


def _to_channels_last(best: AttackCopy) -> AttackCopy:
    net = copy.deepcopy(best.net).to(memory_format=torch.channels_last)
    return best.changed(net=net, channels_last=True)


def _compile_mode(asked: str, cuda: bool, randomized: bool, notes: list[str]) -> str:
    if asked == "off" or (asked == "auto" and not cuda):
        return "off"
    if randomized:
        notes.append("A randomised model is not compiled: compiling could freeze a random draw.")
        return "off"
    if asked == "cudagraphs" and not cuda:
        notes.append("CUDA graphs are for CUDA: the copy is not compiled.")
        return "off"
    return "cudagraphs" if asked == "cudagraphs" else "default"


class _Bench:
    """The best copy so far, and the original's answers that the next one is held against (None: no answers)."""

    def __init__(self, model: nn.Module, probes: list[Probe]) -> None:
        self.probes = probes
        self.notes: list[str] = []
        self.folded = 0
        self.error = float("nan")
        self.best = self._copied(model)
        self.truth = self._truth(model)

    def _copied(self, model: nn.Module) -> AttackCopy:
        try:
            net = _copy(model).requires_grad_(False)
        except Exception as error:
            self.notes.append(f"The model could not be copied ({_reason(error)}): the original itself is attacked.")
            net = model
        return AttackCopy(net)

    def _truth(self, model: nn.Module) -> list[Answer] | None:
        """Ask the original; None, with a note, where it fails, does not repeat itself, or its copy disagrees."""
        try:
            truth = answers(AttackCopy(model), self.probes)
            again = answers(AttackCopy(model), self.probes[:1])
            ours = answers(self.best, self.probes[:2])
        except Exception as error:
            self.notes.append(f"The model failed on the example images ({_reason(error)}): it was only copied.")
            return None
        if not _within(differences(truth[:1], again), "fp32"):
            self.notes.append(
                "The model does not repeat itself under one seed, so nothing could be compared: only copied."
            )
            return None
        found = differences(truth[:2], ours)
        if not _within(found, "fp32"):
            self.notes.append("A copy of the model answers differently: the original itself is attacked.")
            self.best = AttackCopy(model)
            return None
        self.error = found[0]
        return truth

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
                found = answers(candidate, self.probes) if self.truth is not None else []
        except Exception as error:
            self.notes.append(f"{step} was left out: {_reason(error)}.")
            return False
        if self.truth is not None:
            gaps = differences(self.truth, found)
            if not _within(gaps, candidate.precision):
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


def _within(differences: tuple[float, float], precision: str) -> bool:
    # Within the tolerance the predicted classes are equal too, but for ties at that level.
    return all(found <= allowed for found, allowed in zip(differences, TOLERANCE[precision], strict=True))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
