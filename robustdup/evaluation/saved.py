"""Tensors with a few words about them, as the state of a run keeps them: sealed, so that damage is found when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from robustdup.records.sealed import read_sealed, write_sealed


def save_tensors(path: Path, tensors: Mapping[str, Tensor], head: Mapping[str, str]) -> None:
    """Write tensors and words into a state file. Raises RunError where the disk does not take it."""
    write_sealed(path, save(dict(tensors), metadata=dict(head)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and words of a file, sealed or not.

    Raises OSError, SafetensorError and ValueError where it is damaged.
    """
    content = read_sealed(path)
    tensors = load(content)
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    return tensors, head or {}
