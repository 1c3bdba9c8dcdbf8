"""From a configuration to a record of duplicates: what finds candidates is opened here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdup.errors import UserError
from robustdup.plugins import load_plugins
from robustdup_detect import run_detection
from robustdup_detect.embedding import Embedding, load_embedding
from robustdup_detect.features import Embedder
from robustdup_detect.options import CLASSICAL, DetectConfig
from robustdup_detect.record import DuplicatesRecord


def detect(config: DetectConfig, folder: Path, **options: Any) -> DuplicatesRecord:
    """Find duplicates as `config` says; `options` are those of `run_detection`. Raises UserError and RunError."""
    if config.embedding == CLASSICAL:
        return run_detection(config, folder, **options)
    _try(config.embedding)  # a mistake shows before anything is read
    return run_detection(config, folder, open_embedder=partial(open_embedder, config.embedding), **options)


def open_embedder(spec: str) -> Embedder:
    """Return the network of a spec as what turns pictures uint8 (N, 3, size, size) into features (N, F)."""
    network = load_embedding(spec, registry=load_plugins())
    return Embedder(network.size, partial(_describe, network))


def _describe(network: Embedding, pictures: Tensor) -> Tensor:
    found: Tensor = torch.cat([network(part.float() / 255) for part in torch.split(pictures, 256)])
    return found


def _try(spec: str) -> None:
    embedder = open_embedder(spec)
    try:
        embedder.describe(torch.zeros(1, 3, embedder.size, embedder.size, dtype=torch.uint8))
    except (RuntimeError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"The network {spec!r} does not take colour images of {embedder.size} x {embedder.size} pixels: {text[:300]}"
        ) from error
