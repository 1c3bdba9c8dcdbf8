"""Planted near duplicates: robustdup beside imagededup and cleanvision, on the same images, in the same run.

Some images of a split are replaced by changed copies of others; every tool then searches the whole set. It names pairs, and
those of a copy with its original are right. A copy that is paired with another image counts as wrong, unless that image and
the original are themselves listed by robustdup as duplicates in the split as it was: such pairs are set aside and counted
(`unclear`), for all tools alike; `strict_precision` counts them as wrong, and `--sheets` shows them. Other tools are taken
at every setting, and at their best: the highest recall with a precision of at least 0.95 where there is such a setting,
otherwise the highest F1. Then the same with identical copies.

    python -m benchmarks.detection DATA --planted 2100
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from robustdup_detect import near_duplicates
from robustdup_detect.embedding import load_embedding
from robustdup_detect.groups import digests, group_identical
from robustdup_detect.sheets import COLUMNS, LINES, write_sheet
from robustdup_detect.transforms import changed_copies
from torch import Tensor

from benchmarks import detectors
from robustdup.config import DataOptions
from robustdup.data.cache import load_pixels
from robustdup.data.sources import open_samples
from robustdup.errors import UserError
from robustdup.plugins import load_plugins
from robustdup.records import write_atomic

DISTANCES = np.arange(25)  # Hamming distances that are tried
SIMILARITIES = np.round(np.arange(0.999, 0.5, -0.003), 3)  # cosine similarities that are tried
GOOD = 0.95
SEARCHED = 1000  # hashes with which the search of imagededup is timed
BLOCK = 256  # copies whose distances to all originals are in memory at once


@dataclass(frozen=True)
class Planted:
    """A set of n originals (`pixels[:n]`) and copies after them; copy i is of original `chosen[i]`, changed by `names[i]`."""

    pixels: Tensor
    chosen: Any
    names: list[str]

    @property
    def n(self) -> int:
        """The number of originals."""
        return len(self.pixels) - len(self.chosen)


def plant(pixels: Tensor, planted: int, seed: int) -> Planted:
    """Return the set with changed copies in place of some of its images."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))
    source = torch.from_numpy(np.sort(order[: len(pixels) - planted]))
    chosen = rng.permutation(len(source))[:planted]
    copies, names = changed_copies(pixels[source[torch.from_numpy(chosen)]], rng)
    return Planted(torch.cat([pixels[source], copies]), chosen, names)


def plant_identical(pixels: Tensor, planted: int, seed: int) -> Planted:
    """Return the same with identical copies, among images that are all different."""
    rng = np.random.default_rng(seed)
    different = pixels[torch.from_numpy(group_identical(digests(pixels)).first)]
    order = torch.from_numpy(rng.permutation(len(different))[: len(different) - planted])
    chosen = rng.permutation(len(order))[:planted]
    originals = different[order]
    return Planted(torch.cat([originals, originals[torch.from_numpy(chosen)]]), chosen, ["identical"] * planted)


def figures(case: Planted, contender: Any, wrong: int, unclear: int) -> dict[str, Any]:
    """Return recall, precision and F1 of a tool that found these copies (P,) bool and named that many other pairs."""
    right = int(contender.sum())
    precision = right / (right + wrong) if right + wrong else 1.0
    recall = right / len(case.chosen)
    by_change = {name: float(contender[np.array(case.names) == name].mean()) for name in dict.fromkeys(case.names)}
    return {
        "recall": recall, "precision": precision, "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "strict_precision": right / (right + wrong + unclear) if right else 1.0, "right": right, "wrong": wrong,
        "unclear": unclear, "recall_by_change": by_change,
    }  # fmt: skip


def sort_pairs(case: Planted, pairs: Any, known: Any) -> dict[str, Any]:
    """Return the pairs (P, 2) of an original and a copy, sorted: `right`, `wrong`, `unclear`; `known` as of `known_pairs`."""
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    pairs = pairs[
        (pairs[:, 0] < case.n) & (pairs[:, 1] >= case.n)
    ]  # no two originals, no two copies: nothing is planted
    source = case.chosen[pairs[:, 1] - case.n]
    right = pairs[:, 0] == source
    unclear = ~right & np.isin(_key(pairs[:, 0], source, case.n), _key(known[:, 0], known[:, 1], case.n))
    return {"right": pairs[right], "wrong": pairs[~right & ~unclear], "unclear": pairs[unclear]}


def judged(case: Planted, pairs: Any, known: Any) -> dict[str, Any]:
    """Return the figures of a tool that named these pairs (P, 2) of places."""
    parts = sort_pairs(case, pairs, known)
    is_found = np.isin(np.arange(case.n, len(case.pixels)), parts["right"][:, 1])
    return figures(case, is_found, len(parts["wrong"]), len(parts["unclear"]))


def _key(a: Any, b: Any, n: int) -> Any:
    return np.minimum(a, b) * n + np.maximum(a, b)


def swept(case: Planted, blocks: Iterator[Any], settings: Any, known: Any) -> list[dict[str, Any]]:
    """Return the figures at each of the rising settings: pairs at most that far apart; `blocks` gives distances of copies
    to all originals (copies, n), block after block."""
    both = np.concatenate([known, known[:, ::-1]])
    alike = {int(a): both[both[:, 0] == a, 1] for a in np.intersect1d(both[:, 0], case.chosen)}
    total, own, other, start = np.zeros(len(settings), np.int64), [], [], 0
    for block in blocks:
        counts = np.bincount(np.searchsorted(settings, block.ravel()), minlength=len(settings) + 1)
        total += np.cumsum(counts[: len(settings)])
        source = case.chosen[start : start + len(block)]
        own.append(block[np.arange(len(block)), source])
        other += [block[row, alike[int(each)]] for row, each in enumerate(source) if int(each) in alike]
        start += len(block)
    distances, others = np.concatenate(own), np.concatenate([*other, np.empty(0)])
    made = []
    for setting, many in zip(settings, total, strict=True):
        is_found, unclear = distances <= setting, int((others <= setting).sum())
        made.append(figures(case, is_found, int(many) - int(is_found.sum()) - unclear, unclear))
    return made


def hamming(case: Planted, hashes: Any) -> Iterator[Any]:
    """Yield the Hamming distances of the copies to all originals, in blocks."""
    bits = np.unpackbits(hashes, axis=1).astype(np.float32)
    ones = bits.sum(axis=1)
    for start in range(case.n, len(bits), BLOCK):
        part = slice(start, start + BLOCK)
        yield np.round(ones[part, None] + ones[None, : case.n] - 2 * bits[part] @ bits[: case.n].T)


def cosine(case: Planted, features: Any) -> Iterator[Any]:
    """Yield one minus the cosine similarity of the copies to all originals, in blocks."""
    rows = F.normalize(torch.from_numpy(features), dim=1).numpy()
    for start in range(case.n, len(rows), BLOCK):
        yield 1 - rows[start : start + BLOCK] @ rows[: case.n].T


def best(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the setting with the highest recall at a good precision; where none is, with the highest F1."""
    good = [setting for setting in settings if setting["precision"] >= GOOD and setting["recall"] > 0]
    return (
        max(good, key=lambda setting: setting["recall"]) if good else max(settings, key=lambda setting: setting["f1"])
    )


def ours(pixels: Tensor) -> tuple[Any, float]:
    """Return robustdup's pairs (P, 2) at its usual threshold, and its seconds."""
    started = time.perf_counter()
    pairs = near_duplicates(pixels)
    return torch.stack([pairs.a, pairs.b], dim=1).numpy(), time.perf_counter() - started


@dataclass(frozen=True)
class PlantedBenchmark:
    """What the tools are given: the set and its files, the pairs that were alike before, processes, and the network of a CNN."""

    case: Planted
    folder: Path
    files: list[str]
    known: Any
    workers: int
    network: str
    sizes: tuple[int, ...]

    def measure(self, contender: str) -> dict[str, Any]:
        """Return the figures of a tool, `imagededup:phash`, `imagededup:cnn`, `cleanvision:phash`, …, at its best setting."""
        tool, _, kind = contender.partition(":")
        if tool == "cleanvision":
            return self._cleanvision(kind)
        return self._cnn() if kind == "cnn" else self._hashes(kind)

    def _hashes(self, kind: str) -> dict[str, Any]:
        hashes, seconds = detectors.hash_images(self.folder, self.files, kind, self.workers)
        tried = swept(self.case, hamming(self.case, hashes), DISTANCES, self.known)
        named = [
            {"setting": f"distance {d}", "distance": int(d), **scores}
            for d, scores in zip(DISTANCES, tried, strict=True)
        ]
        top = best(named)
        asked = hashes[:: max(len(hashes) // SEARCHED, 1)]
        searching = detectors.search_hashes(hashes, asked, top["distance"], kind) * len(hashes) / len(asked)
        top["search_timed_on"] = len(asked)
        return _measured(top, named, {"encode": seconds, "search": searching})

    def _cnn(self) -> dict[str, Any]:
        own = detectors.cnn(None)
        sample = self.files[:: max(len(self.files) // 500, 1)]
        with tempfile.TemporaryDirectory() as few:
            for name in sample:
                (Path(few) / name).symlink_to(self.folder / name)
            _, untrained = detectors.encode(own, Path(few), sample)
        tool = detectors.cnn(load_embedding(self.network, registry=load_plugins()))
        features, seconds = detectors.encode(tool, self.folder, self.files)
        tried = swept(self.case, cosine(self.case, features), 1 - SIMILARITIES, self.known)
        named = [
            {"setting": f"similarity {s}", "similarity": s, **scores}
            for s, scores in zip(SIMILARITIES, tried, strict=True)
        ]
        top = best(named)
        searching, timed = detectors.search_features(tool, features, top["similarity"])
        top = {
            **top, "network": self.network, "search_timed_on": timed,
            "encode_seconds_of_its_own_network": untrained * len(self.files) / len(sample),
        }  # fmt: skip
        return _measured(top, named, {"encode": seconds, "search": searching})

    def _cleanvision(self, kind: str) -> dict[str, Any]:
        named = []
        for size in self.sizes:
            issue = {"near_duplicates": {"hash_type": kind, "hash_size": size}}
            pairs, seconds = detectors.cleanvision_pairs(self.case.pixels, issue)
            scores = judged(self.case, pairs, self.known)
            named.append({"setting": f"size {size}", "seconds": {"all": seconds}, **scores})
        top = best(named)
        return _measured(top, named, top["seconds"])


def _measured(top: dict[str, Any], tried: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    short = [{key: each[key] for key in ("setting", "recall", "precision", "f1")} for each in tried]
    return {**top, "seconds": seconds, "tried": short}


def exact(case: Planted, folder: Path, workers: int) -> dict[str, Any]:
    """Return recall and precision on identical copies: robustdup, imagededup's hashes at distance 0, cleanvision's MD5."""
    nothing = np.empty((0, 2), np.int64)

    started = time.perf_counter()
    identical = np.stack(group_identical(digests(case.pixels)).others(), axis=1)
    result = {"robustdup": _short(judged(case, identical, nothing), time.perf_counter() - started)}
    files = detectors.write_images(case.pixels, folder)
    hashes, seconds = detectors.hash_images(folder, files, "phash", workers)
    (scores,) = swept(case, hamming(case, hashes), DISTANCES[:1], nothing)
    result["imagededup:phash, distance 0"] = _short(scores, seconds)
    pairs, seconds = detectors.cleanvision_pairs(case.pixels, {"exact_duplicates": {}})
    result["cleanvision: exact"] = _short(judged(case, pairs, nothing), seconds)
    return result


def _short(scores: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {**{key: scores[key] for key in ("recall", "precision", "right", "wrong")}, "seconds": seconds}


def show(case: Planted, parts: dict[str, Any], folder: Path) -> None:
    """Write pages of the pairs of each part of `sort_pairs` but the right ones: original, copy, and the copied original."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as files:

        def file(row: int) -> Path:
            path = Path(files) / f"{row}.png"
            if not path.exists():
                Image.fromarray(case.pixels[row].permute(1, 2, 0).numpy()).save(path)
            return path

        for name in ("unclear", "wrong"):
            rows = [
                (file(a), file(source), f"{a} beside the copied {source}")
                for a, b in parts[name].tolist()
                for source in [int(case.chosen[b - case.n])]
            ]
            for number in range(0, len(rows), COLUMNS * LINES):
                page = rows[number : number + COLUMNS * LINES]
                write_sheet(page, folder / f"{name}-{number // (COLUMNS * LINES) + 1:03d}.png")


def run(
    pixels: Tensor, planted: int, seed: int, contenders: list[str], *, sizes: tuple[int, ...] = (8,), workers: int = 1,
    network: str = "pyautoattack:resnet18", sheets: Path | None = None, before: dict[str, Any] | None = None,
    say: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of all contenders; `say` gets what is known so far after each.

    `before` are those of an earlier run of the same case, to which others are added.
    """
    case = plant(pixels, planted, seed)
    result: dict[str, Any] = {
        "images": len(case.pixels), "planted": planted, "seed": seed, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if before and all(before.get(key) == value for key, value in result.items()):
        result = before
        known = np.array(before["alike_before"], np.int64).reshape(-1, 2)
    else:
        pairs, seconds = ours(case.pixels)
        known = pairs[pairs[:, 1] < case.n]
        if sheets is not None:
            show(case, sort_pairs(case, pairs, known), sheets)
        own = {"setting": "usual threshold", "seconds": {"all": seconds}, **judged(case, pairs, known)}
        result |= {"alike_before": known.tolist(), "contenders": {"robustdup": own}}
    say(result)
    with tempfile.TemporaryDirectory() as folder:
        files = detectors.write_images(case.pixels, Path(folder) / "near") if contenders else []
        benchmark = PlantedBenchmark(case, Path(folder) / "near", files, known, workers, network, sizes)
        for name in contenders:
            result["contenders"][name] = benchmark.measure(name)
            say(result)
        if contenders and "exact" not in result:
            result["exact"] = exact(plant_identical(pixels, planted, seed), Path(folder) / "exact", workers)
            say(result)
    return result


def main() -> None:
    """Read the command line, print the figures, and keep them in a file after every contender."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", default="builtin:digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--n", type=int, default=None, help="the first images; all if not given")
    parser.add_argument("--planted", type=int, default=2100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch, and processes of the others")
    parser.add_argument("--sizes", default="4,6,8,12,16", help="hash sizes for cleanvision")
    parser.add_argument("--network", default="pyautoattack:resnet18", help="network for imagededup's CNN")
    parser.add_argument(
        "--contenders",
        default="imagededup:phash,imagededup:dhash,imagededup:ahash,imagededup:whash,imagededup:cnn,cleanvision:phash",
        help="separated by commas; none for robustdup alone",
    )
    parser.add_argument("--sheets", type=Path, default=None, help="folder for pages of our pairs that are not right")
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "robustdup-detection.json"))
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    rows = open_samples(given.data, DataOptions(split=given.split), load_plugins())
    pixels, _ = load_pixels(rows, range(min(given.n or len(rows), len(rows))))
    if pixels.dtype != torch.uint8 or pixels.shape[1] != 3:
        raise UserError("This benchmark needs colour images of 8 bits.")
    if not 0 < 2 * given.planted <= len(pixels):
        raise UserError(f"planted = {given.planted}: it must be at most half of {len(pixels)}.")
    names = [name for name in given.contenders.split(",") if name and name != "none"]
    out = Path(given.out)

    def say(result: dict[str, Any]) -> None:
        write_atomic(out, json.dumps(result, indent=2).encode())

    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
    result = run(
        pixels, given.planted, given.seed, names, sizes=tuple(int(size) for size in given.sizes.split(",")),
        workers=torch.get_num_threads(), network=given.network, sheets=given.sheets, before=before, say=say,
    )  # fmt: skip
    for name, contender in result["contenders"].items():
        print(json.dumps({"contender": name, **{key: value for key, value in contender.items() if key != "tried"}}))
    print(json.dumps(result.get("exact")))


if __name__ == "__main__":
    main()
