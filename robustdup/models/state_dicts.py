"""Weights as checkpoints keep them, fitted to a network: wrappers, prefixes, averaged weights, buffers that are missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.errors import UserError, unknown
from robustdup.models.other_forms import joined, rewritten

DEPTH = 6  # wrappers around a state dict
SHOWN = 8  # sets of weights that a message lists
# Parts of names that wrappers put in: DataParallel, torch.compile, FSDP, activation checkpoints.
TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")  # do not change what a network computes
AVERAGED = ("ema", "averaged", "average", "avg", "swa", "shadow", "polyak")
USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "state")
STATISTICS = ("running_mean", "running_var")
# What names in a checkpoint say of it where it does not fit.
HINTS = (
    (r"lora_|base_layer|(^|\.)(ia3|hada|lokr)_", "It holds an adapter (LoRA), not the whole weights: merge it into its network "
     "first (merge_and_unload in peft), and save that."),
    (r"qweight|qzeros|\.SCB$|absmax|quant_map|packed_params|zero_point|weight_scale|g_idx", "It holds quantised weights: save "
     "those from before."),
    (r"^_flat_param|\._flat_param|flat_param_", "It holds the flat parameters of FSDP: save a full state dict."),
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How a set of weights fits a network.

    Args:
        name: where in the checkpoint it stands, as '#name' takes it; empty for all of it.
        state: its tensors by the network's own names.
        missing: names of the network that it lacks, but for counters.
        kept: buffers of the network that it lacks, such as the means and deviations of a normalisation.
        extra: its names that the network does not have, under the same prefix.
        outside: its names elsewhere.
        shapes: names whose tensors have another shape.
    """

    name: str
    state: dict[str, Tensor]
    missing: tuple[str, ...]
    kept: tuple[str, ...]
    extra: tuple[str, ...]
    outside: tuple[str, ...]
    shapes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Tell whether the network can be loaded from it."""
        return bool(self.state) and not (self.missing or self.extra or self.shapes)


def fit_state(content: Any, model: nn.Module, place: str, *, named: str | None = None) -> tuple[Fit, list[str]]:
    """Return the weights in a checkpoint's content that a network is loaded from, and notes on the choice.

    Raw weights go before averaged ones, and a note names the others.

    Args:
        content: what the file holds.
        model: the network.
        place: what to call the file.
        named: the set to take, such as 'state_dict_ema', 'ema.shadow' or a prefix of names, 'ema_model'.

    Raises:
        UserError: no weights, none that fit, several that nobody can choose between, or none of that name.
    """
    sets, fits = _every_fit(content, model, place, named)
    whole = _distinct([fit for fit in fits if fit.whole])
    if not whole:
        raise _other_network(max(fits, key=_agreement), model, place, sets)
    first = whole[0]
    _check_numbers(first, model, place)
    others = whole[1:]
    if named is None and any(
        not _averaged(other.name) and _own_part(first.name, other.name) not in USUAL for other in others
    ):
        names = ", ".join(repr(fit.name) for fit in whole[:SHOWN])
        raise UserError(
            f"{place} holds several sets of weights for this network: {names}. Name one: @FILE#{first.name}.",
            code="several-weights",
        )
    notes = _notes(first, others, place, named)
    notes += [
        f"{place} holds averaged weights without names ({name!r}), which are not read: {first.name or 'those at the top'!r} was "
        "taken."
        for name in _nameless(content)
    ]
    return first, notes


def _check_numbers(fit: Fit, model: nn.Module, place: str) -> None:
    """Raise UserError for weights without values, and for others than real fractions where the network has those."""
    fractions = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    for name, tensor in fit.state.items():
        if tensor.is_meta:
            raise UserError(
                f"{place} names {name!r} without its values (a tensor on the device 'meta'): save the model after it was loaded.",
                code="damaged-checkpoint",
            )
        if name in fractions and tensor.is_complex():
            raise UserError(
                f"{place} holds {name!r} as complex numbers, where the network has real ones.", code="other-network"
            )
        if name in fractions and not tensor.is_floating_point():
            raise UserError(
                f"{place} holds {name!r} as whole numbers ({str(tensor.dtype).removeprefix('torch.')}), as quantised weights "
                "are: their scale is not in them. Save the weights before they are quantised.",
                code="other-network",
            )


def best_fit(content: Any, model: nn.Module, place: str, *, named: str | None = None) -> Fit:
    """Return the weights in a checkpoint's content that fit a network best, wholly or not. Arguments are those of `fit_state`.

    Raises UserError where there are none, or none of that name.
    """
    return max(_every_fit(content, model, place, named)[1], key=_agreement)


def _every_fit(
    content: Any, model: nn.Module, place: str, named: str | None
) -> tuple[dict[str, dict[str, Tensor]], list[Fit]]:
    """Return the sets of weights in a checkpoint's content by name, and how each fits; of those named, if any are."""
    sets = dict(_sets(content, ""))
    if not sets:
        raise UserError(
            f"{place} holds a {type(content).__name__} without weights, not a state dict.", code="damaged-checkpoint"
        )
    fits = [fit for name, state in sets.items() for fit in _fits(name, state, model)]
    if not any(fit.whole for fit in fits):
        several = [*sets.items(), *joined(content, _plain_mapping, DEPTH)]
        further = [(name, form) for name, state in several for form in (state, *rewritten(state))]
        fits += [fit for name, state in further for fit in _fits(name, state, model) if fit.whole]
    if named is not None:
        chosen = [fit for fit in fits if named in (fit.name, *_tails(fit.name))]
        if not chosen:
            raise unknown(f"weights of {place}:", named, sorted({fit.name for fit in fits if fit.name} or sets))
        fits = chosen
    return sets, fits


def _sets(content: Any, name: str, depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Walk the sets of tensors in nested mappings, lists and modules, the outer ones first, with their names."""
    content = _plain_mapping(content)
    if not isinstance(content, Mapping) or "param_groups" in content:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(isinstance(key, str) for key in content):
        yield name, tensors
    if depth:
        for key, value in content.items():
            if not isinstance(value, Tensor) and len(tensors) < len(content):
                yield from _sets(value, f"{name}.{key}" if name else str(key), depth - 1)


def _nameless(content: Any, name: str = "", depth: int = DEPTH) -> Iterator[str]:
    """Yield where averaged weights stand as lists of tensors."""
    if (
        isinstance(content, list)
        and len(content) > 1
        and _averaged(name)
        and all(isinstance(t, Tensor) for t in content)
    ):
        yield name
    elif isinstance(content, Mapping) and "param_groups" not in content and depth:
        for key, value in content.items():
            yield from _nameless(value, f"{name}.{key}" if name else str(key), depth - 1)


def _plain_mapping(content: Any) -> Any:
    """Return a mapping for what holds tensors under names: modules, lists, objects of classes that were not loaded, arrays."""
    if isinstance(content, nn.Module) or "_parameters" in getattr(content, "__dict__", ()):
        return dict(_tensors_of(content))
    if isinstance(content, list | tuple):
        return dict(enumerate(content)) if len(content) <= SHOWN else {}
    if not isinstance(content, Mapping):
        return content
    held = {key: value for key, value in getattr(content, "__dict__", {}).items() if key != "_metadata"}
    return {key: _as_tensor(value) for key, value in {**held, **content}.items()}


def _tensors_of(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Walk the parameters and saved buffers of a module by name, also of one whose class was not loaded."""
    parts = vars(module)
    gone = parts.get("_non_persistent_buffers_set", ())
    for name, value in {**parts["_parameters"], **parts.get("_buffers", {})}.items():
        if isinstance(value, Tensor) and name not in gone:
            yield prefix + name, value.detach()
    for name, inner in parts.get("_modules", {}).items():
        if "_parameters" in getattr(inner, "__dict__", ()):
            yield from _tensors_of(inner, f"{prefix}{name}.")


def _as_tensor(value: Any) -> Any:
    """Return an array of numbers as a tensor, a sparse tensor as a whole one, anything else as it is."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        return value.to_dense()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))


def _own_part(name: str, other: str) -> str:
    """Return the first part of a name in which it differs from another; 'state_dict' where it has none."""
    parts, others = name.split("."), other.split(".")
    same = 0
    while same < min(len(parts), len(others)) and parts[same] == others[same]:
        same += 1
    return "_".join(_words(parts[same])).lower() if same < len(parts) and parts[same] else USUAL[0]


def _plain(key: str) -> str:
    """Return a name without the parts that wrappers put in."""
    return ".".join(part for part in key.split(".") if part not in TRANSPARENT)


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _fits(name: str, state: dict[str, Tensor], model: nn.Module) -> list[Fit]:
    """Return how a set fits under each prefix that makes at least half as many names agree as the best one."""
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    ours = {_plain(key): key for key in expected}
    theirs = {_plain(key): key for key in state}
    if len(ours) < len(expected) or len(theirs) < len(state):
        ours, theirs = {key: key for key in expected}, {key: key for key in state}
    votes: Counter[tuple[str, str]] = Counter()
    by_tail: dict[str, list[str]] = {}
    for key in ours:
        by_tail.setdefault(key.rpartition(".")[2], []).append(key)
    for key in theirs:
        for other in by_tail.get(key.rpartition(".")[2], ()):
            if expected[ours[other]].shape == state[theirs[key]].shape:
                votes[_prefixes(key, other)] += 1
    if not votes:
        votes[("", "")] = 0
    most = max(votes.values())
    good = [pair for pair, count in votes.items() if 2 * count >= most]
    good.sort(key=lambda pair: (-votes[pair], pair != ("", ""), len(pair[0])))
    return [_fit(name, state, model, (ours, theirs), pair) for pair in good[:SHOWN]]


def _prefixes(theirs: str, ours: str) -> tuple[str, str]:
    """Return what stands before the part that both names share."""
    a, b = theirs.split("."), ours.split(".")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    return ".".join(a[: len(a) - same]), ".".join(b[: len(b) - same])


def _fit(
    name: str, state: dict[str, Tensor], model: nn.Module, names: tuple[dict[str, str], dict[str, str]],
    prefixes: tuple[str, str],
) -> Fit:  # fmt: skip
    ours, theirs = names
    before, instead = (f"{prefix}." if prefix else "" for prefix in prefixes)
    expected = model.state_dict()
    buffers = {_plain(key) if _plain(key) in ours else key for key, _ in model.named_buffers()}
    inside = {instead + key.removeprefix(before): full for key, full in theirs.items() if key.startswith(before)}
    fitted = {key: state[full] for key, full in inside.items() if key in ours}
    lacking = [key for key in ours if key not in fitted and key.rpartition(".")[2] not in COUNTERS]
    kept = [key for key in lacking if key in buffers and key.rpartition(".")[2] not in STATISTICS]
    # Shapes of buffers that are constants may differ by ones: (3,) and (1, 3, 1, 1).
    for key in [
        key for key in fitted if key in buffers and expected[ours[key]].squeeze().shape == fitted[key].squeeze().shape
    ]:
        fitted[key] = fitted[key].reshape(expected[ours[key]].shape)
    return Fit(
        name=".".join(part for part in (name, prefixes[0]) if part) if prefixes[0] else name,
        state={ours[key]: value for key, value in fitted.items()},
        missing=tuple(ours[key] for key in lacking if key not in kept),
        kept=tuple(ours[key] for key in kept),
        extra=tuple(full for key, full in inside.items() if key not in ours and key.rpartition(".")[2] not in COUNTERS),
        outside=tuple(full for key, full in theirs.items() if not key.startswith(before)),
        shapes=tuple(ours[key] for key, value in fitted.items() if value.shape != expected[ours[key]].shape),
    )


def _agreement(fit: Fit) -> tuple[int, int]:
    return len(fit.state) - len(fit.shapes), -len(fit.extra)


def _averaged(name: str) -> bool:
    return any(word.lower() in AVERAGED for word in _words(name))


def _words(name: str) -> list[str]:
    """Return the words of a name: state_dict_ema, stateDictEma."""
    return re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)


def _distinct(fits: list[Fit]) -> list[Fit]:
    """Return the fits in the order of choice, without those that hold the same tensors as one before."""
    names = [fit.name for fit in fits]

    def order(fit: Fit) -> tuple[bool, int, int, int]:
        first = "_".join(_words(fit.name.split(".")[0])).lower()
        return (
            _averaged(fit.name),
            len(fit.kept),
            USUAL.index(first) if first in USUAL else len(USUAL),
            names.index(fit.name),
        )

    distinct: list[Fit] = []
    for fit in sorted(fits, key=order):
        if not any(_same(fit.state, other.state) for other in distinct):
            distinct.append(fit)
    return distinct


def _same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(key not in other or torch.equal(value, other[key]) for key, value in state.items())


def _notes(first: Fit, others: list[Fit], place: str, named: str | None) -> list[str]:
    notes = []
    if others and named is None:
        kind = "averaged" if _averaged(others[0].name) else "others"
        names = ", ".join(repr(fit.name) for fit in others[:SHOWN])
        notes.append(
            f"{place} holds several sets of weights: {first.name or 'those at the top'!r} was taken; {names} ({kind}) by "
            f"@FILE#{others[0].name}."
        )
    elif _averaged(first.name) and named is None:
        notes.append(f"{place} holds averaged weights alone ({first.name!r}): they were taken.")
    if "+" in first.name:
        notes.append(f"{place} holds the weights in two parts: {first.name!r} were taken together.")
    if first.kept:
        notes.append(f"{place} lacks {', '.join(map(repr, first.kept[:SHOWN]))}: the factory's values were kept.")
    if first.outside:
        notes.append(
            f"{place} holds {len(first.outside)} more tensors that are not the network's, such as {first.outside[0]!r}."
        )
    return notes


def _other_network(fit: Fit, model: nn.Module, place: str, found: Mapping[str, dict[str, Tensor]]) -> UserError:
    missing, extra = (*fit.missing, *fit.kept) if not fit.state else fit.missing, fit.extra
    parts = [
        f"{len(keys)} keys are {noun}, the first is {keys[0]!r}"
        for noun, keys in (("missing from it", missing), ("not in the model", extra))
        if keys
    ]
    if not parts and fit.shapes:
        key = fit.shapes[0]
        parts = [
            f"{key!r} has the shape {tuple(fit.state[key].shape)} in the file and {tuple(model.state_dict()[key].shape)} in "
            "the model"
        ]
    keys = [key for state in found.values() for key in state]
    for pattern, hint in HINTS:
        if any(re.search(pattern, key) for key in keys):
            return UserError(f"{place} does not fit the model: {'; '.join(parts)}. {hint}", code="other-network")
    names = [name for name in found if name]
    sets = f" Its sets of weights: {', '.join(map(repr, names[:SHOWN]))}; name one with @FILE#NAME." if names else ""
    return UserError(
        f"{place} does not fit the model: {'; '.join(parts)}. Is it another architecture?{sets}", code="other-network"
    )
