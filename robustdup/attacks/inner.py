"""The network inside a wrapper: the module whose answers are the model's before anything was done to its scores.

Wrappers that round, clip, reshape or vote on scores leave the network that computes them whole. It is found by what it
says: the first module of a forward pass whose output has a column for each class, or for the first ones of them, and nearly
always the model's answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AGREES = 0.9  # of the answers, at least
PROBED = 32  # images that are asked about where no sample may be


@dataclass(frozen=True)
class Inner:
    """The name of a module, and how its answers lie where there are several views of each image: image by image, or not."""

    name: str
    image_by_image: bool = False


def answers_inside(model: nn.Module, inner: Inner, images: Tensor) -> Tensor:
    """Run the model on images (N, C, H, W): what the module inside says (N, K), the mean where it is asked several times.

    Classes of the model that the module does not know come last in its answers, whatever the images.
    """
    with _heard(model, [inner.name]) as answers:
        classes = model(images).shape[1]
    output = _arranged(answers[inner.name], len(images), inner.image_by_image)
    last = float(output.detach().min()) - 1 if len(output) else 0.0
    return torch.nn.functional.pad(output, (0, classes - output.shape[1]), value=last)


def find_inner(model: nn.Module, images: Tensor) -> Inner | None:
    """Return the module inside `model` that gives its answers first; None where there is none, or it is all there is.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: some images (N, C, H, W); the more, the surer.
    """
    names = [name for name, _ in model.named_modules() if name]
    with _heard(model, names) as answers, torch.no_grad():
        logits = model(images)
    predicted = logits.argmax(dim=1)
    for name, parts in answers.items():  # in the order in which they spoke
        rows = sum(map(len, parts))
        widths = {part.shape[1] for part in parts}
        if not rows or rows % len(images) or len(widths) > 1 or not 1 < max(widths) <= logits.shape[1]:
            continue
        if len(parts) == 1 and torch.equal(parts[0], logits):
            continue
        for image_by_image in (False, True):
            output = _arranged(parts, len(images), image_by_image)
            if float((output.argmax(dim=1) == predicted).double().mean()) >= AGREES:
                return Inner(name, image_by_image)
    return None


@contextlib.contextmanager
def _heard(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs (n, K) of the modules of these names, call by call, in the order in which they first speak."""
    answers: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            parts = answers.setdefault(name, [])
            if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
                parts.append(output.clone())

        return hear

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield answers
    finally:
        for handle in handles:
            handle.remove()


def _arranged(parts: list[Tensor], n: int, image_by_image: bool) -> Tensor:
    """Return answers (n, K): the mean over views, whose rows lie view by view, or image by image."""
    output = torch.cat(parts)
    views = len(output) // n
    if views == 1:
        return output
    shape = (n, views) if image_by_image else (views, n)
    return output.view(*shape, -1).mean(dim=1 if image_by_image else 0)


def probing_images(like: Tensor) -> Tensor:
    """Return images in the shape of others (N, C, H, W), but for N, that hang on no sample: noise from fine to coarse."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(PROBED, *like.shape[1:], generator=generator)
    contrast = torch.linspace(0.2, 1.0, PROBED).view(-1, 1, 1, 1)
    grey = torch.rand(PROBED, 1, 1, 1, generator=generator)
    coarse = torch.nn.functional.interpolate(noise[..., ::4, ::4], size=like.shape[2:], mode="bilinear")
    mixed = torch.where(torch.arange(PROBED).view(-1, 1, 1, 1) % 2 == 0, noise, coarse)
    return (grey + contrast * (mixed - grey)).clamp(0, 1).to(like)
