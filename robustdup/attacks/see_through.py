"""A copy of a model whose gradient passes through what has no useful one: rounding, signs, one-hot answers, detours.

The wrapped model runs as it is written; while it does, each operation that would cut or falsify the gradient is given
another backward pass. What is rounded, cast to integers, taken through NumPy or PIL, detached or computed without
gradients passes the gradient straight through (BPDA, https://arxiv.org/abs/1802.00420); signs, comparisons and one-hot
answers get the slope of a smooth function; custom backward functions and hooks are passed over, and their forward pass is
differentiated instead. What is computed forward keeps its values to the bit; with `smooth` the smooth functions are
computed forward as well, so that losses have a slope too where the answers are flat, and what a module is given in place of
the images, where it is nearly them, is the images themselves: whatever was done to them before is passed over.

Operations are found as they run, by a `TorchFunctionMode`: nothing has to be traced, and control flow in Python is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.inner import Inner, answers_inside, find_inner, probing_images
from robustdup.attacks.passing import Passing
from robustdup.attacks.passing_rules import flows

NEARLY = 0.15  # of the range of pixels, on average: as far as what is nearly the images may be from them


class SeeThrough(nn.Module):
    """Run a model so that gradients pass: images (N, C, H, W) -> logits (N, K). See the module's text for `smooth`.

    With a module inside (`inner`), what it says is returned in place of what the model does.
    """

    def __init__(self, model: nn.Module, *, smooth: bool = False, inner: Inner | None = None) -> None:
        super().__init__()
        self.model, self.smooth, self.inner = model, smooth, inner
        self.training = model.training  # mirror, without touching the model
        self.passed: set[str] = set()  # names of the operations that were given another backward pass

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, through which gradients flow."""
        if not torch.is_grad_enabled():
            if not self.smooth and self.inner is None:
                return self.model(images)  # type: ignore[no-any-return]
            with torch.enable_grad():
                return self.forward(images.detach().requires_grad_()).detach()
        with Passing(self.smooth, self.passed) as passing, _own_functions(passing), _modules(passing, images):
            logits = self.model(images) if self.inner is None else answers_inside(self.model, self.inner, images)
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
def _modules(passing: Passing, images: Tensor) -> Iterator[None]:
    """Pass the gradient straight by modules that keep the shape of their input and lose its gradient, and into others.

    A module that is given a tensor in the shape of the images which has lost their gradient gets it back. With `smooth` it is
    given the images themselves, in the rows where what it would get is nearly them.
    """

    def enter(module: nn.Module, inputs: Any) -> Any:
        given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        if given is None or given is images or given.shape != images.shape or not given.is_floating_point():
            return None
        lost = not given.requires_grad and images.requires_grad
        if not lost and not passing.smooth:
            return None
        entered = given.detach() + (images - images.detach()).to(given.dtype) if lost else given
        if passing.smooth:
            near = (given.detach() - images.detach()).abs().flatten(1).mean(dim=1) < NEARLY
            rows = near.view(-1, *[1] * (images.dim() - 1))
            own = images.to(given.dtype)
            entered = own if bool(near.all()) else torch.where(rows, own, entered)  # no gradient of what it replaces
        passing.passed.add("what is before a module")
        return (entered, *inputs[1:])

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        source = inputs[0] if inputs else None
        cut = isinstance(output, Tensor) and not output.requires_grad and output.is_floating_point()
        if cut and isinstance(source, Tensor) and source.requires_grad and source.shape == output.shape:
            return passing.through(output, source, type(module).__name__)
        return None

    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def smooth_copy(model: nn.Module, like: Tensor) -> SeeThrough:
    """Return the smooth copy of a model, of the network inside it where there is one; `like` has the shape of its images."""
    return SeeThrough(model, smooth=True, inner=find_inner(model, probing_images(like)))
