"""Fold BatchNorm into the convolution or linear layer before it, in a graph traced with torch.fx."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

PAIRS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold_batchnorm(model: nn.Module) -> tuple[nn.Module, int]:
    """Fold BatchNorm in eval mode with running statistics into the layer before it, in a traced copy of the model.

    Args:
        model: images (N, C, H, W) -> logits (N, K); it is left as it is.

    Returns:
        The copy, and the number of layers folded.

    Raises:
        ValueError: a module has hooks, which tracing would drop.
        Exception: what torch.fx raises where it cannot trace.
    """
    for name, module in model.named_modules():
        # A leaf (torch's own layer) is still called as a module by the traced graph, so that its hooks run.
        if hooked(module) and not fx.Tracer().is_leaf_module(module, name):
            raise ValueError(f"{name or 'the model'} has hooks, which tracing would drop")
    graph = fx.symbolic_trace(_Call(copy.deepcopy(model)))
    return graph, replace_pairs(graph, lambda node, layer, norm: None if norm.training else _fused(layer, norm))


def replace_pairs(graph: fx.GraphModule, fuse: Callable[[fx.Node, Any, Any], nn.Module | None]) -> int:
    """Replace each layer with BatchNorm behind it, and nothing else, by one layer; return how many were replaced.

    Args:
        graph: a traced model; changed in place.
        fuse: gets the layer's node, the layer and its BatchNorm; returns the layer that stands for both, or None.
    """
    count = 0
    for node in list(graph.graph.nodes):
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, norm = graph.get_submodule(str(before.target)), graph.get_submodule(str(node.target))
        fused = fuse(before, layer, norm) if len(before.users) == 1 and _foldable(layer, norm) else None
        if fused is None:
            continue
        name = f"folded_{count}"  # a name of its own: the layer may be called or read elsewhere too
        graph.add_submodule(name, fused)
        before.target = name
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        count += 1
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return count


def has_own_backward(model: nn.Module, images: Tensor) -> bool:
    """Tell whether a custom autograd function takes part in the logits of `images`: tracing would drop its backward."""
    with torch.enable_grad():
        todo = [model(images.detach().clone().requires_grad_(True).clone()).grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        todo.extend(following for following, _ in node.next_functions)
    return False


def _foldable(layer: Any, norm: Any) -> bool:
    if PAIRS.get(type(layer)) is not type(norm) or norm.running_mean is None:
        return False
    if hooked(layer) or hooked(norm):
        return False  # spectral normalisation, for instance, makes the weights anew in a hook
    return bool(layer.weight.shape[0] == norm.num_features)


def _fused(layer: Any, norm: Any) -> nn.Module:
    """Return one layer that does both, computed in float64 and rounded once."""
    wide_layer, wide_norm = copy.deepcopy(layer).double().eval(), copy.deepcopy(norm).double()
    if wide_norm.weight is None:  # affine=False, which only the convolutions' helper accepts
        wide_norm.weight = nn.Parameter(torch.ones_like(wide_norm.running_var), requires_grad=False)
        wide_norm.bias = nn.Parameter(torch.zeros_like(wide_norm.running_var), requires_grad=False)
    fuse: Any = fuse_linear_bn_eval if type(layer) is nn.Linear else fuse_conv_bn_eval
    fused: nn.Module = fuse(wide_layer, wide_norm).to(layer.weight.dtype).train(layer.training)
    return fused


def hooked(module: nn.Module) -> bool:
    """Tell whether a module has hooks, which may change its weights or what it returns."""
    return any(getattr(module, kind, None) for kind in HOOKS)


class _Call(nn.Module):
    """Calls a model with the images alone, so that tracing sees the defaults of its other arguments as they are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, images: Tensor) -> Any:
        return self.net(images)
