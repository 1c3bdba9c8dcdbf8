"""Planted near duplicates: robustdup beside imagededup and cleanvision, on the same images, in the same run.

Some images of a split are replaced by changed copies of others. A contender names pairs; those of a copy with its original
are right. A copy that is paired with another image counts as wrong, unless that image and the original are themselves listed
as duplicates in the split as it was: such pairs are set aside and counted (`unclear`), for robustdup and the others alike, and
`strict_precision` counts them as wrong. Baselines are taken at every setting, and at their best: the highest recall with
a precision of at least 0.95 where there is such a setting, otherwise the highest F1.

    python -m robustdup.bench.detection DATA --planted 2100
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup.data.detect import near_duplicates
from robustdup.data.detect.exact import digests, group_identical
from robustdup.data.detect.transforms import NAMES, changed_copies
from robustdup.data.options import DataOptions
from robustdup.data.pixels import load_pixels
from robustdup.data.sources import open_rows
from robustdup.errors import UserError
from robustdup.records import write_atomic
from robustdup.registry import load_plugins

HASHES = {"phash": "PHash", "dhash": "DHash", "ahash": "AHash", "whash": "WHash"}
MOST_BITS = 24  # Hamming distances that are tried
SIZES = (4, 6, 8, 12, 16)  # hash sizes that are tried with cleanvision
GOOD = 0.95


def plant(pixels: Tensor, planted: int, seed: int) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Return the set with copies in place of its last images, the originals' rows (P,), the changes, and the left out rows."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))
    source = torch.from_numpy(np.sort(order[: len(pixels) - planted]))
    chosen = torch.from_numpy(rng.permutation(len(source))[:planted])
    copies, names = changed_copies(pixels[source[chosen]], rng)
    return torch.cat([pixels[source], copies]), chosen, names, source


def judged(pairs: Any, chosen: Any, n: int, known: set[tuple[int, int]]) -> dict[str, Any]:
    """Return recall and precision of pairs (P, 2) of places in a set of n originals with the copies after them."""
    right, wrong, unclear = set[int](), 0, 0
    for a, b in np.unique(np.sort(pairs, axis=1), axis=0).tolist():
        if b < n or a >= n:  # two originals, or two copies: neither planted as a pair
            continue
        source = int(chosen[b - n])
        if a == source:
            right.add(b - n)
        elif (min(a, source), max(a, source)) in known:
            unclear += 1
        else:
            wrong += 1
    found = len(right)
    precision = found / (found + wrong) if found + wrong else 1.0
    recall = found / len(chosen)
    return {
        "recall": recall, "precision": precision, "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "strict_precision": found / (found + wrong + unclear) if found else 1.0, "right": found, "wrong": wrong,
        "unclear": unclear, "rows": sorted(right),
    }  # fmt: skip


def ours(copies: Tensor, originals: Tensor, n: int) -> tuple[Any, float]:
    """Return robustdup's pairs (place of the original, place of the copy) at its usual threshold, and its seconds."""
    started = time.perf_counter()
    pairs = near_duplicates(copies, originals)
    return torch.stack([pairs.b, n + pairs.a], dim=1).numpy(), time.perf_counter() - started


def duplicates_before(chosen: Tensor, originals: Tensor) -> set[tuple[int, int]]:
    """Return the pairs of an original that was chosen with another one that robustdup lists as its duplicate."""
    pairs = near_duplicates(originals[chosen], originals)
    rows = zip(chosen[pairs.a].tolist(), pairs.b.tolist(), strict=True)
    return {(min(a, b), max(a, b)) for a, b in rows if a != b}


def imagededup_hashes(pixels: Tensor, method: str) -> tuple[Any, float]:
    """Return imagededup's hashes as numpy (N, 8) uint8, and its seconds."""
    from imagededup import methods

    encoder = getattr(methods, HASHES[method])(verbose=False)
    images = pixels.permute(0, 2, 3, 1).numpy()
    started = time.perf_counter()
    hashes = [encoder.encode_image(image_array=image) for image in images]
    seconds = time.perf_counter() - started
    return np.array([list(bytes.fromhex(text)) for text in hashes], np.uint8), seconds


def imagededup_search(hashes: Any, distance: int, method: str) -> float:
    """Return the seconds of imagededup's own search at a distance."""
    from imagededup import methods

    finder = getattr(methods, HASHES[method])(verbose=False)
    encoded = {str(row): bytes(code).hex() for row, code in enumerate(hashes)}
    started = time.perf_counter()
    finder.find_duplicates(encoding_map=encoded, max_distance_threshold=distance, num_dist_workers=0)
    return time.perf_counter() - started


def hamming(hashes: Any, n: int) -> Any:
    """Return (original, copy, bits) of all pairs of an original (place below n) and a copy that differ in few bits."""
    bits = np.unpackbits(hashes, axis=1).astype(np.float32)
    found = []
    for start in range(n, len(bits), 256):
        part = bits[start : start + 256]
        distance = part.sum(1)[:, None] + bits[:n].sum(1)[None] - 2 * part @ bits[:n].T
        copy, original = np.nonzero(distance <= MOST_BITS + 0.5)
        found.append(np.stack([original, copy + start, distance[copy, original].astype(np.int64)], axis=1))
    return np.concatenate(found)


def cleanvision_groups(pixels: Tensor, kind: str, size: int) -> tuple[Any, float]:
    """Return the pairs that cleanvision takes for near duplicates (equal hashes), and its seconds."""
    import datasets
    from cleanvision import Imagelab
    from PIL import Image

    features = datasets.Features({"image": datasets.Image()})
    images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    rows = datasets.Dataset.from_dict({"image": images}, features=features)
    lab = Imagelab(hf_dataset=rows, image_key="image", verbose=False)
    started = time.perf_counter()
    lab.find_issues({"near_duplicates": {"hash_type": kind, "hash_size": size}}, n_jobs=1, verbose=False)
    seconds = time.perf_counter() - started
    sets = lab.info.get("near_duplicates", {}).get("sets", [])
    pairs = [(int(a), int(b)) for group in sets for i, a in enumerate(group) for b in group[i + 1 :]]
    return np.array(pairs, np.int64).reshape(-1, 2), seconds


def best(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the setting with the highest recall at a good precision; where none is, with the highest F1."""
    good = [one for one in settings if one["precision"] >= GOOD and one["recall"] > 0]
    return max(good, key=lambda one: one["recall"]) if good else max(settings, key=lambda one: one["f1"])


def run(
    pixels: Tensor, planted: int, seed: int, contenders: list[str], sizes: tuple[int, ...],
    say: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of all contenders; `say` gets what is known so far after each."""
    whole, chosen, names, source = plant(pixels, planted, seed)
    n = len(source)
    result: dict[str, Any] = {
        "images": len(whole), "planted": planted, "seed": seed, "threads": torch.get_num_threads(), "contenders": {},
    }  # fmt: skip
    pairs, seconds = ours(whole[n:], whole[:n], n)
    known = duplicates_before(chosen, whole[:n])
    found = judged(pairs, chosen, n, known)
    found["recall_by_change"] = _by_change(found, names)
    result["contenders"]["robustdup"] = {
        "setting": "usual threshold",
        "copies_against_originals_seconds": seconds,
        **found,
    }
    say(result)
    for name in contenders:
        tool, _, kind = name.partition(":")
        tried: list[dict[str, Any]] = []
        if tool == "imagededup":
            hashes, seconds = imagededup_hashes(whole, kind)
            near = hamming(hashes, n)
            for distance in range(MOST_BITS + 1):
                at = judged(near[near[:, 2] <= distance, :2], chosen, n, known)
                tried.append({"setting": f"distance {distance}", "distance": distance, **at})
            top = best(tried)
            top["seconds"] = seconds + imagededup_search(hashes, top["distance"], kind)
        else:
            for size in sizes:
                pairs, seconds = cleanvision_groups(whole, kind, size)
                tried.append({"setting": f"size {size}", "seconds": seconds, **judged(pairs, chosen, n, known)})
            top = best(tried)
        top["recall_by_change"] = _by_change(top, names)
        result["contenders"][name] = {**top, "tried": [_short(one) for one in tried]}
        say(result)
    result["exact"] = exact(pixels, planted, seed)
    say(result)
    return result


def exact(pixels: Tensor, planted: int, seed: int) -> dict[str, float]:
    """Return recall and precision on planted identical copies: hashes of decoded pixels."""
    rng = np.random.default_rng(seed)
    first = group_identical(digests(pixels)).first
    different = pixels[torch.from_numpy(first)]
    chosen = rng.permutation(len(different))[:planted]
    a, b = group_identical(digests(torch.cat([different, different[chosen]]))).others()
    right = {(int(source), len(different) + place) for place, source in enumerate(chosen)}
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    return {"recall": len(found & right) / len(right), "precision": len(found & right) / max(len(found), 1)}


def _by_change(found: dict[str, Any], names: list[str]) -> dict[str, float]:
    rows = set(found.pop("rows"))
    return {
        name: sum(row in rows for row in places) / len(places)
        for name in NAMES
        if (places := [row for row, each in enumerate(names) if each == name])
    }


def _short(one: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key in ("setting", "recall", "precision", "f1", "seconds")}


def main() -> None:
    """Read the command line, print the figures, and keep them in a file after every contender."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", default="builtin:digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--n", type=int, default=None, help="the first images; all if not given")
    parser.add_argument("--planted", type=int, default=2100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--sizes", default="4,6,8,12,16", help="hash sizes for cleanvision")
    parser.add_argument(
        "--contenders", default="imagededup:phash,imagededup:dhash,imagededup:ahash,imagededup:whash,cleanvision:phash",
        help="separated by commas; none for robustdup alone",
    )  # fmt: skip
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "robustdup-detection.json"))
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    rows = open_rows(given.data, DataOptions(split=given.split), load_plugins())
    pixels, _ = load_pixels(rows, range(min(given.n or len(rows), len(rows))))
    if pixels.dtype != torch.uint8 or pixels.shape[1] != 3:
        raise UserError("This bench needs colour images of 8 bits.")
    if not 0 < 2 * given.planted <= len(pixels):
        raise UserError(f"planted = {given.planted}: it must be at most half of {len(pixels)}.")
    names = [name for name in given.contenders.split(",") if name and name != "none"]

    def say(result: dict[str, Any]) -> None:
        write_atomic(Path(given.out), json.dumps(result, indent=2).encode())

    sizes = tuple(int(size) for size in given.sizes.split(","))
    print(json.dumps(run(pixels, given.planted, given.seed, names, sizes, say), indent=2))


if __name__ == "__main__":
    main()
