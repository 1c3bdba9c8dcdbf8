"""Certified training: the cross-entropy of the worst logits that interval bounds leave possible within the ball.

A network that was trained so has bounds that meet what attacks find. Interval bound propagation is of
https://arxiv.org/abs/1810.12715.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

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
MONOTONE_CALLS = {"relu", "leaky_relu", "flatten", "mean", "view", "reshape", "avg_pool2d", "max_pool2d", "contiguous"}
SUMS = {"add": operator.add, "iadd": operator.add, "add_": operator.add}
SCALES = {"sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "div": operator.truediv}
_traced: WeakKeyDictionary[nn.Module, fx.GraphModule] = WeakKeyDictionary()


@dataclass(frozen=True)
class Box:
    """A value on the clean images, and the least and largest that it may have within the ball: (N, ...) each."""

    clean: Tensor
    low: Tensor
    high: Tensor

    def map(self, function: Any) -> Box:
        """Return the box of a function that does not fall."""
        return Box(function(self.clean), function(self.low), function(self.high))


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


def check_kappa(*, kappa: float, **_: Any) -> None:
    """Raise UserError for a weight of the clean term outside [0, 1]."""
    if not 0 <= kappa <= 1:
        raise UserError(f"ibp's kappa, the weight of its clean term, lies in [0, 1]; got {kappa:g}.", code="bad-value")


def interval_logits(model: nn.Module, images: Tensor, radius: float) -> Box:
    """Return logits (N, K) with their interval bounds over the Linf ball inside [0, 1], with gradients to the weights.

    BatchNorm takes its statistics from the clean images, and updates its running ones by them.

    Raises:
        UserError: not-boundable, with the layer that has no interval bounds.
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
    found = _Intervals(graph).run(box)
    assert isinstance(found, Box)
    return found


class _Intervals(fx.Interpreter):  # type: ignore[misc]
    """Runs a traced network on boxes; what has no box in its arguments runs as it is."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not args or not isinstance(args[0], Box):
            return super().call_module(target, args, kwargs)
        if isinstance(module, nn.Linear | nn.Conv2d):
            return _affine(module, args[0])
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            return _batch_norm(module, args[0])
        if isinstance(module, MONOTONE) or (isinstance(module, nn.Dropout) and module.p == 0):
            return args[0].map(module)
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
        if name == "getattr" and args[1] in ("shape", "dtype", "device", "ndim"):
            return getattr(boxes[0].clean, args[1])
        if name in MONOTONE_CALLS:
            return boxes[0].map(lambda value: function(value, *args[1:], **kwargs))
        if name in SUMS and len(boxes) == 2:
            return Box(*(getattr(args[0], end) + getattr(args[1], end) for end in ("clean", "low", "high")))
        if name in SUMS:
            other = args[1] if isinstance(args[0], Box) else args[0]
            return boxes[0].map(lambda value: value + other)
        if name in SCALES and isinstance(args[0], Box) and len(boxes) == 1:
            ends = args[0].map(lambda value: SCALES[name](value, args[1]))
            return Box(ends.clean, torch.minimum(ends.low, ends.high), torch.maximum(ends.low, ends.high))
        raise _not_boundable(name)


def _affine(module: nn.Linear | nn.Conv2d, box: Box) -> Box:
    centre, spread = (box.low + box.high) / 2, (box.high - box.low) / 2
    if isinstance(module, nn.Linear):
        reach = F.linear(spread, module.weight.abs())
    elif module.padding_mode == "zeros":
        reach = F.conv2d(
            spread, module.weight.abs(), None, module.stride, module.padding, module.dilation, module.groups
        )
    else:
        raise _not_boundable(f"Conv2d with padding_mode {module.padding_mode!r}")
    middle = module(centre)
    return Box(module(box.clean), middle - reach, middle + reach)


def _batch_norm(module: nn.BatchNorm2d | nn.BatchNorm1d, box: Box) -> Box:
    """Normalise by the statistics of the clean images: one affine map for all three."""
    dims = [0, *range(2, box.clean.ndim)]
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        mean, variance = box.clean.mean(dims), box.clean.var(dims, unbiased=False)
    scale = (variance + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight)
    shape = [1, -1] + [1] * (box.clean.ndim - 2)
    shift = (0.0 if module.bias is None else module.bias) - mean * scale

    def apply(value: Tensor) -> Tensor:
        return value * scale.view(shape) + shift.view(shape)

    low, high = apply(box.low), apply(box.high)
    return Box(module(box.clean), torch.minimum(low, high), torch.maximum(low, high))


def _not_boundable(what: str) -> UserError:
    return UserError(f"ibp has no interval bounds for this network: {what}.", code="not-boundable")
