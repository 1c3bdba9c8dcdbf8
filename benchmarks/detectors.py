"""Tools that find duplicates, as their users call them: imagededup (hashes, a CNN) and cleanvision.

imagededup's own network (MobileNetV3, trained on ImageNet) is downloaded when it is first used. Here its door for networks
of one's own, `CustomModel`, is taken, so that any trained network can stand in where there is no such download; the time of
its own network is measured without its weights, which change no time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HASHES = {"phash": "PHash", "dhash": "DHash", "ahash": "AHash", "whash": "WHash"}


def write_images(pixels: Tensor, folder: Path, prefix: str = "") -> list[str]:
    """Write pixels uint8 (N, 3, H, W) as PNG files into a folder and return their names in order."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}{row:07d}.png" for row in range(len(pixels))]
    for name, image in zip(names, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image).save(folder / name, compress_level=1)
    return names


def hash_images(folder: Path, names: list[str], method: str, workers: int) -> tuple[Any, float]:
    """Return imagededup's hashes of the files as numpy (N, 8) uint8, and its seconds."""
    from imagededup import methods

    encoder = getattr(methods, HASHES[method])(verbose=False)
    started = time.perf_counter()
    hashes = encoder.encode_images(image_dir=str(folder), num_enc_workers=workers if workers > 1 else 0)
    seconds = time.perf_counter() - started
    return np.array([list(bytes.fromhex(hashes[name])) for name in names], np.uint8), seconds


def search_hashes(hashes: Any, queries: Any, distance: int, method: str) -> float:
    """Return the seconds of imagededup's search for queries among hashes.

    This is the part of its `find_duplicates` that searches, in one process: it hands all hashes over with each query, so
    that several processes take longer.
    """
    from imagededup import methods
    from imagededup.handlers.search.retrieval import HashEval

    finder = getattr(methods, HASHES[method])(verbose=False)
    known, asked = (
        {f"{name}{row}": bytes(code).hex() for row, code in enumerate(part)}
        for name, part in (("a", hashes), ("b", queries))
    )
    started = time.perf_counter()
    HashEval(
        test=known, queries=asked, distance_function=finder.hamming_distance, verbose=False, threshold=distance,
        num_dist_workers=0,
    ).retrieve_results(scores=False)  # fmt: skip
    return time.perf_counter() - started


def cnn(network: torch.nn.Module | None) -> Any:
    """Return imagededup's CNN with a network: images (N, 3, H, W) in [0, 1] -> features; its own, untrained, if None."""
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
    from imagededup.utils.models import MobilenetV3
    from torchvision.models import mobilenet_v3_small
    from torchvision.transforms import ToTensor

    if network is not None:
        return CNN(verbose=False, model_config=CustomModel("given", network, ToTensor()))
    own = mobilenet_v3_small(weights=None).eval()
    pooled = torch.nn.Sequential(own.features, own.avgpool, torch.nn.Flatten())
    return CNN(verbose=False, model_config=CustomModel("untrained", pooled, MobilenetV3.transform))


def encode(tool: Any, folder: Path, names: list[str]) -> tuple[Any, float]:
    """Return the features of files by imagededup's CNN, float32 (N, F), and its seconds."""
    started = time.perf_counter()
    encoded: Mapping[str, Any] = tool.encode_images(image_dir=str(folder))
    seconds = time.perf_counter() - started
    return np.stack([np.asarray(encoded[name], np.float32).ravel() for name in names]), seconds


def search_features(tool: Any, features: Any, similarity: float) -> tuple[float, int]:
    """Return the seconds of imagededup's own search for all pairs of a cosine similarity, and on how many rows it was timed.

    It holds all similarities in memory (2 bytes each, twice): where there is no room, the first 10,000 rows are timed and
    the seconds scaled with the square of the rows.
    """
    import psutil

    n = len(features)
    timed = n if psutil.virtual_memory().available > 6 * n * n else min(n, 10_000)
    encoded = {str(row): values for row, values in enumerate(features[:timed])}
    started = time.perf_counter()
    tool.find_duplicates(encoding_map=encoded, min_similarity_threshold=similarity, num_sim_workers=0)
    return (time.perf_counter() - started) * (n / timed) ** 2, timed


def cleanvision_pairs(pixels: Tensor, issue: dict[str, dict[str, Any]]) -> tuple[Any, float]:
    """Return the pairs (P, 2) of places that cleanvision takes for duplicates, and its seconds in one process.

    `issue` is one kind with its settings: `{"exact_duplicates": {}}`, or near_duplicates with hash_type and hash_size.
    """
    import datasets
    from cleanvision import Imagelab
    from PIL import Image

    features = datasets.Features({"image": datasets.Image()})
    images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    rows = datasets.Dataset.from_dict({"image": images}, features=features)
    lab = Imagelab(hf_dataset=rows, image_key="image", verbose=False)
    started = time.perf_counter()
    # Handing rows to two processes took it longer than hashing them in one.
    lab.find_issues(issue, n_jobs=1, verbose=False)
    seconds = time.perf_counter() - started
    (name,) = issue
    sets = lab.info.get(name, {}).get("sets", [])
    pairs = [(int(a), int(b)) for group in sets for i, a in enumerate(group) for b in group[i + 1 :]]
    return np.array(pairs, np.int64).reshape(-1, 2), seconds
