"""Weights to start training from: those of the same network, or of one with other classes, whose last layer is then new."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.checkpoint_file import read_checkpoint
from robustdup.models.files import place_of_weights
from robustdup.models.load import load_model
from robustdup.models.state_dicts import Fit, best_fit, fit_state
from robustdup.plugins import Registry

POSITIONS = "pos_embed"  # of timm's transformers: one vector for each patch of an image


def start_from(
    network: nn.Module,
    spec: str,
    *,
    classes: int,
    registry: Registry,
    allow_pickle: bool = False,
    new_head: bool = False,
) -> list[str]:
    """Load weights into a network, in place, and return what a reader should know of it.

    A last layer for another number of classes is left as it was drawn; so it is with `new_head` in any case.

    Args:
        network: the network to train.
        spec: a model spec (run:FOLDER, timm:NAME, hf:ID, file.py:factory@weights) or a checkpoint, FILE or FILE#SET.
        classes: outputs of the network.
        registry: the sources of models.
        allow_pickle: whether a checkpoint may run code.
        new_head: whether the last layer is to be new though it would fit.

    Raises:
        UserError: bad-weights for those of another network.
    """
    content, named = _content(spec, registry, allow_pickle)
    place = f"init = {spec!r}"
    fit = best_fit(content, network, place, named=named)
    state = dict(fit.state)
    notes = _resampled(network, state)
    head = head_names(network, classes)
    changed = [name for name in fit.shapes if state[name].shape != network.state_dict()[name].shape]
    differ = [name for name in (*changed, *fit.missing) if name not in head]
    if differ or fit.extra or not state:
        raise _other_network(fit, differ, spec)
    if new_head or changed or fit.missing:
        if not head:
            raise UserError(
                f"new_head: {type(network).__name__} has no last layer of {classes} outputs that could be told from others.",
                code="bad-model",
            )
        fresh = sorted(head)
        theirs = next((len(fit.state[name]) for name in fresh if name in fit.state), None)
        state = {name: value for name, value in state.items() if name not in head}
        why = "" if theirs in (None, classes) else f": {spec} has {theirs} classes"
        notes.append(f"The last layer ({', '.join(fresh)}) is new{why}.")
    else:
        fit, more = fit_state(content, network, place, named=named) if fit.whole else (fit, [])
        state, notes = {**fit.state, **(state if notes else {})}, notes + more
    network.load_state_dict(state, strict=False)
    return notes


def _content(spec: str, registry: Registry, allow_pickle: bool) -> tuple[Any, str | None]:
    """Return what holds the weights, a module or the content of a checkpoint, and the set of them that is named."""
    file, named = place_of_weights(spec)
    if file is not None and file.is_file() and file.suffix != ".py":
        return read_checkpoint(file, allow_pickle=allow_pickle), named
    return load_model(spec, registry=registry, allow_pickle=allow_pickle), None


def head_of(network: nn.Module, classes: int) -> nn.Module | None:
    """Return the last layer: `head` where a network has one, else the last that gives `classes` outputs; None for none."""
    head = getattr(network, "head", None)
    if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
        return head
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return next((layer for layer in reversed(layers) if layer.weight.shape[0] == classes), None)


def head_names(network: nn.Module, classes: int) -> set[str]:
    """Return the names of the last layer's weights; empty where it cannot be told."""
    head = head_of(network, classes)
    if head is None:
        return set()
    ours = {id(value) for value in [*head.parameters(), *head.buffers()]}
    every = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {name for name, value in every if id(value) in ours}


def _resampled(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Fit the position embeddings of timm's transformers to images of another size, in place; return notes."""
    notes = []
    expected = network.state_dict()
    for name, value in state.items():
        ours = expected[name]
        net = getattr(network, "net", None)
        if not name.endswith(POSITIONS) or value.shape == ours.shape or value.ndim != 3 or net is None:
            continue
        if value.shape[2] != ours.shape[2] or not hasattr(net, "patch_embed"):
            continue
        from timm.layers import resample_abs_pos_embed

        prefix = 0 if getattr(net, "no_embed_class", False) else int(getattr(net, "num_prefix_tokens", 1))
        grid = tuple(net.patch_embed.grid_size)
        with torch.no_grad():
            state[name] = resample_abs_pos_embed(value, list(grid), num_prefix_tokens=prefix)
        notes.append(f"Position embeddings were resampled to {grid[0]}x{grid[1]} patches.")
    return notes


def _other_network(fit: Fit, differ: list[str], spec: str) -> UserError:
    parts = []
    if differ:
        parts.append(
            f"{len(differ)} weights besides the last layer are missing or have another shape, such as {differ[0]!r}"
        )
    if fit.extra:
        parts.append(f"{len(fit.extra)} are unknown to the network, such as {fit.extra[0]!r}")
    return UserError(
        f"init = {spec!r} has weights of another network: {'; '.join(parts) or 'none fits'}. Name with --model the architecture "
        "that they are of; only the last layer may differ.",
        code="bad-weights",
    )
