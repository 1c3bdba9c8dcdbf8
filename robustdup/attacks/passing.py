"""The mode in which operations are given another backward pass: what is intercepted, and what integers stand for.

Integers, booleans and arrays have no gradient: what they were made from is remembered, and takes their place in the
backward pass when they become numbers again. `passing_rules` says what each operation is replaced by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from robustdup.attacks.detours import Detours
from robustdup.attacks.passing_rules import RULES, flows

NOT_ITS_INPUT = (
    "_like",
    "new_",
    "isnan",
    "isfinite",
    "size",
    "dim",
    "shape",
    "__get__",
    "requires_grad",
    "fill",
    "zero",
)
IGNORED = ("register_hook", "register_post_accumulate_grad_hook")
LEAVING = ("numpy", "__array__", "tolist", "item", "__float__")
CASTS = ("float", "double", "to", "type", "type_as", "half", "dequantize")


class Meanings:
    """What integers and booleans stand for: tensors by identity, kept alive while they are looked for."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __contains__(self, hard: object) -> bool:
        return id(hard) in self.kept

    def __getitem__(self, hard: Tensor) -> Tensor:
        return self.kept[id(hard)][1]

    def get(self, hard: Tensor) -> Tensor:
        """Return what a tensor stands for, itself if nothing else."""
        return self.kept[id(hard)][1] if id(hard) in self.kept else hard

    def __setitem__(self, hard: Tensor, soft: Tensor) -> None:
        self.kept[id(hard)] = hard, soft


class Passing(TorchFunctionMode):
    """Give operations another backward pass while the mode is on. `soft` holds what integers and booleans stand for."""

    def __init__(self, smooth: bool, passed: set[str]) -> None:
        super().__init__()
        self.smooth, self.passed = smooth, passed
        self.soft = Meanings()
        self.detours = Detours()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and "data" in str(resolve_name(func) or ""):
            name = "data"
        if name in IGNORED:
            return args[0] if args and isinstance(args[0], Tensor) else None
        if name == "_set_grad_enabled":
            self.passed.add("no_grad")
            return None
        if name in LEAVING:
            return self._leave(func, args, kwargs)
        rule = RULES.get(name.rstrip("_") if not name.endswith("__") else name)
        if rule is not None and any(flows(arg) for arg in args):
            done = rule(self, name, func, args, kwargs)
            if done is not NotImplemented:
                return done
        result = func(*args, **kwargs)
        return self._mend(name, func, args, kwargs, result)

    def through(self, hard: Tensor, soft: Tensor, name: str) -> Tensor:
        """Return the values of `hard` with the gradient of `soft`; with `smooth` the values of `soft` too."""
        self.passed.add(name.strip("_"))
        soft = soft.to(hard.dtype) if hard.is_floating_point() else soft
        if self.smooth:
            return soft
        return hard.detach() + (soft - soft.detach())

    def stands_for(self, hard: Tensor, soft: Tensor, name: str) -> Tensor:
        """Note what integers or booleans stand for, until they become numbers with a gradient again."""
        self.passed.add(name.strip("_"))
        self.soft[hard] = soft
        return hard

    def _leave(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let a tensor leave torch, for NumPy or a list, and remember it for when it comes back."""
        tensor = args[0]
        source = self.soft.get(tensor)
        if flows(source):
            self.detours.leave(source)
        return func(tensor.detach(), *args[1:], **kwargs)

    def _mend(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> Any:
        """Give a result back the gradient that was lost on the way, where there was one."""
        if not isinstance(result, Tensor) or result.requires_grad:
            return result
        if name in ("from_numpy", "tensor", "as_tensor", "frombuffer", "asarray"):
            source = self.detours.back(result)
            if source is None:
                return result
            return (
                self.through(result, source, "numpy") if _floating(result) else self.stands_for(result, source, "numpy")
            )
        softened = _replaced(args, self.soft)
        if softened is not None:
            return self._dual(name, func, args, softened, kwargs, result)
        source = next((arg for arg in args if flows(arg) and arg.shape == result.shape), None)
        if source is None or any(part in name for part in NOT_ITS_INPUT) or not _floating(result):
            if source is not None and result.dtype != torch.bool and not any(part in name for part in NOT_ITS_INPUT):
                return self.stands_for(result, source, name)  # a cast to integers
            return result
        return self.through(result, source, name)

    def _dual(
        self, name: str, func: Callable[..., Any], args: Any, softened: Any, kwargs: Any, result: Tensor
    ) -> Tensor:
        """Compute with what integers stand for what was computed with them."""
        if name in ("one_hot", "eq", "__eq__", "ne", "__ne__"):
            soft = softened[0]
            if soft.shape == result.shape:  # scores of the classes that the integers were the best of
                return self.stands_for(result, soft, name)
            return result
        try:
            if name == "where":
                share, first, other = softened[:3]
                soft = share * first + (1 - share) * other
            elif name in ("__getitem__", "embedding"):
                table, index = (args[1], args[0]) if name == "embedding" else (args[0], args[1])
                if table not in self.soft:
                    return self._lookup(table, index, self.soft[index], result)
                soft = func(*softened, **kwargs)
            elif name in ("floor_divide", "__floordiv__", "div"):
                soft = softened[0] / softened[1] - (0.0 if name == "div" and not kwargs.get("rounding_mode") else 0.5)
            elif name in CASTS:
                soft = softened[0]
            elif name in ("__invert__", "logical_not", "bitwise_not"):
                soft = 1 - softened[0]
            elif name in ("__and__", "logical_and", "bitwise_and"):
                soft = softened[0] * softened[1]
            elif name in ("scatter", "scatter_"):
                base, value = args[0], args[3] if len(args) > 3 else kwargs.get("value", kwargs.get("src", 1.0))
                soft = softened[2] if softened[2].shape == result.shape else base
                soft = soft * value if isinstance(value, (int, float)) else soft
            else:
                soft = func(
                    *softened, **{key: value for key, value in kwargs.items() if key not in ("dtype", "rounding_mode")}
                )
        except (RuntimeError, TypeError, IndexError, KeyError):
            return result
        if not isinstance(soft, Tensor) or soft.shape != result.shape:
            return self.stands_for(result, soft, name) if isinstance(soft, Tensor) and not _floating(result) else result
        return self.through(result, soft, name) if _floating(result) else self.stands_for(result, soft, name)

    def _lookup(self, table: Tensor, index: Tensor, place: Tensor, result: Tensor) -> Tensor:
        """Look a table up at computed places: between two entries it is a line."""
        if not _floating(table) or index.dtype == torch.bool:
            return result
        last = len(table) - 1
        slope = (table[(index + 1).clamp(max=last)] - table[(index - 1).clamp(min=0)]) / 2
        place = place.view(*place.shape, *[1] * (slope.dim() - place.dim()))
        return self.through(result, result.detach() + slope.detach() * (place - place.detach()), "lookup")


def _floating(value: Tensor) -> bool:
    return value.is_floating_point()


def _replaced(args: Any, soft: Meanings) -> Any:
    """Return the arguments with tensors replaced by what they stand for; None where none stands for anything."""
    replaced_any = False

    def look(value: Any) -> Any:
        nonlocal replaced_any
        if isinstance(value, Tensor) and value in soft:
            replaced_any = True
            return soft[value]
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            return type(value)(look(part) for part in value) if type(value) in (list, tuple) else value
        return value

    replaced = tuple(look(arg) for arg in args)
    return replaced if replaced_any else None
