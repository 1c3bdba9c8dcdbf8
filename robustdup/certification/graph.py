"""A network as a list of operations that can be bounded: affine maps, rectifiers, maxima and sums."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustdup.errors import UserError

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """One step of a network; `inputs` are the numbers of the values that it reads (0 is the image).

    An affine one has `linear` x -> Wx, `absolute` x -> |W|x, `bias` b, and `shift`, a bound of |b| before anything in it
    cancels; some have `transposed` y -> W'y, and `is_scaling` is set where each output reads one input. A rectifier is
    max(x, slope * x). A maximum is taken over `windows` (outputs, window): numbers of inputs, -1 where a window hangs over
    the edge.
    """

    kind: Literal["image", "affine", "rectifier", "maximum", "sum"]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    name: str = ""
    linear: Map | None = None
    absolute: Map | None = None
    transposed: Map | None = None
    is_scaling: bool = False
    bias: Tensor | float = 0.0
    shift: Tensor | float = 0.0
    slope: float = 0.0
    windows: Tensor | None = None


def read_network(model: nn.Module, images: Tensor) -> list[Operation]:
    """Return a model as operations, the image first and the logits last, in the precision of `images`.

    Args:
        model: In eval mode; images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: A few examples, on which the operations must give the model's logits.

    Raises:
        UserError: not-boundable, with the name of the layer that cannot be bounded.
    """
    model.eval()
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # a model may do anything  # noqa: BLE001
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The network cannot be bounded: it cannot be traced ({reason}).", code="not-boundable"
        ) from None
    operations = _Reader(graph, images).read()
    with torch.no_grad():
        gap = float((run(operations, images) - model(images)).abs().max())
    if not gap <= 1e-4 * (1 + float(model(images).detach().abs().max())):
        raise UserError(
            f"The network cannot be bounded: as it was read it answers otherwise (by {gap:.2g}).", code="not-boundable"
        )
    return operations


def run(operations: Sequence[Operation], images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W)."""
    values: list[Tensor] = []
    for operation in operations:
        values.append(images if operation.kind == "image" else apply(operation, [values[i] for i in operation.inputs]))
    return values[-1]


def apply(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
    """Return the value (N, *shape) of an operation from those of its inputs."""
    if operation.kind == "affine":
        assert operation.linear is not None
        bias = operation.bias
        return operation.linear(inputs[0]) + (bias.to(inputs[0]) if isinstance(bias, Tensor) else bias)
    if operation.kind == "rectifier":
        return torch.maximum(inputs[0], operation.slope * inputs[0])
    if operation.kind == "maximum":
        return window_values(operation, inputs[0], -torch.inf).amax(dim=2).reshape(len(inputs[0]), *operation.shape)
    return inputs[0] + inputs[1]


def window_values(operation: Operation, values: Tensor, beyond: float) -> Tensor:
    """Return the inputs in each window (N, outputs, window), `beyond` where a window hangs over the edge."""
    assert operation.windows is not None
    padded = F.pad(values.flatten(1), (0, 1), value=beyond)
    return padded[:, operation.windows]  # -1 is the padding


def pool_windows(module: nn.MaxPool2d, shape: tuple[int, ...]) -> Tensor:
    """Return the numbers of the inputs, of shape (C, H, W), that each output is the largest of: (outputs, window)."""
    channels, height, width = shape
    # Numbers of inputs as an image; windows are unfolded from it as max_pool2d lays them.
    places = torch.arange(channels * height * width).view(channels, 1, height, width).double()
    pads = _pair(module.padding)
    padded = F.pad(places, (pads[1], pads[1], pads[0], pads[0]), value=-1.0)
    size, stride = _pair(module.kernel_size), _pair(module.stride or module.kernel_size)
    windows = F.unfold(padded, size, dilation=_pair(module.dilation), stride=stride)  # (C, window, outputs)
    return windows.transpose(1, 2).reshape(-1, windows.shape[1]).long()


def transposed_conv2d(module: nn.Conv2d, weight: Tensor, shape: tuple[int, ...]) -> Map | None:
    """Return the transpose of a convolution, from (N, *outputs) to (N, *shape of an input); None for padding in words."""
    if isinstance(module.padding, str):
        return None
    padding: Any = module.padding
    options = (module.groups, module.dilation)

    def back(outputs: Tensor) -> Tensor:
        rest = []  # what a stride left over
        for axis in (0, 1):
            kernel = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            least = (outputs.shape[2 + axis] - 1) * module.stride[axis] - 2 * padding[axis] + kernel
            rest.append(shape[1 + axis] - least)
        return F.conv_transpose2d(outputs, weight.to(outputs), None, module.stride, padding, rest, *options)

    return back


class _Reader:
    """Walks a traced graph; `values` has, per node, the number of its operation or the constant that it stands for."""

    def __init__(self, graph: fx.GraphModule, images: Tensor) -> None:
        self.graph = graph
        self.images = images[:1]
        self.operations: list[Operation] = []
        self.values: dict[fx.Node, Any] = {}

    def read(self) -> list[Operation]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.operations.append(Operation("image", (), tuple(self.images.shape[1:]), "image"))
                self.values[node] = _Number(0)
            elif node.op == "output":
                result = self._value(node.args[0])
                if not isinstance(result, _Number) or len(self.operations[result.index].shape) != 1:
                    raise _not_boundable(node, "it does not return logits")
                return self.operations[: result.index + 1]
            else:
                self.values[node] = self._read(node)
        raise UserError("The network cannot be bounded: it returns nothing.", code="not-boundable")

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, tuple | list):
            return type(argument)(self._value(part) for part in argument)
        return argument

    def _read(self, node: fx.Node) -> Any:
        args = [self._value(argument) for argument in node.args]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.graph)
        if node.op == "call_module":
            return self._module(node, self.graph.get_submodule(str(node.target)), args)
        return self._function(node, args)

    def _add(self, node: fx.Node, kind: Any, inputs: Sequence[_Number], **keys: Any) -> _Number:
        shape = keys.pop("shape", ())
        operation = Operation(kind, tuple(number.index for number in inputs), shape, node.name, **keys)
        if not shape:
            with torch.no_grad():
                examples = [torch.zeros(1, *self.operations[number.index].shape).to(self.images) for number in inputs]
                operation = replace(operation, shape=tuple(apply(operation, examples).shape[1:]))
        self.operations.append(operation)
        return _Number(len(self.operations) - 1)

    def _affine(
        self, node: fx.Node, number: _Number, linear: Map, absolute: Map | None = None, bias: Tensor | float = 0.0,
        shift: Tensor | float | None = None, **about: Any,
    ) -> _Number:  # fmt: skip
        """Add x -> linear(x) + bias; where `absolute` is None the map is its own, and `shift` is |bias|."""
        size = (bias.abs() if isinstance(bias, Tensor) else abs(bias)) if shift is None else shift
        return self._add(
            node, "affine", [number], linear=linear, absolute=absolute or linear, bias=bias, shift=size, **about
        )

    def _scaling(
        self, node: fx.Node, number: _Number, scale: Tensor, bias: Tensor, shift: Tensor | None = None
    ) -> _Number:
        """Add x -> scale x + bias."""

        def linear(x: Tensor) -> Tensor:
            return x * scale.to(x)

        return self._affine(
            node, number, linear, lambda x: x * scale.abs().to(x), bias, shift, transposed=linear, is_scaling=True
        )

    def _rectifier(self, node: fx.Node, number: _Number, slope: float) -> _Number:
        if not 0 <= slope <= 1:
            raise _not_boundable(node, f"a rectifier of slope {slope:g}, outside [0, 1],")
        return self._add(node, "rectifier", [number], slope=slope)

    def _module(self, node: fx.Node, module: nn.Module, args: list[Any]) -> Any:
        number = args[0]
        if not isinstance(number, _Number):
            raise _not_boundable(node, type(module).__name__)
        if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
            return number
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            return self._rectifier(node, number, float(getattr(module, "negative_slope", 0.0)))
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            weight, bias = self._weights(module, module.out_channels)
            options: Any = (module.stride, module.padding, module.dilation, module.groups)
            return self._affine(
                node, number,
                lambda x: F.conv2d(x, weight.to(x), None, *options),
                lambda x: F.conv2d(x, weight.abs().to(x), None, *options),
                bias.view(-1, 1, 1), transposed=transposed_conv2d(module, weight, self.operations[number.index].shape),
            )  # fmt: skip
        if isinstance(module, nn.Linear):
            weight, bias = self._weights(module, module.out_features)
            return self._affine(
                node, number,
                lambda x: F.linear(x, weight.to(x)), lambda x: F.linear(x, weight.abs().to(x)), bias,
                transposed=lambda y: y @ weight.to(y),
            )  # fmt: skip
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            return self._batchnorm(node, number, module)
        if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten):
            return self._affine(node, number, lambda x: module(x))
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            return self._maximum(node, number, module)
        raise _not_boundable(node, type(module).__name__)

    def _weights(self, module: nn.Conv2d | nn.Linear, outputs: int) -> tuple[Tensor, Tensor]:
        bias = torch.zeros(outputs) if module.bias is None else module.bias.detach()
        return module.weight.detach().to(self.images), bias.to(self.images)

    def _batchnorm(self, node: fx.Node, number: _Number, module: Any) -> _Number:
        shape = (-1,) + (1,) * (len(self.operations[number.index].shape) - 1)
        ones = torch.ones_like(module.running_var, dtype=torch.float64)
        weight = ones if module.weight is None else module.weight.detach().double()
        bias = 0 * ones if module.bias is None else module.bias.detach().double()
        scale = (weight / (module.running_var.double() + module.eps).sqrt()).view(shape)
        offset = bias.view(shape) - module.running_mean.double().view(shape) * scale
        shift = bias.abs().view(shape) + (module.running_mean.double().view(shape) * scale).abs()
        return self._scaling(node, number, scale, offset, shift)

    def _maximum(self, node: fx.Node, number: _Number, module: nn.MaxPool2d) -> _Number:
        if module.ceil_mode:
            raise _not_boundable(node, "MaxPool2d with ceil_mode")
        before = self.operations[number.index].shape
        with torch.no_grad():
            shape = tuple(module(torch.zeros(1, *before)).shape[1:])
        return self._add(node, "maximum", [number], windows=pool_windows(module, before), shape=shape)

    def _function(self, node: fx.Node, args: list[Any]) -> Any:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        numbers = [value for value in args if isinstance(value, _Number)]
        if not numbers:  # arithmetic on shapes and constants
            return getattr(args[0], name)(*args[1:]) if node.op == "call_method" else node.target(*args)  # type: ignore[operator]
        number = numbers[0]
        if name in ("size", "getattr"):
            shape = (-1, *self.operations[number.index].shape)
            return shape[args[1]] if name == "size" and len(args) > 1 else shape
        if name in ("relu", "relu_"):
            return self._add(node, "rectifier", [number])
        if name == "leaky_relu":
            slope: Any = args[1] if len(args) > 1 else node.kwargs.get("negative_slope", 0.01)
            return self._rectifier(node, number, float(slope))
        if name in ("dropout", "contiguous", "clone"):
            return number
        if name == "max_pool2d":
            keys = {key: self._value(value) for key, value in node.kwargs.items()}
            return self._maximum(node, number, nn.MaxPool2d(*args[1:], **keys))
        if name in ("flatten", "view", "reshape"):
            return self._affine(node, number, lambda x: x.flatten(1)) if self._flattens(node, name, args) else number
        if name in _ARITHMETIC:
            return self._arithmetic(node, _ARITHMETIC[name], args)
        if name in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            rest, keys = args[1:], {key: self._value(value) for key, value in node.kwargs.items()}
            call = (lambda x: x.mean(*rest, **keys)) if name == "mean" else (lambda x: node.target(x, *rest, **keys))  # type: ignore[operator]
            return self._affine(node, number, call)
        raise _not_boundable(node, name)

    def _flattens(self, node: fx.Node, name: str, args: list[Any]) -> bool:
        """Say whether a change of shape makes rows of the samples, the one kind that is read; or leaves them as they are."""
        before = self.operations[args[0].index].shape
        if name == "flatten":
            start = args[1] if len(args) > 1 else node.kwargs.get("start_dim", 0)
            if start == 1:
                return len(before) > 1
            raise _not_boundable(node, "flatten over samples")
        shape = list(args[1]) if len(args) == 2 and isinstance(args[1], tuple | list) else list(args[1:])
        total = int(torch.tensor(before).prod())
        if len(shape) == 2 and shape[1] in (-1, total):
            return len(before) > 1
        raise _not_boundable(node, f"{name} to {tuple(shape)}")

    def _arithmetic(self, node: fx.Node, name: str, args: list[Any]) -> _Number:
        left, right = args[:2]
        if isinstance(left, _Number) and isinstance(right, _Number):
            if name != "add" or self.operations[left.index].shape != self.operations[right.index].shape:
                raise _not_boundable(node, f"{name} of two values")
            return self._add(node, "sum", [left, right])
        number, constant = (left, right) if isinstance(left, _Number) else (right, left)
        value = torch.as_tensor(constant, dtype=torch.float64).detach().cpu()
        if value.dim() == len(self.operations[number.index].shape) + 1:
            value = value[0]
        ones, zeros = torch.ones_like(value), torch.zeros_like(value)
        if name == "truediv" and number is right:
            raise _not_boundable(node, "division by a value")
        scale = {"mul": value, "truediv": 1 / value if name == "truediv" else ones}.get(name, ones)
        shift = {"add": value, "sub": -value}.get(name, zeros)
        if name == "sub" and number is right:
            scale, shift = -ones, value
        return self._scaling(node, number, scale, shift)


@dataclass(frozen=True)
class _Number:
    """The number of an operation, told from numbers that a network computes with."""

    index: int


_ARITHMETIC = {
    "add": "add", "iadd": "add", "add_": "add", "sub": "sub", "isub": "sub", "sub_": "sub", "mul": "mul", "imul": "mul",
    "mul_": "mul", "truediv": "truediv", "itruediv": "truediv", "div": "truediv", "div_": "truediv",
}  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _not_boundable(node: fx.Node, layer: str) -> UserError:
    return UserError(f"The network cannot be bounded: {layer} (at {node.name}) is not among the layers that can be: "
                     "convolution, linear, BatchNorm, ReLU, leaky ReLU, pooling, flatten, sums, normalisation.",
                     code="not-boundable")  # fmt: skip
