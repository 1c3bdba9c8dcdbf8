"""Weights from a file into a model: safetensors, or what `torch.load(weights_only=True)` takes; pickles only on request."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.errors import UserError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema")  # keys under which checkpoints nest
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning


def load_weights(model: nn.Module, file: Path, *, allow_pickle: bool = False) -> None:
    """Load a checkpoint into a model, strictly. Raises UserError for a broken file, a pickle, or keys that do not fit."""
    state = unwrap(read_checkpoint(file, allow_pickle=allow_pickle), model, file)
    expected = model.state_dict()
    missing, unexpected = _difference(expected, state), _difference(state, expected)
    if missing or unexpected:
        parts = [
            f"{len(keys)} keys are {what}, the first is {keys[0]!r}"
            for what, keys in (("missing from it", missing), ("not in the model", unexpected))
            if keys
        ]
        raise UserError(f"{str(file)!r} does not fit the model: {'; '.join(parts)}. Is it another architecture?")
    for name, value in expected.items():
        if isinstance(value, Tensor) and tuple(value.shape) != tuple(state[name].shape):
            raise UserError(
                f"{str(file)!r} does not fit the model: {name!r} has the shape {tuple(state[name].shape)} in the file and "
                f"{tuple(value.shape)} in the model."
            )
    model.load_state_dict(state)


def read_checkpoint(file: Path, *, allow_pickle: bool = False) -> Any:
    """Return what a checkpoint holds, on the CPU. Raises UserError for anything that is not one."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise UserError(f"{str(file)!r} is empty: the download or the copy failed.")
    if head.lstrip()[:1] == b"<":
        raise UserError(
            f"{str(file)!r} is a web page, not a checkpoint: the download failed. Open it to see what it says."
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{str(file)!r} is a Git LFS pointer, not the weights: run 'git lfs pull'.")
    if file.suffix != ".safetensors" and not head.startswith((b"PK", b"\x80")):  # a zip, or a bare pickle
        raise UserError(
            f"{str(file)!r} is not a checkpoint: neither safetensors (by its ending) nor written by torch.save."
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise _broken(file, error) from error
        if not allow_pickle:
            raise UserError(
                f"{str(file)!r} holds more than weights: loading it as a pickle can run any code of whoever made it. "
                "Save the state dict alone (safetensors, or torch.save(model.state_dict())), or, if you trust the file, "
                "give --allow-pickle."
            ) from error
    except Exception as error:
        raise _broken(file, error) from error
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _broken(file, error) from error


def unwrap(content: Any, model: nn.Module, file: Path) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint, without the usual wrappers and prefixes. Raises UserError."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    expected = set(model.state_dict())
    for _ in range(3):
        if not isinstance(content, Mapping) or expected & set(content):
            break
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping | nn.Module)), None)
        if inner is None:
            break
        content = inner.state_dict() if isinstance(inner, nn.Module) else inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{str(file)!r} holds a {type(content).__name__} without weights, not a state dict.")
    state = {str(key): value for key, value in content.items()}
    for _ in _PREFIXES:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None or expected & set(state):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _difference(some: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return [key for key in some if key not in others]


def _broken(file: Path, error: Exception) -> UserError:
    detail = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(f"{str(file)!r} is not a whole checkpoint: {detail} Download or copy it again.")
