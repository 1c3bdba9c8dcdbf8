"""What a model said of each set of corrupted images: kept set by set while a run goes on, and found again by `--resume`."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustdup.data.batches import to_bytes
from robustdup.records import atomic_path

SETS = "sets"  # in the state of a run
Key = tuple[str, int]  # kind, severity
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class JudgedSet:
    """What a model said of the images of one kind at one severity, by sample (n,), and what the images were.

    `right` is the share of draws in which it was right, `margin` its mean margin; `picture` (H, W, C) the first image;
    `pixels` the SHA-256 of all as 8-bit values. `seconds`, of which `making` for making the images.
    """

    right: Tensor
    prediction: Tensor
    margin: Tensor
    labels: Tensor
    index: Tensor
    picture: Array
    pixels: str
    seconds: float = 0.0
    making: float = 0.0


Judged = dict[Key, JudgedSet]
TENSORS = ("right", "prediction", "margin", "labels", "index")


def pixels_digest(images: Tensor) -> str:
    """Return the SHA-256 of images (N, C, H, W) in [0, 1] as 8-bit values, with their shape."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in torch.split(images, 256):
        digest.update(to_bytes(part).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_set(state: Path, key: Key, judged: JudgedSet) -> None:
    """Keep what was said of one set in the state of a run, whole or not at all."""
    content = {name: getattr(judged, name).numpy() for name in TENSORS}
    content |= {"picture": judged.picture, "pixels": np.array(judged.pixels)}
    content |= {"times": np.array([judged.seconds, judged.making])}
    with atomic_path(_place(state, key)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)


def saved_sets(state: Path, keys: list[Key]) -> Judged:
    """Return those of the sets that are kept in the state of a run; what is damaged counts as not there."""
    saved: Judged = {}
    for key in keys:
        try:
            with np.load(_place(state, key), allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(file[name]) for name in TENSORS}
                seconds, making = map(float, file["times"])
                picture, pixels = file["picture"], str(file["pixels"])
            saved[key] = JudgedSet(**tensors, picture=picture, pixels=pixels, seconds=seconds, making=making)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            continue
    return saved


def _place(state: Path, key: Key) -> Path:
    return state / SETS / f"{key[0]}-{key[1]}.npz"


def table_of(judged: Judged) -> dict[str, Any]:
    """Return columns with a row for each image: index, label, kind, severity, prediction, correct_share, margin."""
    sizes = [len(each.right) for each in judged.values()]
    return {
        "index": torch.cat([each.index for each in judged.values()]).numpy(),
        "label": torch.cat([each.labels for each in judged.values()]).numpy(),
        "kind": pa.array(np.repeat([kind for kind, _ in judged], sizes)),
        "severity": np.repeat([severity for _, severity in judged], sizes),
        "prediction": torch.cat([each.prediction for each in judged.values()]).numpy(),
        "correct_share": torch.cat([each.right for each in judged.values()]).numpy(),
        "margin": torch.cat([each.margin for each in judged.values()]).numpy(),
    }
