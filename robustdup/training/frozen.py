"""Frozen parts of a network: weights that are not trained, and layers that stay as they are in evaluation."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from robustdup.errors import UserError, unknown

ALL_BUT_HEAD = "backbone"


def freeze(network: nn.Module, text: str, head: nn.Module | None) -> list[nn.Module]:
    """Freeze the parts that a text names, in place, and return the modules that stay in eval mode.

    Args:
        network: the network to train.
        text: names of modules or parameters with commas, `*` standing for anything: 'body.0,net.layer*'; 'backbone' is all
            but the last layer.
        head: the last layer; None where it cannot be told.

    Returns:
        The frozen modules: their BatchNorm statistics do not move, and they drop nothing out.

    Raises:
        UserError: a name that is not there, or nothing left to train.
    """
    still = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            continue
        if name == ALL_BUT_HEAD:
            still += _backbone(network, head)
            continue
        modules = [module for place, module in network.named_modules() if place and fnmatchcase(place, name)]
        parameters = [value for place, value in network.named_parameters() if fnmatchcase(place, name)]
        if not modules and not parameters:
            known = [
                place for place, module in network.named_modules() if place and any(True for _ in module.parameters())
            ]
            raise unknown("part to freeze:", name, [ALL_BUT_HEAD, *known])
        for value in [*parameters, *(value for module in modules for value in module.parameters())]:
            value.requires_grad_(False)
        still += modules
    if not any(value.requires_grad for value in network.parameters()):
        raise UserError(f"freeze = {text!r} leaves nothing to train.", code="bad-value")
    return still


def _backbone(network: nn.Module, head: nn.Module | None) -> list[nn.Module]:
    """Freeze all but the last layer and return the modules that hold none of it."""
    if head is None:
        raise UserError(
            f"freeze = {ALL_BUT_HEAD}: the last layer of {type(network).__name__} cannot be told. Name the parts to freeze.",
            code="bad-model",
        )
    kept = {id(value) for value in head.parameters()}
    for value in network.parameters():
        if id(value) not in kept:
            value.requires_grad_(False)
    inside = {id(module) for module in head.modules()}
    around = {id(module) for module in network.modules() if any(id(part) in inside for part in module.modules())}
    return [module for module in network.modules() if id(module) not in inside | around]
