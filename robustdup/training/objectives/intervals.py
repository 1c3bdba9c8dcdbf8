"""Certified training: the cross-entropy of the worst logits that interval bounds leave possible within the ball.

A network that was trained so has bounds that meet what attacks find. Interval bound propagation is of
https://arxiv.org/abs/1810.12715.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustdup.certification.crown import Bounds
from robustdup.certification.graph import Operation, pool_windows, transposed_conv2d
from robustdup.errors import UserError
from robustdup.models.attack_copy.compile import TrainedModel
from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.adversarial import correct, cross_entropy
from robustdup.training.updates import LossAndMetrics

MONOTONE = (
    nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity, nn.Sigmoid, nn.Tanh,
    nn.ReLU6, nn.Softplus,
)  # fmt: skip
CURVED = (nn.Sigmoid, nn.Tanh, nn.ReLU6, nn.Softplus, nn.MaxPool2d)  # which CROWN has no lines for here
MONOTONE_CALLS = {
    "relu", "relu_", "leaky_relu", "flatten", "mean", "view", "reshape", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d",
    "contiguous", "clone",
}  # fmt: skip
MODULES: dict[str, Any] = {"relu": nn.ReLU, "relu_": nn.ReLU, "leaky_relu": nn.LeakyReLU, "max_pool2d": nn.MaxPool2d}
SUMS = {"add": operator.add, "iadd": operator.add, "add_": operator.add}
SCALES = {"sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "div": operator.truediv}
_traced: WeakKeyDictionary[nn.Module, fx.GraphModule] = WeakKeyDictionary()


@dataclass(frozen=True)
class Box:
    """A value on the clean images, and the least and largest that it may have within the ball: (N, ...) each.

    `number` is that of the operation which gave it, where operations are kept.
    """

    clean: Tensor
    low: Tensor
    high: Tensor
    number: int = 0

    def map(self, function: Any) -> Box:
        """Return the box of a function that does not fall."""
        return Box(function(self.clean), function(self.low), function(self.high))


@dataclass
class Tape:
    """The operations that boxes went through, as `crown.pull_back` reads them, and their bounds; weights stay alive."""

    operations: list[Operation] = field(default_factory=list)
    bounds: Bounds = field(default_factory=lambda: Bounds([], []))

    def keep(self, box: Box, kind: Any, *before: Box, **about: Any) -> Box:
        """Append the operation that led to a box, and return the box with its number."""
        numbers = tuple(part.number for part in before)
        self.operations.append(Operation(kind, numbers, tuple(box.clean.shape[1:]), **about))
        self.bounds.low.append(box.low)
        self.bounds.high.append(box.high)
        return replace(box, number=len(self.operations) - 1)


def ibp(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, kappa: float = 0.5
) -> LossAndMetrics:
    """Return k CE(clean) + (1 - k) CE(worst logits by interval bounds), for certified training in Linf.

    The worst logits are the least one of the true class and the largest ones of all others. k falls from 1 to `kappa` as the
    radius grows to that of the run, which `eps_schedule` makes it do: 0:0,0.1:0,0.6:0.1 for instance. No inner attack is
    made. "correct" counts images on which the bounds prove the answer, "correct_clean" the clean ones.
    https://arxiv.org/abs/1810.12715
    """
    if attack.threat.norm != "Linf":
        raise UserError(f"ibp trains in Linf, not in {attack.threat.norm}: write --norm Linf.", code="bad-norm")
    radius, whole = float(attack.threat.radius), float(attack.inner.threat.radius)
    box = interval_logits(model, images, radius)
    own = F.one_hot(labels, box.clean.shape[1]).bool()
    worst = torch.where(own, box.low, box.high)
    share = 1 - (1 - kappa) * min(radius / whole, 1.0)
    loss = share * cross_entropy(box.clean, labels, attack.label_smoothing) + (1 - share) * cross_entropy(worst, labels)
    return loss, {"correct": correct(worst, labels), "correct_clean": correct(box.clean, labels)}


def check_weights(*, kappa: float, beta: float = 0.0, **_: object) -> None:
    """Raise UserError where a weight of `ibp` or `crown_ibp` lies outside [0, 1]."""
    for name, value, role in (("kappa", kappa, "its clean term"), ("beta", beta, "linear bounds")):
        if not 0 <= value <= 1:
            raise UserError(f"{name}, the weight of {role}, lies in [0, 1]; got {value:g}.", code="bad-value")


def interval_logits(model: nn.Module, images: Tensor, radius: float, tape: Tape | None = None) -> Box:
    """Return logits (N, K) with their interval bounds over the Linf ball inside [0, 1], with gradients to the weights.

    BatchNorm takes its statistics from the clean images, and updates its running ones by them. Where there is a `tape`,
    it is given each operation.

    Raises:
        UserError: not-boundable, with the layer that has no interval bounds, or none by CROWN where there is a tape.
    """
    inner = model
    if isinstance(model, TrainedModel):  # which counts rows: of the clean images, and of middles and reaches
        inner = model.net
        model.forward_rows += 3 * len(images)
        model.backward_rows += 3 * len(images) if torch.is_grad_enabled() else 0
    graph = _traced.get(inner)
    if graph is None:
        try:
            graph = fx.symbolic_trace(inner)
        except Exception as error:  # a model may do anything  # noqa: BLE001
            raise _not_boundable(f"it cannot be traced ({type(error).__name__})") from None
        _traced[inner] = graph
    graph.train(inner.training)
    box = Box(images, (images - radius).clamp(min=0), (images + radius).clamp(max=1))
    logits = _Intervals(graph, tape).run(box if tape is None else tape.keep(box, "image"))
    assert isinstance(logits, Box)
    return logits


class _Intervals(fx.Interpreter):  # type: ignore[misc]
    """Runs a traced network on boxes; what has no box in its arguments runs as it is."""

    def __init__(self, graph: fx.GraphModule, tape: Tape | None) -> None:
        super().__init__(graph)
        self.tape = tape
        self.extra_traceback = False  # what is raised here says which layer

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not args or not isinstance(args[0], Box):
            return super().call_module(target, args, kwargs)
        box: Box = args[0]
        if isinstance(module, nn.Linear | nn.Conv2d):
            reach, about = _affine(module, tuple(box.clean.shape[1:]))
            centre, spread = module((box.low + box.high) / 2), reach((box.high - box.low) / 2)
            return self._kept(Box(module(box.clean), centre - spread, centre + spread), "affine", box, **about)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            scale, shift = _batch_norm(module, box.clean)
            low, high = box.low * scale + shift, box.high * scale + shift
            output = Box(module(box.clean), torch.minimum(low, high), torch.maximum(low, high))
            return self._kept(output, "affine", box, linear=lambda x: x * scale, bias=shift)
        if isinstance(module, MONOTONE) or (isinstance(module, nn.Dropout) and module.p == 0):
            return self._monotone(box.map(module), box, module, f"{type(module).__name__} (at {target})")
        raise _not_boundable(f"{type(module).__name__} (at {target})")

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(getattr(target, "__name__", str(target)), target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(args[0], Box) and str(target) in ("size", "dim"):
            return getattr(args[0].clean, str(target))(*args[1:], **kwargs)
        return self._call(str(target), lambda x, *rest, **keys: getattr(x, str(target))(*rest, **keys), args, kwargs)

    def _call(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        boxes = [part for part in args if isinstance(part, Box)]
        if not boxes:
            return function(*args, **kwargs)
        box = boxes[0]
        if name == "getattr" and args[1] in ("shape", "dtype", "device", "ndim"):
            return getattr(box.clean, args[1])
        if name in MONOTONE_CALLS:

            def call(value: Tensor) -> Any:
                return function(value, *args[1:], **kwargs)

            module = MODULES[name](*args[1:], **kwargs) if name in MODULES and self.tape is not None else call
            return self._monotone(box.map(call), box, module, name)
        if name in SUMS and len(boxes) == 2:
            added = (getattr(boxes[0], end) + getattr(boxes[1], end) for end in ("clean", "low", "high"))
            return self._kept(Box(*added), "sum", *boxes)
        if name in SUMS:
            other = args[1] if isinstance(args[0], Box) else args[0]
            return self._kept(box.map(lambda value: value + other), "affine", box, linear=lambda x: x, bias=other)
        if name in SCALES and isinstance(args[0], Box) and len(boxes) == 1:
            ends = box.map(lambda value: SCALES[name](value, args[1]))
            output = Box(ends.clean, torch.minimum(ends.low, ends.high), torch.maximum(ends.low, ends.high))
            if name == "sub":
                return self._kept(output, "affine", box, linear=lambda x: x, bias=-args[1])
            return self._kept(output, "affine", box, linear=lambda x: SCALES[name](x, args[1]))
        raise _not_boundable(name)

    def _kept(self, output: Box, kind: str, *before: Box, **about: Any) -> Box:
        return output if self.tape is None else self.tape.keep(output, kind, *before, **about)

    def _monotone(self, output: Box, before: Box, module: Any, name: str) -> Box:
        """Keep what a function that does not fall gave: a rectifier, a maximum, or an affine map without a bias."""
        if self.tape is None:
            return output
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            return self.tape.keep(output, "rectifier", before, slope=float(getattr(module, "negative_slope", 0.0)))
        if isinstance(module, nn.MaxPool2d) and not module.ceil_mode:
            windows = pool_windows(module, tuple(before.clean.shape[1:]))
            return self.tape.keep(output, "maximum", before, windows=windows)
        if isinstance(module, CURVED) or name in MODULES:
            raise _not_boundable(f"{name}, which is neither affine nor piecewise linear")
        return self.tape.keep(output, "affine", before, linear=module)


def _affine(module: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Return a layer's reach |W| x for inputs (N, *shape), and what an operation holds of it."""
    if isinstance(module, nn.Linear):
        return lambda x: F.linear(x, module.weight.abs()), {
            "linear": lambda x: F.linear(x, module.weight),
            "transposed": lambda y: y @ module.weight,
            "bias": 0.0 if module.bias is None else module.bias,
        }
    if module.padding_mode != "zeros":
        raise _not_boundable(f"Conv2d with padding_mode {module.padding_mode!r}")
    options: Any = (module.stride, module.padding, module.dilation, module.groups)
    return lambda x: F.conv2d(x, module.weight.abs(), None, *options), {
        "linear": lambda x: F.conv2d(x, module.weight, None, *options),
        "transposed": transposed_conv2d(module, module.weight, shape),
        "bias": 0.0 if module.bias is None else module.bias.view(-1, 1, 1),
    }


def _batch_norm(module: nn.BatchNorm2d | nn.BatchNorm1d, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift (1, C, ...) by the statistics of the clean images: one affine map for all three."""
    dims = [0, *range(2, clean.ndim)]
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        mean, variance = clean.mean(dims), clean.var(dims, unbiased=False)
    scale = (variance + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight)
    shape = [1, -1] + [1] * (clean.ndim - 2)
    shift = (0.0 if module.bias is None else module.bias) - mean * scale
    return scale.view(shape), shift.view(shape)


def _not_boundable(layer: str) -> UserError:
    return UserError(f"This objective has no bounds for the network: {layer}.", code="not-boundable")
