"""A GPU that is not there: tensors that say they lie on one, computed on the CPU with real values.

`Elsewhere` wraps a tensor of the CPU and says that it lies on "meta", a device without memory that every torch has, and
that it is CUDA's. Under the mode `PretendedGpu` every operation is computed on what is wrapped. So code that mixes the two
sides fails as it would with a GPU, what makes the host wait for one is counted, and results are those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Operations whose result the host must know: its size or its value.
WAITS = {
    "_local_scalar_dense", "nonzero", "equal", "bincount", "_unique2", "unique_consecutive", "masked_select", "repeat_interleave",
    "is_nonzero", "histc",
}  # fmt: skip
BOTH_SIDES = ("_to_copy", "copy_", "index", "index_put_")  # operations that take tensors of both sides, as CUDA's do
NAME = torch.device("meta")


class Elsewhere(Tensor):
    """A tensor on the pretended GPU; `held` is the one of the CPU behind it."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=NAME
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise RuntimeError("A tensor of the pretended GPU was used outside of it.")

    def tolist(self) -> Any:
        """Return the values, as any tensor does."""
        return self.cpu().tolist()


class PretendedGpu(TorchDispatchMode):
    """Computes on tensors that are elsewhere; `waits` counts by operation what made the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        theirs = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
        asked = kwargs.pop("device", None)
        onto = _lands_elsewhere(name, args, asked, bool(theirs))
        if (theirs or onto) and (name in WAITS or _by_mask(name, args) or _moves(name, args, kwargs, onto)):
            self.waits[name] += 1
        if theirs and name not in BOTH_SIDES and any(t.ndim and not isinstance(t, Elsewhere) for t in tensors):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
        out = func(*args, **kwargs)
        if name == "_to_copy" and out is args[0]:
            out = out.clone()

        def wrapped(leaf: Any) -> Any:
            if id(leaf) in theirs:
                return theirs[id(leaf)]  # what was changed in place
            return Elsewhere(leaf) if onto and isinstance(leaf, Tensor) else leaf

        return tree_map(wrapped, out)


def _lands_elsewhere(name: str, args: Any, asked: Any, theirs: bool) -> bool:
    """Tell whether the result lies on the pretended GPU."""
    if asked is not None:
        return torch.device(asked).type == NAME.type
    return isinstance(args[0], Elsewhere) if name == "copy_" else theirs


def _by_mask(name: str, args: Any) -> bool:
    """Tell whether rows are picked by a mask: how many there are is known when the mask is."""
    if "index" not in name:
        return False
    return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2]))


def _moves(name: str, args: Any, kwargs: Any, onto: bool) -> bool:
    """Tell whether a copy goes from one side to the other and is waited for."""
    if name not in ("_to_copy", "copy_") or kwargs.get("non_blocking"):
        return False
    if name == "copy_":
        return not (len(args) > 2 and args[2]) and isinstance(args[1], Elsewhere) != onto
    return isinstance(args[0], Elsewhere) != onto
