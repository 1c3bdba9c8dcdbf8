"""Kinds of changed copies among pictures of 96 pixels: robustdup beside the perceptual hashes of imagehash.

Originals are tiles of 96 pixels of the sample photographs that scikit-image and scikit-learn ship, those without contrast
left out; quarters of the 20 images of ImageNet that foolbox ships, on which nothing was fitted; and, where a dataset is named,
its first images enlarged to 96 pixels. Of some of them one copy of each kind is
made (`robustdup_detect.kinds`). Every tool looks for the copies among the originals. A pair of a copy with its own original
is right, every other one wrong. robustdup is taken at its usual threshold for all kinds, a hash for each kind at the distance
that finds most copies at a precision of 0.95 or more.

    uv run --group compare python -m benchmarks.kinds DATA --split test --n 300 --each 40
    uv run --group compare python -m benchmarks.kinds --only imagenet
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from robustdup_detect import near_duplicates
from robustdup_detect.kinds import KINDS
from torch import Tensor

from robustdup.config import DataOptions
from robustdup.data.cache import load_pixels
from robustdup.data.sources import open_samples
from robustdup.plugins import load_plugins

SIDE = 96
PHOTOGRAPHS = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg",
    "ihc.png", "retina.jpg", "coins.png", "brick.png", "grass.png", "gravel.png", "moon.png", "clock_motion.png",
)  # fmt: skip
LEAST_CONTRAST = 12  # standard deviation of a tile's grey levels
DISTANCES = np.arange(33)  # of hashes of 64 bits
GOOD = 0.95


def tiles(image: Image.Image) -> list[Any]:
    """Return the tiles uint8 (96, 96, 3) of a picture that show something, side by side without overlap."""
    image = image.convert("RGB")
    pixels = np.asarray(image if image.width <= 1000 else image.resize((image.width // 2, image.height // 2)))
    height, width = pixels.shape[:2]
    made = [
        pixels[top : top + SIDE, left : left + SIDE]
        for top in range(0, height - SIDE + 1, SIDE)
        for left in range(0, width - SIDE + 1, SIDE)
    ]
    return [tile for tile in made if tile.mean(axis=2).std() > LEAST_CONTRAST]


def photographs() -> list[Any]:
    """Return the tiles of the sample photographs of scikit-image and scikit-learn."""
    import skimage
    import sklearn

    folder = Path(skimage.__file__).parent / "data"
    files = [folder / name for name in PHOTOGRAPHS]
    files += sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
    return [tile for file in files for tile in tiles(Image.open(file))]


def imagenet() -> list[Any]:
    """Return the quarters uint8 (96, 96, 3) of foolbox's images of ImageNet, made smaller to 192 pixels."""
    import foolbox

    files = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
    images = (Image.open(file).convert("RGB") for file in files)
    return [tile for image in images for tile in tiles(image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS))]


def enlarged(data: str, split: str, n: int) -> list[Any]:
    """Return the first n images of a dataset, uint8 (96, 96, 3)."""
    rows = open_samples(data, DataOptions(split=split), load_plugins())
    pixels, _ = load_pixels(rows, range(min(n, len(rows))))
    images = (Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy())
    return [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images]


def copies_of(originals: list[Any], each: int, seed: int) -> tuple[list[Any], Any, list[str]]:
    """Return `each` copies of every kind, the original of each, and its kind."""
    rng = np.random.default_rng(seed)
    copies, source, names = [], [], []
    for name, kind in KINDS.items():
        for row in rng.permutation(len(originals))[:each].tolist():
            copies.append(np.asarray(kind(Image.fromarray(originals[row]), rng)))
            source.append(row)
            names.append(name)
    return copies, np.array(source), names


def counted(source: Any, names: list[str], pairs: Any) -> dict[str, tuple[float, float]]:
    """Return recall and precision of the pairs (copy, original) of each kind; precision is 1 where there are none."""
    right = source[pairs[:, 0]] == pairs[:, 1]
    kinds = np.array(names)
    made = {}
    for name in dict.fromkeys(names):
        of_kind = kinds[pairs[:, 0]] == name
        good = int((right & of_kind).sum())
        made[name] = good / int((kinds == name).sum()), good / max(int(of_kind.sum()), 1) if of_kind.any() else 1.0
    return made


def ours(originals: list[Any], copies: list[Any]) -> Any:
    """Return robustdup's pairs (P, 2) of a copy and an original."""
    first, second = (_tensor(images) for images in (copies, originals))
    pairs = near_duplicates(first, second)
    return torch.stack([pairs.a, pairs.b], dim=1).numpy()


def _tensor(images: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def hash_distances(originals: list[Any], copies: list[Any], method: str) -> Any:
    """Return the Hamming distances (copies, originals) of imagehash's `phash` or `dhash`."""
    import imagehash

    bits = [
        np.array([getattr(imagehash, method)(Image.fromarray(image)).hash.ravel() for image in images], np.float32)
        for images in (copies, originals)
    ]
    return np.round(bits[0].sum(axis=1)[:, None] + bits[1].sum(axis=1) - 2 * bits[0] @ bits[1].T)


def best_by_kind(source: Any, names: list[str], distances: Any) -> dict[str, tuple[float, float]]:
    """Return, for each kind, recall and precision at the distance that finds most with a good precision; (0, 1) for none."""
    best = dict.fromkeys(names, (0.0, 1.0))
    for most in DISTANCES:
        counts = counted(source, names, np.argwhere(distances <= most))
        best = {name: max(best[name], counts[name]) if counts[name][1] >= GOOD else best[name] for name in best}
    return best


def measure(
    originals: list[Any], each: int, seed: int, methods: tuple[str, ...] = ("phash", "dhash")
) -> dict[str, Any]:
    """Return recall and precision by kind and tool."""
    copies, source, names = copies_of(originals, each, seed)
    started = time.perf_counter()
    pairs = ours(originals, copies)
    seconds = time.perf_counter() - started
    wrong = pairs[source[pairs[:, 0]] != pairs[:, 1]]
    result = {
        "originals": len(originals), "copies": len(copies), "seconds": seconds,
        "wrong": [(names[a], int(source[a]), int(b)) for a, b in wrong], "robustdup": counted(source, names, pairs),
    }  # fmt: skip
    for method in methods:
        result[method] = best_by_kind(source, names, hash_distances(originals, copies, method))
    return result


def table(result: dict[str, Any], tools: tuple[str, ...] = ("robustdup", "phash", "dhash")) -> str:
    """Return recall by kind as a table in Markdown, with robustdup's precision."""
    lines = [f"| kind | precision | {' | '.join(tools)} |", f"|---|---|{'---|' * len(tools)}"]
    for kind, (_, precision) in result["robustdup"].items():
        recalls = " | ".join(f"{result[tool][kind][0]:.2f}" for tool in tools)
        lines.append(f"| {kind} | {precision:.2f} | {recalls} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", default=None, help="a dataset whose images are enlarged, too")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=300, help="images of the dataset")
    parser.add_argument("--each", type=int, default=40, help="copies of each kind")
    parser.add_argument("--only", choices=["photographs", "imagenet", "data"], default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sets = {"photographs": photographs, "imagenet": imagenet}
    if given.data:
        sets["data"] = lambda: enlarged(given.data, given.split, given.n)
    shown = [image for name, load in sets.items() if given.only in (None, name) for image in load()]
    result = measure(shown, given.each, given.seed)
    print(json.dumps({key: result[key] for key in ("originals", "copies", "seconds", "wrong")}))
    print(table(result))


if __name__ == "__main__":
    main()
