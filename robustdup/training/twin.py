"""A twin of the network that is trained, with BatchNorm folded into the layer before it, for inner passes in eval mode.

The twin is traced with torch.fx and shares every other layer with the model, so that it follows training by itself; only
folded weights have to be renewed after the model's have moved, by a few vector operations.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustdup.models.answers import answers, differences, probes_of
from robustdup.models.fold import has_own_backward
from robustdup.models.unstrided import Unstrided, can_go_unstrided
from robustdup.projections import per_sample

PAIRS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d}
TOLERANCE = (1e-4, 0.045)  # of the logits' scale, and of the length of a row's gradient: a cosine of 0.999
PROBE_ROWS = 8
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Fold:
    """A layer and the BatchNorm after it, both the model's own, and the layer that stands for both in the twin.

    `divisor` (1, C, 1, 1) is what its input is divided by in the model; `fused` does that too.
    """

    layer: Any
    norm: Any
    fused: Any
    divisor: Tensor | None = None


class Twin:
    """`network` answers as the model does in eval mode, once `refresh` was called after the model's last change.

    It holds the model's own layers: put the model, not the twin, in eval mode, and freeze the model's parameters.
    """

    def __init__(self, graph: fx.GraphModule, folds: list[Fold]) -> None:
        self.graph = graph
        self.folds = folds
        self.network: nn.Module = graph
        self._eps = torch.cat([torch.full_like(fold.norm.running_var, fold.norm.eps) for fold in folds])

    @property
    def folded(self) -> int:
        """BatchNorm layers that the twin does without."""
        return len(self.folds)

    @torch.no_grad()
    def refresh(self) -> None:
        """Renew the folded weights from the model's weights and running statistics, in place.

        They are computed in the precision of the weights, and kept in that of autocast where it is on: it would otherwise
        convert frozen weights again at every pass.
        """
        self._keep_in(self._precision())
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

    def _precision(self) -> torch.dtype:
        device = self._eps.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._eps.dtype

    def _keep_in(self, dtype: torch.dtype) -> None:
        for fold in self.folds:
            if fold.fused.weight.dtype != dtype:
                fold.fused.to(dtype)


def make_twin(
    model: nn.Module, images: Tensor, *, compile: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[Twin | None, str]:
    """Return a twin of a model in eval mode with frozen parameters, or None and why there is none ("": nothing to fold).

    `images` (n, C, H, W): a few examples, on which the twin must give the same logits and input gradients.
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
            twin = Twin(graph, folds)
            twin.refresh()
            gaps = differences(answers(model, probes), answers(graph, probes))
    except Exception as error:  # a model may do anything; training goes on without a twin
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return (
            None,
            f"The inner attack runs on the model itself: it could not be folded ({type(error).__name__}: {first}).",
        )
    if any(found > allowed for found, allowed in zip(gaps, TOLERANCE, strict=True)):
        return None, "The inner attack runs on the model itself: folded, it answers differently."
    if compile is not None:
        twin.network = compile(graph)
    return twin, ""


def _fold(graph: fx.GraphModule) -> list[Fold]:
    """Replace each layer with BatchNorm behind it, and nothing else, by one layer; return what was replaced."""
    folds: list[Fold] = []
    for node in list(graph.graph.nodes):
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, norm = graph.get_submodule(str(before.target)), graph.get_submodule(str(node.target))
        if len(before.users) > 1 or not _foldable(layer, norm):
            continue
        name = f"folded_{len(folds)}"  # a name of its own: the layer may be called elsewhere too
        folds.append(Fold(layer, norm, _blank(layer), _take_division(graph, before, layer)))
        graph.add_submodule(name, folds[-1].fused)
        before.target = name
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
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


def _foldable(layer: Any, norm: Any) -> bool:
    if PAIRS.get(type(layer)) is not type(norm) or norm.running_mean is None:
        return False
    if any(getattr(module, kind) for module in (layer, norm) for kind in HOOKS):
        return False  # spectral normalisation, for one, makes the weights anew in a hook
    return bool(layer.weight.shape[0] == norm.num_features)


def _blank(layer: Any) -> nn.Module:
    """Return a layer of the same shape and layout with a bias and weights that are still to be filled in."""
    weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
    if isinstance(layer, nn.Linear):
        fused: Any = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        kind = Unstrided if weight.device.type == "cpu" and can_go_unstrided(layer) else type(layer)
        fused = kind(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
    fused.weight = weight
    fused.bias = nn.Parameter(torch.zeros_like(weight.detach().flatten(1)[:, 0]), requires_grad=False)
    return fused.eval()  # type: ignore[no-any-return]


def _or(values: Tensor | None, like: Tensor, default: float) -> Tensor:
    return torch.full_like(like, default) if values is None else values
