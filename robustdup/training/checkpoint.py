"""Checkpoints: weights for others (safetensors), and the state from which a run goes on, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as save_tensors
from torch import Tensor

from robustdup.records import write_atomic


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors. Raises RunError where it cannot be written."""
    write_atomic(path, save_tensors({name: value.detach().cpu().contiguous() for name, value in state.items()}))
