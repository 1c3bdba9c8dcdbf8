"""An attack copy of a network in training: BatchNorm folded for inner passes in eval mode, the weights always the model's.

The copy is traced with torch.fx and shares every other layer with the model, so that it follows training by itself; only
folded weights have to be renewed after the model's have moved, by a few vector operations. In 16 bits convolutions and
linear layers that do not fold have weights of their own too, converted once a batch and not once a pass.
"""

from __future__ import annotations

import copy
import functools
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustdup.models.attack_copy.agreement import TOLERANCE, answers, differences, probes_of, reason_of, within
from robustdup.models.attack_copy.fold import PAIRS, has_own_backward, hooked, replace_pairs
from robustdup.projections import per_sample

PROBE_ROWS = 8
FEW = 4  # channels: an image's


@dataclass
class Fold:
    """A layer and the BatchNorm after it, both the model's own, and the layer that stands for both in the copy.

    `divisor` (1, C, 1, 1) is what its input is divided by in the model; `fused` does that too.
    """

    layer: Any
    norm: Any
    fused: Any
    divisor: Tensor | None = None


@dataclass
class Plain:
    """A layer of the model that does not fold, at a place of the copy; in 16 bits `low` stands there with converted weights."""

    place: str
    layer: Any
    low: Any = None


class FollowingCopy:
    """`network` answers as the model does in eval mode, once `refresh` was called after the model's last change.

    It holds the model's own layers: put the model, not the copy, in eval mode, and freeze the model's parameters.
    """

    def __init__(self, graph: fx.GraphModule, folds: list[Fold]) -> None:
        self.graph = graph
        self.folds = folds
        self.plain = _plain_layers(graph, {id(fold.fused) for fold in folds})
        self.network: nn.Module = graph
        layers = [layer for fold in folds for layer in (fold.layer, fold.norm)] + [plain.layer for plain in self.plain]
        self._followed = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
        self._versions: list[int] = []  # of them at the last refresh
        first = next(graph.parameters())
        self._device, self._full = first.device.type, first.dtype
        self._kept = self._full  # precision of the copy's own weights
        self._eps = torch.cat([torch.full_like(f.norm.running_var, f.norm.eps) for f in folds]) if folds else first

    @property
    def folded(self) -> int:
        """BatchNorm layers that the copy does without."""
        return len(self.folds)

    @torch.no_grad()
    def refresh(self) -> None:
        """Renew the folded weights from the model's weights and running statistics, in place.

        They are computed in the precision of the weights, and kept in that of autocast where it is on: it would otherwise
        convert frozen weights again at every pass.
        """
        self._keep_in(self._precision())
        self._versions = [tensor._version for tensor in self._followed]
        if self.folds:
            self._fold_again()
        for plain in self.plain if self._kept != self._full else ():
            for name, value in plain.layer.named_parameters():
                plain.low.get_parameter(name).copy_(value)

    def _fold_again(self) -> None:
        norms = [fold.norm for fold in self.folds]
        sizes = [norm.num_features for norm in norms]
        mean = torch.cat([norm.running_mean for norm in norms])
        scale = (torch.cat([norm.running_var for norm in norms]) + self._eps).rsqrt_()
        scale *= torch.cat([_or(norm.weight, norm.running_var, 1.0) for norm in norms])
        shift = torch.cat([_or(fold.layer.bias, fold.norm.running_var, 0.0) for fold in self.folds]) - mean
        shift = shift.mul_(scale).add_(torch.cat([_or(norm.bias, norm.running_var, 0.0) for norm in norms]))
        for fold, by, bias in zip(self.folds, torch.split(scale, sizes), torch.split(shift, sizes), strict=True):
            weight = fold.layer.weight
            torch.mul(weight, per_sample(by, weight), out=fold.fused.weight)
            if fold.divisor is not None:
                fold.fused.weight.div_(fold.divisor)
            fold.fused.bias.copy_(bias)

    def is_fresh(self) -> bool:
        """Tell whether the model has not changed since `refresh`, and autocast has the precision that it had then."""
        return self._kept == self._precision() and self._versions == [tensor._version for tensor in self._followed]

    def _precision(self) -> torch.dtype:
        return torch.get_autocast_dtype(self._device) if torch.is_autocast_enabled(self._device) else self._full

    def _keep_in(self, dtype: torch.dtype) -> None:
        if self._kept == dtype:
            return
        self._kept = dtype
        for fold in self.folds:
            fold.fused.to(dtype)
        for plain in self.plain:
            plain.low = None if dtype == self._full else copy.deepcopy(plain.layer).to(dtype).requires_grad_(False)
            set_module(self.graph, plain.place, plain.layer if plain.low is None else plain.low)


def make_following_copy(
    model: nn.Module, images: Tensor, *, compile: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[FollowingCopy | None, str]:
    """Make the copy of a model that is in eval mode with frozen parameters.

    Args:
        model: the model that is trained.
        images: a few examples (n, C, H, W), on which the copy must give the same logits and input gradients.
        compile: what compiles the copy; None leaves it as it is.

    Returns:
        The copy, or None and why there is none ("": nothing to fold).
    """
    probes = probes_of(images.detach(), PROBE_ROWS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.symbolic_trace(model)
            folds = _fold(graph)
            if not folds and compile is None:
                return None, ""
            if has_own_backward(model, probes[0].images):
                raise ValueError("the model has a backward pass of its own, which tracing would drop")
            following = FollowingCopy(graph, folds)
            following.refresh()
            gaps = differences(answers(model, probes), answers(graph, probes))
    except Exception as error:  # a model may do anything; training goes on without a copy  # noqa: BLE001
        return None, f"The inner attack runs on the model itself: it could not be folded ({reason_of(error)})."
    if not within(gaps, TOLERANCE["fp32"]):
        return None, "The inner attack runs on the model itself: folded, it answers differently."
    if compile is not None:
        following.network = compile(graph)
    return following, ""


def set_module(graph: fx.GraphModule, place: str, layer: nn.Module) -> None:
    """Put a layer at a place of a traced model; the modules around it are the trace's own, not the model's."""
    around, _, name = place.rpartition(".")
    setattr(graph.get_submodule(around), name, layer)


def _plain_layers(graph: fx.GraphModule, fused: set[int]) -> list[Plain]:
    """Return the convolutions and linear layers that are called as the model has them, with no hook on them."""
    places = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    layers = [(place, graph.get_submodule(place)) for place in places]
    return [
        Plain(*each) for each in layers if type(each[1]) in PAIRS and id(each[1]) not in fused and not hooked(each[1])
    ]


def _fold(graph: fx.GraphModule) -> list[Fold]:
    """Fold BatchNorm in a traced model, in place; return what was replaced, with weights still to be filled in."""
    folds: list[Fold] = []

    def fuse(node: fx.Node, layer: Any, norm: Any) -> nn.Module:
        folds.append(Fold(layer, norm, _blank(layer), _take_division(graph, node, layer)))
        return folds[-1].fused  # type: ignore[no-any-return]

    replace_pairs(graph, fuse)
    return folds


def _take_division(graph: fx.GraphModule, node: fx.Node, layer: nn.Module) -> Tensor | None:
    """Take the division by a tensor of the model (the deviation of each channel) from before a convolution; return it.

    It commutes with the convolution and its zero padding, and is paid once a batch so, not twice an inner pass.
    """
    before = node.args[0]
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if not isinstance(before, fx.Node) or before.target is not operator.truediv or len(before.users) > 1:
        return None
    source, by = before.args
    if not isinstance(by, fx.Node) or by.op != "get_attr":
        return None
    divisor = functools.reduce(getattr, str(by.target).split("."), graph)
    if not isinstance(divisor, Tensor) or divisor.shape != (1, layer.in_channels, 1, 1):
        return None
    node.args = (source,)
    graph.graph.erase_node(before)
    return divisor


def _blank(layer: Any) -> nn.Module:
    """Return a layer of the same shape and layout with a bias and weights that are still to be filled in."""
    weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
    if isinstance(layer, nn.Linear):
        fused: Any = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        kind = Unstrided if weight.device.type == "cpu" and can_go_unstrided(layer) else type(layer)
        fused = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            padding_mode=layer.padding_mode,
            device="meta",
        )
    fused.weight = weight
    fused.bias = nn.Parameter(torch.zeros_like(weight.detach().flatten(1)[:, 0]), requires_grad=False)
    return fused.eval()  # type: ignore[no-any-return]


def _or(values: Tensor | None, like: Tensor, default: float) -> Tensor:
    return torch.full_like(like, default) if values is None else values


def can_go_unstrided(layer: nn.Module) -> bool:
    """Tell whether `Unstrided` can stand for a layer: few channels, a stride, and as many places with whole blocks."""
    if not isinstance(layer, nn.Conv2d) or layer.in_channels > FEW or layer.groups != 1 or layer.dilation != (1, 1):
        return False
    stride, side, padding = layer.stride[0], layer.kernel_size[0], layer.padding[0]
    square = (layer.stride, layer.kernel_size, layer.padding) == ((stride,) * 2, (side,) * 2, (padding,) * 2)
    if not square or stride < 2 or layer.padding_mode != "zeros":
        return False
    blocks, _, taps = _in_blocks(layer)
    return 2 * blocks - taps == (2 * int(padding) - side) // stride


class Unstrided(nn.Conv2d):
    """A convolution of `can_go_unstrided`, with its parameters: (N, C, H, W) -> what nn.Conv2d gives, to rounding.

    oneDNN's input gradient of a strided convolution of three channels takes five times as long on a CPU as the same sums
    as a convolution with stride 1 of the blocks of pixels that one step of the stride covers.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution of images (N, C, H, W); sides that are no multiple of the stride keep the stride."""
        stride = self.stride[0]
        n, channels, height, width = images.shape
        if height % stride or width % stride:
            return super().forward(images)
        blocks, shift, taps = _in_blocks(self)
        after = taps * stride - shift - self.kernel_size[0]
        kernel = F.pad(self.weight, (shift, after, shift, after))
        kernel = kernel.view(-1, channels, taps, stride, taps, stride).permute(0, 3, 5, 1, 2, 4)
        tiles = images.permute(0, 2, 3, 1).reshape(n, height // stride, stride, width // stride, stride, channels)
        tiles = tiles.transpose(2, 3).reshape(n, height // stride, width // stride, -1).permute(0, 3, 1, 2)
        return F.conv2d(tiles, kernel.reshape(len(kernel), -1, taps, taps), self.bias, padding=blocks)


def _in_blocks(layer: nn.Conv2d) -> tuple[int, int, int]:
    """Return the padding in blocks, the places by which the kernel moves for it, and the blocks per side that it covers."""
    stride, padding = layer.stride[0], int(layer.padding[0])
    blocks = -(-padding // stride)
    shift = stride * blocks - padding
    return blocks, shift, -(-(layer.kernel_size[0] + shift) // stride)
