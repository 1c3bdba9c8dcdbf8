"""A copy of a model whose gradient passes through what has no useful one: rounding, signs, one-hot answers, detours.

The wrapped model runs as it is written; while it does, each operation that would cut or falsify the gradient is given
another backward pass. What is rounded, cast to integers, taken through NumPy or PIL, detached or computed without
gradients passes the gradient straight through (BPDA, https://arxiv.org/abs/1802.00420); signs, comparisons and one-hot
answers get the slope of a smooth function; custom backward functions and hooks are passed over, and their forward pass is
differentiated instead. What is computed forward keeps its values to the bit; with `smooth` the smooth functions are
computed forward as well, so that losses have a slope too where the answers are flat.

Operations are found as they run, by a `TorchFunctionMode`: nothing has to be traced, and control flow in Python is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.passing import Passing
from robustdup.attacks.passing_rules import flows


class SeeThrough(nn.Module):
    """Run a model so that gradients pass: images (N, C, H, W) -> logits (N, K). See the module's text for `smooth`."""

    def __init__(self, model: nn.Module, *, smooth: bool = False) -> None:
        super().__init__()
        self.model, self.smooth = model, smooth
        self.training = model.training  # mirror, without touching the model
        self.passed: set[str] = set()  # names of the operations that were given another backward pass

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, through which gradients flow."""
        if not torch.is_grad_enabled():
            if not self.smooth:
                return self.model(images)  # type: ignore[no-any-return]
            with torch.enable_grad():
                return self.forward(images.detach().requires_grad_()).detach()
        with Passing(self.smooth, self.passed) as passing, _own_functions(passing), _modules(passing):
            logits: Tensor = self.model(images)
        nothing = 0 * images.flatten(1).sum(dim=1, keepdim=True)  # where no gradient passes it is zero, and no error
        return logits + nothing.to(logits.dtype)


@contextmanager
def _own_functions(passing: Passing) -> Iterator[None]:
    """Differentiate the forward pass of custom functions instead of running their backward pass."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        passing.passed.add(f"{cls.__name__}.backward")
        plain = cls.setup_context is not torch.autograd.function._SingleLevelFunction.setup_context
        result = cls.forward(*args, **kwargs) if plain else cls.forward(_Context(), *args, **kwargs)
        source = next((arg for arg in args if flows(arg)), None)
        if (
            isinstance(result, Tensor)
            and source is not None
            and not result.requires_grad
            and result.shape == source.shape
        ):
            return passing.through(result, source, cls.__name__)
        return result

    def from_numpy(array: Any) -> Tensor:
        result = torch.as_tensor(array)
        return result

    changed = [
        (torch.autograd.Function, "apply", classmethod(apply)), (torch, "from_numpy", from_numpy),
        (torch.inference_mode, "__enter__", lambda self: None), (torch.inference_mode, "__exit__", lambda self, *_: None),
    ]  # fmt: skip
    kept = [(place, name, vars(place)[name]) for place, name, _ in changed]
    try:
        for place, name, other in changed:
            setattr(place, name, other)
        yield
    finally:
        for place, name, own in kept:
            setattr(place, name, own)


class _Context:
    """What a custom forward pass writes its notes on; nothing reads them."""

    needs_input_grad = (True,) * 64

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Forget them."""

    save_for_forward = mark_dirty = mark_non_differentiable = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:
        """Forget it."""


@contextmanager
def _modules(passing: Passing) -> Iterator[None]:
    """Pass the gradient straight through modules that keep the shape of their input and lose its gradient."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        source = inputs[0] if inputs else None
        cut = isinstance(output, Tensor) and not output.requires_grad and output.is_floating_point()
        if cut and isinstance(source, Tensor) and source.requires_grad and source.shape == output.shape:
            return passing.through(output, source, type(module).__name__)
        return None

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
