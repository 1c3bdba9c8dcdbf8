"""Models that answer at random: the expected accuracy that `evaluate` reports, beside plain EOT-PGD on all samples.

    python -m benchmarks.randomised --model SPEC --data SPEC [--n 60] [--eps 2/255,8/255] [--kinds dropout,resize-pad,noise]
        [--attacks 'pgd(steps=40)' --attacks fast …] [--out FILE]

Each kind of randomness is put around the model. EOT-PGD (https://arxiv.org/abs/1707.07397) is written out here, so that it
owes nothing to the attacks: 100 steps on every sample from two random starts, one for the cross-entropy and one for the margin,
gradients summed over 10 draws, steps that fall from a quarter of eps to nothing. Of the clean image and both last iterates
the one that 100 draws get right least often is taken. It and robustdup's image are judged by the same fresh draws. Lines
that --out has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustdup
from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins

STEPS, DRAWS, CHOOSING, JUDGES = 100, 10, 100, 300
ATTACKS = ("pgd(steps=40)", "autoattack-rand", "fast", "torchattacks:PGD(steps=40)")


class InputNoise(nn.Module):
    """Normal noise on every pixel, anew at each call."""

    def __init__(self, model: nn.Module, deviation: float = 0.05) -> None:
        super().__init__()
        self.model, self.deviation = model, deviation

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.model(images + self.deviation * torch.randn_like(images))  # type: ignore[no-any-return]


class ResizePad(nn.Module):
    """Random size and place, one of each for a call: https://arxiv.org/abs/1711.01991."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the same shape: shrunk by up to an eighth, on black."""
        side = images.shape[-1]
        small = int(torch.randint(side - side // 8, side + 1, ()))
        left, top = (int(torch.randint(0, side - small + 1, ())) for _ in range(2))
        frame = (left, side - small - left, top, side - small - top)
        return F.pad(F.interpolate(images, size=(small, small)), frame)


class AlwaysDropout(nn.Module):
    """Dropout in every mode."""

    def forward(self, features: Tensor) -> Tensor:
        """Features of any shape -> the same shape, 30% of them zero."""
        return F.dropout(features, 0.3, training=True)


def randomised(kind: str, model: nn.Module) -> nn.Module:
    """Return a model that answers at random; `model` is changed for dropout, which comes before its last linear layer."""
    if kind == "noise":
        return InputNoise(model).eval()
    if kind == "resize-pad":
        return nn.Sequential(ResizePad(), model).eval()
    name, last = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, nn.Sequential(AlwaysDropout(), last))
    return model.eval()


def eot_pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return what EOT-PGD in Linf finds by two losses from random starts, for images (N, C, H, W) with labels (N,)."""
    candidates = [images, *(ascended(model, images, labels, eps, loss) for loss in (cross_entropy, minus_margin))]
    right = torch.stack([shares(model, each, labels, draws=CHOOSING, seed=7) for each in candidates])
    rows = torch.arange(len(images))
    return torch.stack(candidates)[right.argmin(dim=0), rows]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of logits (N, K)."""
    return F.cross_entropy(logits, labels, reduction="sum")


def minus_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed difference of the best other logit and that of the label."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return (logits.masked_fill(own, -torch.inf).amax(dim=1) - logits[own]).sum()


def ascended(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the last iterate of ascent on a loss by the signs of gradients that are summed over draws."""
    torch.manual_seed(0)
    adv_images = (images + (2 * torch.rand_like(images) - 1) * eps).clamp(0, 1)
    for step in range(STEPS):
        gradient = torch.zeros_like(images)
        for _ in range(DRAWS):
            adv_images.requires_grad_(True)
            gradient += torch.autograd.grad(loss(model(adv_images), labels), adv_images)[0]
            adv_images = adv_images.detach()
        adv_images = adv_images + eps / 4 * (1 - step / STEPS) * gradient.sign()
        adv_images = torch.minimum(torch.maximum(adv_images, images - eps), images + eps).clamp(0, 1)
    return adv_images


def shares(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int, seed: int) -> Tensor:
    """Return in which share of the draws each image is classified correctly (N,)."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return torch.stack([(model(images).argmax(dim=1) == labels).float() for _ in range(draws)]).mean(dim=0)


def expected(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers in percent, over 300 draws for each sample."""
    return 100 * float(shares(model, images, labels, draws=JUDGES, seed=123).mean())


def measure(model: nn.Module, images: Tensor, labels: Tensor, eps: str, attacks: str) -> dict[str, Any]:
    """Evaluate a model that answers at random, and judge the images that are left by the draws that judge EOT-PGD's."""
    result = robustdup.evaluate(model, images, labels, eps=eps, attacks=attacks, workers=1, diagnostics=False)
    record = result.record
    return {
        "clean": 100 * record.clean_accuracy.value, "robust": 100 * record.robust_accuracy.value,
        "judged_alike": expected(model, result.adv_images, labels),
    }  # fmt: skip


def main() -> None:
    """Measure as the command line says, and print a row of a Markdown table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--eps", default="2/255,8/255")
    parser.add_argument("--kinds", default="dropout,resize-pad,noise")
    parser.add_argument("--attacks", action="append", help="as --attacks of robustdup eval; may be given several times")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    registry = load_plugins()
    data = load_images(given.data, DataOptions(split="test"), n=given.n, registry=registry)
    before = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    known = {(line["kind"], line["eps"], line["attacks"]): line for line in map(json.loads, before)}
    print("| model | eps | attacks | clean | robust | its images, judged alike | EOT-PGD by hand | difference |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for kind in given.kinds.split(","):
        model = randomised(kind, load_model(given.model, registry=registry).eval().requires_grad_(False))
        for eps in given.eps.split(","):
            by_hand: float | None = None
            for attacks in given.attacks or ATTACKS:
                line = known.get((kind, eps, attacks))
                if line is None:
                    if by_hand is None:
                        by_hand = expected(
                            model, eot_pgd(model, data.images, data.labels, float(Fraction(eps))), data.labels
                        )
                    line = {"kind": kind, "eps": eps, "attacks": attacks, "n": given.n, "by_hand": by_hand}
                    line |= measure(model, data.images, data.labels, eps, attacks)
                    if given.out:
                        with given.out.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                print(
                    f"| {kind} | {eps} | {attacks} | {line['clean']:.2f} | {line['robust']:.2f} | {line['judged_alike']:.2f} | "
                    f"{line['by_hand']:.2f} | {line['judged_alike'] - line['by_hand']:+.2f} |", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
