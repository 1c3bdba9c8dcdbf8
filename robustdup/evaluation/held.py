"""What a run knows besides its model, held while an attack runs: threat models, samples, results, stages, settings.

An attack gets copies of what it needs, but may find the objects themselves by way of frames or the garbage collector, and
those that later calls go by too. What they consist of is noted before a call, and put back after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import operator
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.passes import Passes
from robustdup.evaluation.context import Context
from robustdup.plugins.options import Deferred
from robustdup.threat import ThreatModel

MOST_VALUES = (
    2**20
)  # of a tensor of the whole run that is compared at each call; larger ones are looked at again at its end
OWN = "robustdup."
NAMES = {ThreatModel: "the threat model", Context: "what the evaluation runs on"}
ONLY_TOLD = "only told"  # metadata of a field that grows with the run and decides nothing: it is not held

_Items = tuple[Any, ...]


class Held:
    """Objects of the engine, with all that they consist of, as they were at one time.

    Models and what counts their passes are not looked into: the guard has them apart. Tensors of `roots` are compared up to
    `MOST_VALUES`, those of `whole` whatever their size.
    """

    def __init__(self, *roots: Any, whole: Any = None) -> None:
        self._seen: dict[int, Any] = {}  # kept, so that no identity is given twice
        self._objects: list[tuple[Any, type, _Items]] = []
        self._tables: list[tuple[Any, _Items]] = []
        self._fractions: list[tuple[Fraction, int, int]] = []
        self._tensors: list[tuple[Tensor, bytes]] = []
        self._hold(whole, None)
        self._hold(roots, MOST_VALUES)

    def put_back(self) -> list[str]:
        """Put back what is different now, and return its names. Raises RuntimeError where tensors were changed."""
        changed = []
        for fraction, numerator, denominator in self._fractions:
            if (fraction.numerator, fraction.denominator) != (numerator, denominator):
                changed.append("a number of the run")
                parts: Any = fraction
                parts._numerator, parts._denominator = numerator, denominator
        for value, kind, content in self._objects:
            if type(value) is not kind or not _same(_items(vars(value)), content):
                changed.append(NAMES.get(kind, f"the run's {kind.__name__}"))
                object.__setattr__(value, "__class__", kind)
                _refill(vars(value), content)
        for table, content in self._tables:
            if not _same(_items(table), content):
                changed.append(f"a {type(table).__name__} of the run")
                _refill(table, content)
        if any(digest(tensor) != before for tensor, before in self._tensors):
            raise RuntimeError("images or labels that are judged, or what came of them")
        return changed

    def _hold(self, roots: Any, most: int | None) -> None:
        waiting = [roots]
        while waiting:
            value = waiting.pop()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, Tensor):
                if most is None or value.numel() <= most:
                    self._tensors.append((value, digest(value)))
            elif isinstance(value, Fraction):
                self._fractions.append((value, value.numerator, value.denominator))
            elif isinstance(value, (dict, list)):
                self._tables.append((value, _items(value)))
                waiting += value.values() if isinstance(value, dict) else value
            elif isinstance(value, tuple):
                waiting += value
            elif _is_own(value):
                if isinstance(value, Deferred):  # named now, not by the call that needs it
                    with contextlib.suppress(Exception):
                        value.function  # noqa: B018
                self._objects.append((value, type(value), _items(vars(value))))
                waiting += _parts(value)


def _is_own(value: Any) -> bool:
    """Say whether a value is an object of the engine that has fields, and is looked into."""
    if isinstance(value, (type, nn.Module, Passes)) or not type(value).__module__.startswith(OWN):
        return False
    return dataclasses.is_dataclass(value) and hasattr(value, "__dict__")


def _parts(value: Any) -> Iterator[Any]:
    only_told = {field.name for field in dataclasses.fields(value) if ONLY_TOLD in field.metadata}
    yield from (part for name, part in vars(value).items() if name not in only_told)


def _items(table: dict[Any, Any] | list[Any]) -> _Items:
    """Return what a dict or list holds as a tuple, which nobody can write into: keys, then values."""
    return (*table.keys(), *table.values()) if isinstance(table, dict) else tuple(table)


def _same(now: _Items, before: _Items) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _refill(table: dict[Any, Any] | list[Any], content: _Items) -> None:
    table.clear()
    if isinstance(table, dict):
        half = len(content) // 2
        table.update(zip(content[:half], content[half:], strict=True))
    else:
        table.extend(content)


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a dense tensor, so that NaN is equal to itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def digest(tensor: Tensor) -> bytes:
    """Return a digest of the values of a dense tensor, with its shape and type."""
    content = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    content.update(as_bytes(tensor).cpu().numpy().data)
    return content.digest()
