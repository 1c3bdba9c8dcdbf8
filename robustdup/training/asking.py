"""Asking an objective for its losses: what somebody wrote may raise, or answer with something else."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.device import out_of_memory
from robustdup.errors import RobustdupError, UserError, error_text, plain
from robustdup.plugins.options import resolved
from robustdup.training.updates import LossAndMetrics

CONTRACT = (
    "It is called as objective(model, images, labels, *, attack, rng), the inner attack as attack(images, labels), and it "
    "returns (loss, metrics): a loss for each sample (reduction='none'), and a dict of tensors."
)
# What says that a device or the connection to others failed, and not the program.
DEVICE_ERRORS = (torch.AcceleratorError, getattr(torch.distributed, "DistError", torch.AcceleratorError))
DEVICE_WORDS = (
    "cuda error", "hip error", "device-side", "cudnn error", "cudnn_status", "cublas error", "cublas_status",
    "cusolver error", "cusparse error", "cufft error", "nccl", "watchdog", "uncorrectable", "cuda driver",
)  # fmt: skip
# What a mistake in the code of an objective raises.
_MISTAKES = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    NameError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
)


def ask_objective(
    objective: Callable[..., Any], model: nn.Module, images: Tensor, labels: Tensor, *, attack: Any, rng: Any
) -> LossAndMetrics:
    """Return the loss of each sample (N,) and the metrics that an objective gives for images (N, C, H, W).

    Raises:
        UserError: the objective raised an error, whose place in its file is named; or its loss is not one value a sample.
    """
    try:
        answer = objective(model, images, labels, attack=attack, rng=rng)
    except RobustdupError:
        raise
    except _MISTAKES as failure:
        place = _place(objective, failure)
        # One of robustdup's own objectives, or nobody's mistake.
        if place is None or out_of_memory(failure) or device_failed(failure):
            raise
        raise UserError(
            f"The objective {_name(objective)!r} failed: {error_text(failure)} ({place}). {CONTRACT}",
            code="bad-objective",
        ) from failure
    came = _misfit(answer, len(images))
    if came:
        raise UserError(f"The objective {_name(objective)!r} returned {came}. {CONTRACT}", code="bad-objective")
    return answer  # type: ignore[no-any-return]


def _misfit(answer: Any, count: int) -> str:
    """Return what came in place of (loss (N,), metrics); empty where it fits."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        return f"a {type(answer).__name__} in place of a pair"
    loss, metrics = answer
    if not isinstance(loss, Tensor):
        return f"a {type(loss).__name__} as its loss"
    if loss.shape != (count,):
        return f"a loss of shape {tuple(loss.shape)} for {count} samples"
    if not isinstance(metrics, dict):
        return f"a {type(metrics).__name__} as its metrics"
    odd = next((name for name, value in metrics.items() if not isinstance(value, Tensor)), None)
    return "" if odd is None else f"the metric {odd!r} as a {type(metrics[odd]).__name__}, not a tensor"


def device_failed(failure: BaseException) -> bool:
    """Tell whether the device failed, or the connection to others: the loop says so, and keeps the last checkpoint."""
    words = str(failure).lower() if isinstance(failure, RuntimeError) else ""
    return isinstance(failure, DEVICE_ERRORS) or any(word in words for word in DEVICE_WORDS)


def _plain_function(objective: Callable[..., Any]) -> Any:
    """Return the function below the options that are bound to it."""
    while isinstance(objective, functools.partial):
        objective = objective.func
    return resolved(objective)


def _name(objective: Callable[..., Any]) -> str:
    function = _plain_function(objective)
    return plain(getattr(function, "__name__", type(function).__name__), 100)


def _place(objective: Callable[..., Any], failure: BaseException) -> str | None:
    """Return file and line of the last step in the objective's own file, or None for an objective of robustdup's."""
    function = _plain_function(objective)
    if str(getattr(function, "__module__", "")).split(".")[0] == "robustdup":
        return None
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(failure.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    return f"{plain(Path(frame.filename).name)}:{frame.lineno}"
