"""An index on disk: what was computed of images and of pairs, so that a later search computes only what is new.

An image is known by its bytes, a pair by the decoded pixels of both. What depends on the whole set (which features tell
images apart, which are neighbours) is not kept but computed anew, so that a search with an index says what one without it
says. The folder holds, under the hash of what the values depend on (settings and versions), a manifest, parts of images (arrays
as in `store`) and parts of pairs; every file's hash stands in the manifest and is checked when a search begins.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from safetensors.numpy import load_file, save

from robustdup.errors import UserError, user_path
from robustdup.records import write_atomic
from robustdup_detect.groups import DIGEST
from robustdup_detect.options import DetectConfig
from robustdup_detect.store import LOCAL, Store

SCHEMA, VERSION = "robustdup.index", 2
MANIFEST, LOCK = "manifest.json", "lock"
IMAGES = ("keys", "hashes", "facts", "pictures")  # arrays of every part of images
ROWS = 5000  # rows that are copied at once
PairKind = Literal["pairs", "local"]  # compared as a whole, and by local features
WIDTHS: dict[PairKind, int] = {"pairs": 10, "local": 15}  # values of a pair
UNKNOWN, DIFFERENT, MEASURED = 0, 1, 2  # what is known of a pair: nothing; that it shows different pictures; its values


@dataclass(frozen=True)
class Part:
    """A part of an index: the name of its folder or file, and of images, which are numbered, its first number and their count."""

    name: str
    first: int = 0
    rows: int = 0


def depends_on(config: DetectConfig) -> dict[str, str]:
    """Return what the values of an index depend on: settings of the search and versions of what computes."""
    return {
        "version": str(VERSION), "background": config.background, "local": config.local,
        **{name: importlib.import_module(name).__version__ for name in ("PIL", "cv2", "torch")},
    }  # fmt: skip


@dataclass(frozen=True)
class ImageIndex:
    """What is known of images and pairs: whole parts in a folder of their own.

    Images have numbers in the order in which they came. `damaged` names parts whose files are not what they were.
    """

    folder: Path
    images: tuple[Part, ...] = ()
    pairs: tuple[Part, ...] = ()
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(part.rows for part in self.images)

    def image(self, key: Any) -> dict[str, Any] | None:
        """Return the values of the image whose bytes have a key uint8 (16,), by the name of their array; None for none."""
        number = int(self._by_key.find(key[None])[0])
        if number < 0:
            return None
        part = next(part for part in reversed(self.images) if part.first <= number)
        arrays, row = self._arrays(part), number - part.first
        local = "keypoints" in arrays and int(arrays["keypoints"][row]) > 0
        return {name: values[row] for name, values in arrays.items() if local or name not in LOCAL}

    def numbers(self, hashes: Any) -> Any:
        """Return the numbers int64 (N,) of images whose decoded pixels have these hashes uint8 (N, 16); -1 for none."""
        return self._by_hash.find(hashes)

    def known_keys(self, keys: Any) -> Any:
        """Return which images (N,) are known by the keys uint8 (N, 16) of their bytes."""
        return self._by_key.find(keys) >= 0

    def known_pairs(self, kind: PairKind, first: Any, second: Any, way: Any) -> tuple[Any, Any]:
        """Return what is known of pairs of numbers int64 (C,): UNKNOWN, DIFFERENT or MEASURED (C,), and the values (C, V)."""
        state, values = np.full(len(first), UNKNOWN, np.int8), np.zeros((len(first), WIDTHS[kind]), np.float32)
        asked = np.flatnonzero((first >= 0) & (second >= 0))
        keys = pair_keys(first[asked], second[asked], way[asked])
        for content in self._pair_parts(kind):
            position, is_known = _search(content["different"], keys)
            state[asked[is_known]] = DIFFERENT
            position, is_known = _search(content["measured"], keys)
            state[asked[is_known]] = MEASURED
            values[asked[is_known]] = content["values"][position[is_known]]
        return state, values

    def _store(self, part: Part) -> Store:
        return Store(self.folder / part.name, part.rows)

    def _arrays(self, part: Part) -> dict[str, Any]:
        if part.name not in self._opened:
            store = self._store(part)
            names = ["pictures", "hashes", "facts", *(LOCAL if store.has("keypoints") else ())]
            self._opened[part.name] = {name: store.read(name) for name in names}
        arrays: dict[str, Any] = self._opened[part.name]
        return arrays

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _by_key(self) -> _Numbers:
        return self._numbers("keys")

    @cached_property
    def _by_hash(self) -> _Numbers:
        return self._numbers("hashes")

    def _numbers(self, name: str) -> _Numbers:
        whole = [part for part in self.images if part.name not in self.damaged]
        keys = [np.array(self._store(part).read(name)) for part in whole]
        numbers = [np.arange(part.first, part.first + part.rows) for part in whole]
        return _Numbers(
            np.concatenate([*keys, np.empty((0, DIGEST), np.uint8)]),
            np.concatenate([*numbers, np.empty(0, np.int64)]).astype(np.int64),
        )

    def _pair_parts(self, kind: PairKind) -> list[dict[str, Any]]:
        if kind not in self._opened:
            whole = [part.name for part in self.pairs if part.name not in self.damaged and part.name.startswith(kind)]
            self._opened[kind] = [load_file(self.folder / name) for name in whole]
        parts: list[dict[str, Any]] = self._opened[kind]
        return parts


class _Numbers:
    """The numbers (N,) of keys uint8 (N, 16)."""

    def __init__(self, keys: Any, numbers: Any) -> None:
        heads = _heads(keys)
        order = np.argsort(heads, kind="stable")
        self._heads, self._keys, self._numbers = heads[order], keys[order], numbers[order]

    def find(self, keys: Any) -> Any:
        """Return the number of each key (P, 16), -1 where there is none."""
        position, is_known = _search(self._heads, _heads(keys))
        is_known &= (self._keys[position] == keys).all(axis=1) if len(self._keys) else False
        return np.where(is_known, self._numbers[position] if len(self._numbers) else -1, -1)


def _heads(keys: Any) -> Any:
    return np.ascontiguousarray(keys).view(np.uint64)[:, 0]


def _search(rising: Any, keys: Any) -> tuple[Any, Any]:
    """Return where keys (P,) are among rising ones, and which of them are."""
    position = np.minimum(np.searchsorted(rising, keys), max(len(rising) - 1, 0))
    return position, rising[position] == keys if len(rising) else np.zeros(len(keys), dtype=bool)


def pair_keys(first: Any, second: Any, way: Any) -> Any:
    """Return the keys uint64 (C,) of pairs of image numbers below 2^31, in this order, and a way of looking below 4."""
    high, low = first.astype(np.uint64), second.astype(np.uint64)
    return (high << np.uint64(33)) | (low << np.uint64(2)) | way.astype(np.uint64)


def open_index(place: str, config: DetectConfig) -> ImageIndex:
    """Return what an index holds for these settings, checked file by file; an empty one where it holds nothing.

    Raises UserError where the folder is something else.
    """
    root = user_path(place)
    if root.exists() and not root.is_dir():
        raise UserError(f"The index {place!r} is not a folder.", code="not-a-folder")
    if root.is_dir() and any(root.iterdir()) and not any(root.glob(f"*/{MANIFEST}")) and not (root / LOCK).is_file():
        raise UserError(
            f"The folder {place!r} holds other things than an index. Name a new folder for it.", code="not-an-index"
        )
    based = depends_on(config)
    name = hashlib.blake2b(json.dumps(based, sort_keys=True).encode(), digest_size=6).hexdigest()
    return _load(root / name)


def _load(folder: Path, *, check: bool = True) -> ImageIndex:
    path = folder / MANIFEST
    if not path.is_file():
        return ImageIndex(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["schema"], content["version"]) != (SCHEMA, VERSION):
            raise ValueError("of another version")
        images: list[Part] = []
        first = 0
        for part in content["images"]:
            images.append(Part(_plain(part["name"]), first, int(part["rows"])))
            first += images[-1].rows
        pairs = [Part(_plain(part["name"])) for part in content["pairs"]]
        damaged = [
            part["name"]
            for part in (*content["images"], *content["pairs"])
            if check and not all(_hash_of(folder / _plain(name)) == digest for name, digest in part["files"].items())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"The index's {str(path)!r} is not what was written ({error}). Remove {str(folder)!r}: it is made anew.",
            code="damaged-index",
        ) from None
    return ImageIndex(folder, tuple(images), tuple(pairs), tuple(damaged))


def _reloaded(index: ImageIndex) -> ImageIndex:
    """Return an index as it is now, with what came meanwhile."""
    return replace(_load(index.folder, check=False), damaged=index.damaged)


def _plain(name: Any) -> str:
    """Return the name of a file of an index. Raises ValueError for one that leads out of it."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"names {name!r}")
    return name


def _hash_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).hexdigest()


def save_opened(index: ImageIndex, state: Path) -> None:
    """Note in the state of a run which parts it reads, so that every worker reads these."""
    parts = [[[part.name, part.first, part.rows] for part in kind] for kind in (index.images, index.pairs)]
    content = {"folder": str(index.folder.absolute()), "parts": parts, "damaged": index.damaged}
    write_atomic(state / "index.json", json.dumps(content).encode())


def load_opened(state: Path) -> ImageIndex:
    """Return the index that `save_opened` noted."""
    content = json.loads((state / "index.json").read_text(encoding="utf-8"))
    images, pairs = (tuple(Part(*part) for part in kind) for kind in content["parts"])
    return ImageIndex(Path(content["folder"]), images, pairs, tuple(content["damaged"]))


def add_images(index: ImageIndex, stores: Iterable[Store]) -> int:
    """Add the images of stores that can be read and are not known by their bytes, and return how many came."""
    index.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(index.folder.parent / LOCK):
        added = 0
        for store in stores:
            index = _reloaded(index)
            keys, facts = np.array(store.read("keys")), store.read("facts")
            rows = np.flatnonzero((facts[:, 3] == 1) & ~index.known_keys(keys))
            _, once = np.unique(np.ascontiguousarray(keys[rows]).view(f"V{DIGEST}")[:, 0], return_index=True)
            rows = rows[np.sort(once)]
            if len(rows):
                _add_part(index, "images", _copied(index, store, rows))
                added += len(rows)
    return added


def _copied(index: ImageIndex, store: Store, rows: Any) -> dict[str, Any]:
    name = f"images-{len(index.images)}"
    part = Store(index.folder / name, len(rows))
    names = [*IMAGES, *(LOCAL if store.has("keypoints") else ())]
    part.create(names)
    for low in range(0, len(rows), ROWS):
        for array in names:
            part.write(array, low, store.read(array)[rows[low : low + ROWS]])
    files = {f"{name}/{array}.bin": _hash_of(part.folder / f"{array}.bin") for array in names}
    return {"name": name, "rows": len(rows), "files": files}


def add_pairs(index: ImageIndex, kind: PairKind, parts: Sequence[Mapping[str, Any]]) -> int:
    """Add pairs of images, given by the hashes of their decoded pixels, and return how many came.

    `found` are mappings of arrays: hashes_a, hashes_b (C, 16), way (C,), measured (C,) bool, values (P, V) of the measured.
    """
    with FileLock(index.folder.parent / LOCK):
        index = _reloaded(index)
        keys, measured, values = [], [], []
        for part in parts:
            first, second = index.numbers(part["hashes_a"]), index.numbers(part["hashes_b"])
            known = (first >= 0) & (second >= 0)
            keys.append(pair_keys(first[known], second[known], part["way"][known]))
            measured.append(part["measured"][known])
            values.append(part["values"][known[part["measured"]]])
        if not sum(map(len, keys)):
            return 0
        every, which = np.concatenate(keys), np.concatenate(measured)
        good, last = np.unique(every[which][::-1], return_index=True)  # what was found out later holds
        content = {
            "different": np.unique(every[~which]),
            "measured": good,
            "values": np.concatenate(values)[::-1][last],
        }
        name = f"{kind}-{len(index.pairs)}.safetensors"
        write_atomic(index.folder / name, save({key: np.ascontiguousarray(value) for key, value in content.items()}))
        _add_part(index, "pairs", {"name": name, "files": {name: _hash_of(index.folder / name)}})
        return len(content["different"]) + len(good)


def _add_part(index: ImageIndex, kind: str, part: dict[str, Any]) -> None:
    path = index.folder / MANIFEST
    content: dict[str, Any] = {"schema": SCHEMA, "version": VERSION, "images": [], "pairs": []}
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
    content[kind].append(part)
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
