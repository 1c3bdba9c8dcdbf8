"""The module that is attacked: a model in a memory layout, in a precision of its own, and maybe compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.models.attack_copy.compile import compiled_call
from robustdup.precision import Fp32Switches, fp32_switches, is_tf32, put_back, set_tf32

TF32 = {"fp32": False, "tf32": True}  # whether a precision allows it; bf16 leaves the switches as they are


class AttackCopy(nn.Module):
    """A model with its layout, precision and compiled code: images (N, C, H, W) in any layout -> logits (N, K).

    Gradients by the images come back contiguous and in the images' dtype. Precision is set for the model's own forward
    and backward pass alone, whatever the global flags say.
    """

    def __init__(
        self, net: nn.Module, *, channels_last: bool = False, precision: str = "fp32", compiled: str = "off",
        shape: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.net = net
        self.training = net.training
        self.channels_last, self.precision, self.compiled, self.shape = channels_last, precision, compiled, shape
        self._fast: Callable[[Tensor], Any] | None = None
        if compiled != "off":
            self._fast = compiled_call(net, compiled)

    def changed(self, **changes: Any) -> AttackCopy:
        """Return another copy with some of (net, channels_last, precision, compiled, shape) replaced."""
        now = {name: getattr(self, name) for name in ("net", "channels_last", "precision", "compiled", "shape")}
        return AttackCopy(**(now | changes))

    def forward(self, images: Tensor) -> Any:
        """Return the logits of `images`; gradients flow as through the model itself."""
        switch = _Switch(self.precision, images)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        around = torch.is_grad_enabled() and images.requires_grad and (switch.needed or self.channels_last)
        images = _Enter.apply(images, layout, switch) if around else images.contiguous(memory_format=layout)  # type: ignore[no-untyped-call]
        low = self.precision == "bf16"
        with switch, torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            logits = self._logits(images)
        if low and isinstance(logits, Tensor):
            logits = logits.float()
        if around and isinstance(logits, Tensor) and logits.requires_grad:
            logits = _Leave.apply(logits, switch)  # type: ignore[no-untyped-call]
        return logits

    def _logits(self, images: Tensor) -> Any:
        if self._fast is None or tuple(images.shape) != self.shape:
            return self.net(images)
        if self.compiled == "cudagraphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return self._fast(images).clone()  # the graph's own memory is written again by the next call
        return self._fast(images)


class _Switch:
    """The global float32 switches that a precision needs, set and put back; nothing where they are right already."""

    def __init__(self, precision: str, images: Tensor) -> None:
        self.wanted, self.cuda = TF32.get(precision), images.is_cuda
        self.needed = self.wanted is not None and not is_tf32(self.wanted, cuda=self.cuda)
        self.before: Fp32Switches | None = None

    def __enter__(self) -> None:
        if self.needed and self.before is None:
            self.before = fp32_switches()
            set_tf32(bool(self.wanted), cuda=self.cuda)

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            put_back(self.before)
            self.before = None


class _Enter(torch.autograd.Function):
    """The images on their way in: forward lays them out, backward (the model's last step) puts the flags back."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, layout: torch.memory_format, switch: _Switch) -> Tensor:
        ctx.switch = switch
        return images.clone(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.switch.__exit__()
        return grads[0].contiguous(), None, None


class _Leave(torch.autograd.Function):
    """The logits on their way out: backward (the model's first step) sets the flags for the steps that follow."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, switch: _Switch) -> Tensor:
        ctx.switch = switch
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.switch.__enter__()
        return grads[0], None


def fits_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Tell whether a model has convolutions, and none whose backward pass in that layout brings the process down.

    On a CPU oneDNN was seen to corrupt memory in the backward pass of a 1x1 convolution with stride and 4 input channels.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    risky = [c for c in layers if c.in_channels // c.groups < 8 and c.kernel_size == (1, 1) and c.stride != (1, 1)]
    return bool(layers) and not (device.type == "cpu" and risky)
