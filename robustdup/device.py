"""Where tensors are computed: on which device, with how many CPU threads, and whether its memory ran out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.errors import UserError, unknown

SMALL = 1e9  # a model call of fewer multiply-adds (some 20 ms) is computed by one thread


def choose_device(text: str) -> torch.device:
    """Return the device that `text` names.

    Args:
        text: `cpu`, `cuda`, `cuda:1`, or `auto`, which takes a GPU where there is one.

    Raises:
        UserError: for another word, and for a device that is not there.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise unknown("device", text, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device {text!r} is not there: {torch.cuda.device_count()} CUDA devices are. Use --device auto.",
            code="no-device",
        )
    if device.type not in ("cpu", "cuda"):
        why = (
            " Apple's GPUs have no float64, in which balls are measured and the referee decides."
            if text == "mps"
            else ""
        )
        raise UserError(
            f"Device {text!r} is not one that robustdup computes on: cpu and cuda are.{why} Use --device auto.",
            code="no-device",
        )
    return device


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on any device; CUDA's cache is emptied then.

    A CPU's allocator raises a RuntimeError, so that only its words tell.
    """
    words = str(error).lower()
    ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )
    if ran_out and torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the failed call took is free again
    return ran_out


def count_operations(model: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of the convolutions and linear layers of `model` for one image (C, H, W)."""
    counts: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        counts.append(output.numel() // (2 * weight.shape[0]) * weight.numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with isolated(model), torch.no_grad():
            model(image[None].repeat(2, 1, 1, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


@contextlib.contextmanager
def cpu_threads(
    threads: int | None, model: nn.Module, image: Tensor, *, rows: int, device: torch.device
) -> Iterator[None]:
    """Compute with as many CPU threads as are asked for, or as suit the model, and restore the number afterwards.

    A small model waits for its threads longer than it computes. The choice counts operations and does not time them,
    so that the same run computes the same way wherever it is continued.

    Args:
        threads: how many to take; None lets the size of a call decide.
        model: images (N, C, H, W) -> logits (N, K).
        image: one image (C, H, W) of those to come.
        rows: images in one model call.
        device: where the model is.
    """
    before = torch.get_num_threads()
    count = threads or before
    if threads is None and device.type == "cpu":
        # A model that cannot take the image is reported when it is judged.
        with contextlib.suppress(Exception, SystemExit):
            if 0 < count_operations(model, image) * rows < SMALL:
                count = 1
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
