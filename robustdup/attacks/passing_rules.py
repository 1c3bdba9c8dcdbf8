"""What operations without a useful gradient are replaced by in the backward pass, and with `smooth` in the forward one.

Each rule computes the operation as it is and says what has its slope; the mode (`passing`) decides whose values are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

SATURATED = 0.2  # of the gradient that passes where a clamp cuts off
ROUNDING = {"round": 0.0, "trunc": 0.0, "fix": 0.0, "floor": -0.5, "ceil": 0.5}  # and how far off each is on average
COMPARISONS = {"gt": 1, "ge": 1, "__gt__": 1, "__ge__": 1, "greater": 1, "greater_equal": 1,
               "lt": -1, "le": -1, "__lt__": -1, "__le__": -1, "less": -1, "less_equal": -1}  # fmt: skip


class Mode(Protocol):
    """What a rule needs of the mode: see `passing.Passing`."""

    passed: set[str]

    def through(self, hard: Tensor, soft: Tensor, name: str) -> Tensor:
        """Return the values of one with the gradient of the other."""

    def stands_for(self, hard: Tensor, soft: Tensor, name: str) -> Tensor:
        """Note what integers or booleans stand for."""


def flows(value: Any) -> bool:
    """Say whether a value is a tensor with a gradient."""
    return isinstance(value, Tensor) and value.requires_grad


def _rounded(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    plain = name.rstrip("_")
    decimals = kwargs.get("decimals", 0)
    result = mode.through(
        func(tensor.detach().clone(), *args[1:], **kwargs), tensor + ROUNDING[plain] * 10.0**-decimals, plain
    )
    return _in_place(name, tensor, result)


def _signed(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    return mode.through(func(tensor.detach().clone()), torch.tanh(tensor / _spread(tensor)), name)


def _compared(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    plain = name if name.endswith("__") else name.rstrip("_")
    result = func(*args, **kwargs)
    difference = COMPARISONS[plain] * (args[0] - args[1])
    return mode.stands_for(result, torch.sigmoid(difference / _spread(difference)), plain)


def _equal(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    difference = (args[0] - args[1]).abs()
    near = torch.exp(-difference / _spread(difference))
    return mode.stands_for(func(*args, **kwargs), near if name.strip("_") == "eq" else 1 - near, name)


def _clamped(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    result = func(tensor.clone(), *args[1:], **kwargs)
    if not bool((result.detach() != tensor.detach()).any()):
        return NotImplemented
    return _in_place(name, tensor, mode.through(result, result + SATURATED * (tensor - result), name))


def _best(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    result = func(*args, **kwargs)
    place, usual = (2, -1) if name == "topk" else (1, None)
    dim = kwargs.get("dim", args[place] if len(args) > place else usual)
    if not isinstance(dim, int):
        return result
    scores = args[0]
    spread = scores.detach().std(dim=dim, keepdim=True).clamp(min=1e-12)
    indices = result if isinstance(result, Tensor) else result[1]
    mode.stands_for(indices, torch.softmax(scores / spread, dim=dim), name)
    return result


def _bucket(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    values, edges = (args[0], args[1]) if name == "bucketize" else (args[1], args[0])
    result = func(*[a.detach() if isinstance(a, Tensor) else a for a in args], **kwargs)
    edges = edges.detach().flatten()
    width = (edges[-1] - edges[0]).clamp(min=1e-12) / max(len(edges) - 1, 1)
    return mode.stands_for(result, (values - edges[0]) / width, name)


def _kept(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    mode.passed.add(name.strip("_"))
    return args[0]


def _floor_divided(mode: Mode, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if name == "div" and kwargs.get("rounding_mode") is None:
        return NotImplemented
    hard = func(*[a.detach() if isinstance(a, Tensor) else a for a in args], **kwargs)
    return mode.through(hard, args[0] / args[1] - 0.5, "floor_divide")


def _spread(tensor: Tensor) -> Tensor:
    return tensor.detach().abs().mean().clamp(min=1e-12)


def _in_place(name: str, tensor: Tensor, result: Tensor) -> Tensor:
    if not name.endswith("_") or name.endswith("__"):
        return result
    if tensor.is_leaf:
        return result
    with torch.enable_grad():
        return tensor.copy_(result)


Rule = Callable[[Mode, str, Callable[..., Any], Any, Any], Any]
RULES: dict[str, Rule] = {
    name: rule
    for names, rule in (
        (tuple(ROUNDING), _rounded),
        (("sign", "sgn"), _signed),
        (tuple(COMPARISONS), _compared),
        (("eq", "__eq__", "ne", "__ne__"), _equal),
        (("clamp", "clip", "clamp_min", "clamp_max"), _clamped),
        (("argmax", "max", "topk"), _best),
        (("bucketize", "searchsorted"), _bucket),
        (("detach", "data"), _kept),
        (("floor_divide", "__floordiv__", "div"), _floor_divided),
    )
    for name in names
}
