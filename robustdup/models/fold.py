"""Fold BatchNorm into the convolution or linear layer before it, in a copy traced with torch.fx."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

PAIRS = [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d)]


def fold_batchnorm(model: nn.Module) -> tuple[nn.Module, int]:
    """Return (a traced copy with BatchNorm folded into the convolution or linear layer before it, layers folded).

    Only BatchNorm in eval mode with running statistics is folded. Raises what torch.fx raises where it cannot trace.
    """
    for name, module in model.named_modules():
        # A leaf (torch's own layer) is still called as a module by the traced graph, so that its hooks run.
        if _hooked(module) and not fx.Tracer().is_leaf_module(module, name):
            raise ValueError(f"{name or 'the model'} has hooks, which tracing would drop")
    traced = fx.symbolic_trace(_Call(copy.deepcopy(model)))
    folded = 0
    for node in list(traced.graph.nodes):
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        fused = _fused(traced.get_submodule(str(before.target)), traced.get_submodule(str(node.target)))
        if fused is None or len(before.users) > 1:
            continue
        name = f"folded_{folded}"  # a name of its own: the layer may be called or read elsewhere too
        traced.add_submodule(name, fused)
        before.target = name
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        folded += 1
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, folded


def has_own_backward(model: nn.Module, images: Tensor) -> bool:
    """Say whether a custom autograd function takes part in the logits of `images`: tracing would drop its backward."""
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


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return one layer that does both, computed in float64 and rounded once, or None where they do not fold."""
    linear = type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d
    if not linear and (type(layer), type(norm)) not in PAIRS:
        return None
    if norm.training or norm.running_mean is None or _hooked(layer) or _hooked(norm):
        return None
    if linear and layer.out_features != norm.num_features:
        return None
    one, two = copy.deepcopy(layer).double().eval(), copy.deepcopy(norm).double()
    if two.weight is None:  # affine=False, which only the convolutions' helper accepts
        two.weight = nn.Parameter(torch.ones_like(two.running_var), requires_grad=False)
        two.bias = nn.Parameter(torch.zeros_like(two.running_var), requires_grad=False)
    fused = fuse_linear_bn_eval(one, two) if linear else fuse_conv_bn_eval(one, two)  # type: ignore[type-var, arg-type]
    return fused.to(layer.weight.dtype).train(layer.training)  # type: ignore[arg-type]


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


class _Call(nn.Module):
    """Calls a model with the images alone, so that tracing sees the defaults of its other arguments as they are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, images: Tensor) -> Any:
        return self.net(images)
