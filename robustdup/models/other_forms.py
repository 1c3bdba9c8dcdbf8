"""Weights that a network's names do not find as they stand: in several mappings, nested, under other names, reparametrised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
MOST = 8  # mappings beside each other that are tried together
# What some libraries call the same things.
OTHER_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var",
               "moving_var": "running_var"}  # fmt: skip
OLD, NEW = r"(.*?)([^.]+)", r"(.*?)parametrizations\.([^.]+)"  # a module and the name of its weight


def joined(content: Any, plain: Callable[[Any], Any], depth: int, name: str = "") -> Iterator[tuple[str, Weights]]:
    """Yield sets of weights made of several mappings: nested ones by dotted names, and parameters with their buffers.

    Args:
        content: what a checkpoint holds.
        plain: makes a mapping of what holds tensors under names.
        depth: wrappers that are looked into.
        name: where it stands.
    """
    content = plain(content)
    if not isinstance(content, Mapping) or "param_groups" in content:
        return
    parts = {str(key): _flat(value, plain, depth) for key, value in content.items()}
    parts = {key: tensors for key, tensors in parts.items() if tensors}
    if 1 < len(parts) <= MOST:
        for pair in combinations(parts, 2):
            first, second = (parts[key] for key in pair)
            if first.keys().isdisjoint(second):
                yield ".".join([*([name] if name else []), "+".join(pair)]), {**first, **second}
    whole = _flat(content, plain, depth)
    if whole:
        yield name, whole
    if depth:
        for key, value in content.items():
            if isinstance(plain(value), Mapping):
                yield from joined(value, plain, depth - 1, f"{name}.{key}" if name else str(key))


def _flat(content: Any, plain: Callable[[Any], Any], depth: int) -> Weights:
    """Return all tensors below by dotted names, but for those of optimizers."""
    content = plain(content)
    if not isinstance(content, Mapping) or "param_groups" in content:
        return {}
    tensors: Weights = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[str(key)] = value
        elif depth:
            tensors |= {f"{key}.{inner}": tensor for inner, tensor in _flat(value, plain, depth - 1).items()}
    return tensors


def rewritten(state: Weights) -> Iterator[Weights]:
    """Yield a set of weights in other forms: other separators and names, without and with another kind of weight norm."""
    for mark in ("/", "__"):
        if any(mark in key for key in state):
            yield {key.replace(mark, "."): value for key, value in state.items()}
    if any(key.rpartition(".")[2] in OTHER_NAMES for key in state):
        yield {_usual_name(key): value for key, value in state.items()}
    computed = _computed(state)
    if computed is not None:
        yield computed
    renamed = {_other_norm(key): value for key, value in state.items()}
    if renamed.keys() != state.keys():
        yield renamed


def _usual_name(key: str) -> str:
    place, dot, last = key.rpartition(".")
    return f"{place}{dot}{OTHER_NAMES.get(last, last)}"


def _other_norm(key: str) -> str:
    """Return what a part of a weight norm is called by torch's other kind of it, old or new."""
    if match := re.fullmatch(rf"{NEW}\.original([01])", key):
        return f"{match[1]}{match[2]}_{'gv'[int(match[3])]}"
    if match := re.fullmatch(rf"{OLD}_([gv])", key):
        return f"{match[1]}parametrizations.{match[2]}.original{'gv'.index(match[3])}"
    return key


def _computed(state: Weights) -> Weights | None:
    """Return a set in which weights stand in place of what they are computed from; None where there is nothing to compute.

    Weight norm g v / |v| (https://arxiv.org/abs/1602.07868), spectral norm w / (u' w v) (https://arxiv.org/abs/1802.05957) and
    pruning w * mask, as torch's old hooks and its parametrizations name them.
    """
    made = dict(state)
    for key in state:
        for pattern, names, compute in FORMS:
            match = re.fullmatch(pattern, key)
            keys = [name.format(*match.groups()) for name in names] if match else []
            if not keys or any(each not in made for each in keys):
                continue
            assert match is not None
            made[f"{match[1]}{match[2]}"] = compute(*(made.pop(each).float() for each in keys))
            break
    return made if made.keys() != state.keys() else None


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    shared = [axis for axis in range(v.ndim) if g.ndim != v.ndim or g.shape[axis] == 1]
    length: Tensor = torch.linalg.vector_norm(v, dim=shared, keepdim=True)
    return v * (g / length)


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    rows = weight if weight.shape[0] == len(u) else weight.transpose(0, 1)  # of transposed convolutions the second axis
    return weight / torch.dot(u, rows.reshape(len(u), -1) @ v)


FORMS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor]], ...] = (
    (rf"{OLD}_v", ("{0}{1}_orig", "{0}{1}_u", "{0}{1}_v"), _spectral_norm),
    (rf"{OLD}_v", ("{0}{1}_g", "{0}{1}_v"), _weight_norm),
    (rf"{OLD}_mask", ("{0}{1}_orig", "{0}{1}_mask"), torch.mul),
    (rf"{NEW}\.original1", ("{0}parametrizations.{1}.original0", "{0}parametrizations.{1}.original1"), _weight_norm),
    (rf"{NEW}\.0\._v", tuple(f"{{0}}parametrizations.{{1}}.{part}" for part in ("original", "0._u", "0._v")), _spectral_norm),
)  # fmt: skip
