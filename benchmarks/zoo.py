"""A zoo that tries to fool an evaluation: wrappers around a network, what is reported of each, and what is true.

    python -m benchmarks.zoo [--model SPEC] [--data SPEC] [--attacks fast] [--n 30] [--eps 0.15] [--half develop|held-back|all]

Each wrapper keeps the network's answers, or nearly, and hides its gradient. The truth is what an attack with knowledge of the
mask breaks: the network without it is attacked, and the wrapper judged (`--attack-model`). Wrappers are split by a fixed
rule, the parity of a hash of their name: one half to develop on, one that is held back. Twenty wrappers so far, none trained.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masked import AFTER, BEFORE, masked

Forward = Callable[[nn.Module, Tensor], Tensor]


class Wrapped(nn.Module):
    """A network behind a function of (network, images) -> logits."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.answer = model, forward
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.answer(self.model, images)


def _codes(model: nn.Module, images: Tensor) -> Tensor:
    levels = torch.linspace(0.5 / 16, 15.5 / 16, 16, device=images.device).view(-1, 1, 1, 1, 1)
    return model((images[None] > levels).to(images.dtype).mean(dim=0))  # type: ignore[no-any-return]


def _winners(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    return torch.where(
        logits >= logits.topk(2, dim=1).values[:, -1:], logits, logits.detach().amin(dim=1, keepdim=True)
    )


def _jpeg(model: nn.Module, images: Tensor) -> Tensor:
    from PIL import Image

    parts = []
    for image in images:
        array = (image.detach().cpu().permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        file = io.BytesIO()
        Image.fromarray(array.squeeze()).save(file, "JPEG", quality=90)
        pixels = np.asarray(Image.open(file)).reshape(array.shape).copy()
        parts.append(torch.from_numpy(pixels).permute(2, 0, 1).to(images) / 255)
    return model(torch.stack(parts))  # type: ignore[no-any-return]


@torch.no_grad()
def _purified(model: nn.Module, images: Tensor) -> Tensor:
    for _ in range(2):
        images = 0.8 * images + 0.2 * F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return model(images)  # type: ignore[no-any-return]


def _votes(model: nn.Module, images: Tensor) -> Tensor:
    votes = [
        F.one_hot(model((images + shift).clamp(0, 1)).argmax(dim=1), _classes(model, images))
        for shift in (-0.02, 0.0, 0.02)
    ]
    return torch.stack(votes).sum(dim=0).to(images.dtype)


def _detector(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    sure = (logits.softmax(dim=1).amax(dim=1, keepdim=True) > 0.3).to(logits.dtype)
    answers: Tensor = (1 + 99 * sure) * logits.detach()
    return answers


def _shaped(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    top = logits.topk(2, dim=1).values
    margin = top[:, 0] - top[:, 1]
    step = margin.floor()
    wanted = (
        step + 0.99 * (1 - (margin - step)) + 0.005
    )  # falls where the margin rises: https://arxiv.org/abs/2205.12134
    shaped: Tensor = logits.scatter_add(1, logits.argmax(dim=1, keepdim=True), (wanted - margin)[:, None])
    return shaped


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def _views(model: nn.Module, images: Tensor) -> Tensor:
    views = [images, images.roll(1, dims=-1), images.roll(-1, dims=-1)]
    return torch.stack([(4 * model(view)).round() / 4 for view in views]).mean(dim=0)


def _classes(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        return int(model(images[:1]).shape[1])


WRAPPERS: dict[str, Forward] = {
    "codes": _codes,
    "winners": _winners,
    "bits": lambda model, images: model((images * 15).round() / 15),
    "bytes": lambda model, images: model((images * 15).to(torch.uint8).to(images.dtype) / 15),
    "staircase": lambda model, images: (2 * model(images)).round() / 2,
    "jpeg": _jpeg,
    "purified": _purified,
    "votes": _votes,
    "one-hot": lambda model, images: F.one_hot(model(images).argmax(dim=1), _classes(model, images)).to(images.dtype),
    "detector": _detector,
    "saturated": lambda model, images: (model(images) * 1e3).softmax(dim=1),
    "shaped": _shaped,
    "turned": lambda model, images: model(_Turned.apply(images)),
    "detached": lambda model, images: model(images.detach()),
    "views": _views,
}
NAMES = (*WRAPPERS, *BEFORE, *AFTER)


def wrapped(name: str, model: nn.Module) -> nn.Module:
    """Return the network behind the wrapper of that name."""
    return Wrapped(model, WRAPPERS[name]).eval() if name in WRAPPERS else masked(name, model)


def held_back(name: str) -> bool:
    """Say whether a wrapper is held back: where the SHA-256 of its name is odd."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def main(words: Sequence[str] | None = None) -> int:
    """Print the table: reported, true, and what was said of each wrapper."""
    import robustdup

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:digits-robust")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--attacks", default="fast")
    parser.add_argument("--eps", default="0.15")
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--half", choices=("develop", "held-back", "all"), default="develop")
    parser.add_argument("--only", default="", help="names, with commas between them")
    options = parser.parse_args(words)
    model, data = robustdup.load_model(options.model).eval(), robustdup.load_data(options.data, n=options.n)
    print(f"{len(NAMES)} wrappers; {options.half} half; {options.attacks} at {options.eps} on {options.n} samples")
    print("| wrapper | reported | undecided | true | believed | passes | seconds |\n|---|---:|---:|---:|---|---:|---:|")
    for name in (None, *NAMES):
        here = options.half == "all" or held_back(name or "") == (options.half == "held-back")
        if (name is not None and not here) or (options.only and name not in options.only.split(",")):
            continue
        judged = model if name is None else wrapped(name, model)
        record = robustdup.evaluate(judged, data, eps=options.eps, attacks=options.attacks).record
        known = robustdup.evaluate(judged, data, eps=options.eps, attacks="fast", attack_model=model, diagnostics=False)
        true = min(known.record.robust_accuracy.value, record.robust_accuracy.value)
        passes = record.passes.attacks_forward + record.passes.attacks_backward
        print(
            f"| {name or 'none'} | {record.robust_accuracy.value:.1%} | {record.n_undecided} | {true:.1%} | "
            f"{record.reliable} | {passes:,} | {record.seconds:.1f} |", flush=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
