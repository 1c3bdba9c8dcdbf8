"""The files of CIFAR, MNIST, SVHN and STL-10, as their authors distribute them: pickles, records, idx and MATLAB files.

torchvision reads them too, but demands the official checksums; files of ones own in the same form are read here.
Sources: https://www.cs.toronto.edu/~kriz/cifar.html, http://yann.lecun.com/exdb/mnist/, http://ufldl.stanford.edu/housenumbers/.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.data.arrays import Arrays, make_arrays
from robustdup.data.layouts.opened import Opened, chosen_set
from robustdup.errors import UserError
from robustdup.inflation import allowed, check_unpacked, check_zip, read_text

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SAFE = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Reads pickles of plain values and NumPy arrays; anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read_plain_pickle(file: Path) -> dict[str, Any]:
    """Return a pickled dict, or pair, of plain values and arrays by text keys; no code of the file runs. Raises UserError."""
    try:
        with file.open("rb") as stream:
            content = _Plain(stream, encoding="bytes").load()
    except Exception as error:
        raise UserError(
            f"{str(file)!r} is not a pickle of plain arrays ({' '.join(str(error).split())}); no other is read.",
            code="bad-file",
        ) from error
    if isinstance(content, tuple | list) and len(content) == 2:
        content = dict(zip(("images", "labels"), content, strict=True))
    if not isinstance(content, dict):
        raise UserError(
            f"{str(file)!r} holds a {type(content).__name__}, not the arrays of a dataset.", code="bad-file"
        )
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def open_known(root: Path, config: str | None = None, *, only: str | None = None) -> Opened | None:
    """Return the splits of a folder in one of these forms, or of one of its folders; None for another folder.

    `only` names the set that is meant, as torchvision calls it, and `config` one of several of EMNIST. Raises UserError where
    several sets lie side by side.
    """
    inner = sorted(place for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
    raw = [place / "raw" for place in inner if (place / "raw").is_dir()]
    for places in ([root], [*inner, *raw]):
        found = {
            place: splits
            for place in places
            for name, reads in _READERS.items() if only in (None, name)
            for read in reads if (splits := read(place, config))
        }  # fmt: skip
        if len(found) > 1:
            raise UserError(
                f"{str(root)!r} has several sets of images. Name one of them: {', '.join(map(str, found))}.",
                code="bad-data",
            )
        for splits in found.values():
            return Opened(dict(splits))
    return None


def _cifar10_python(place: Path, _: str | None) -> dict[str, Arrays]:
    splits = {}
    for end, read in (("", read_plain_pickle), (".mat", _read_matlab)):
        for split, files in (
            ("train", sorted(place.glob(f"data_batch_[0-9]{end}"))), ("test", [place / f"test_batch{end}"])
        ):  # fmt: skip
            if files and all(file.is_file() for file in files):
                names = _names(place / "batches.meta", "label_names") or (list(CIFAR10) if end else [])
                splits[split] = _cifar([read(file) for file in files], "labels", names, f"{place} ({split})")
    return splits


def _read_matlab(file: Path) -> dict[str, Any]:
    """Return the arrays of CIFAR's MATLAB files. Raises UserError."""
    import scipy.io

    try:
        return dict(scipy.io.loadmat(io.BytesIO(file.read_bytes()), squeeze_me=True))
    except Exception as error:
        raise UserError(f"{str(file)!r} cannot be read as a MATLAB file: {error}.", code="bad-file") from error


def _cifar100_python(place: Path, _: str | None) -> dict[str, Arrays]:
    if not ((place / "meta").is_file() and ((place / "train").is_file() or (place / "test").is_file())):
        return {}
    names = _names(place / "meta", "fine_label_names")
    splits = [split for split in ("train", "test") if (place / split).is_file()]
    return {s: _cifar([read_plain_pickle(place / s)], "fine_labels", names, f"{place} ({s})") for s in splits}


def _names(file: Path, key: str) -> list[str]:
    names = read_plain_pickle(file).get(key, []) if file.is_file() else []
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _cifar(parts: list[dict[str, Any]], key: str, names: list[str], place: str) -> Arrays:
    try:
        pixels = np.concatenate([np.asarray(part["data"]).reshape(-1, 3, 32, 32) for part in parts])
        return make_arrays(pixels, np.concatenate([np.asarray(part[key]) for part in parts]), place, class_names=names)
    except (KeyError, ValueError) as error:
        raise UserError(f"{place} is not in CIFAR's form: {error}.", code="bad-file") from error


def _cifar10_binary(place: Path, _: str | None) -> dict[str, Arrays]:
    names = _lines(place / "batches.meta.txt") or list(CIFAR10)
    files = {"train": sorted(place.glob("data_batch_[0-9].bin")), "test": sorted(place.glob("test_batch.bin"))}
    return {split: _records(of_split, 1, names, f"{place} ({split})") for split, of_split in files.items() if of_split}


def _cifar100_binary(place: Path, _: str | None) -> dict[str, Arrays]:
    if not (place / "fine_label_names.txt").is_file():
        return {}
    names = _lines(place / "fine_label_names.txt")
    files = {split: [place / f"{split}.bin"] for split in ("train", "test") if (place / f"{split}.bin").is_file()}
    return {split: _records(of_split, 2, names, f"{place} ({split})") for split, of_split in files.items()}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()] if file.is_file() else []


def _records(files: list[Path], head: int, names: list[str], place: str) -> Arrays:
    """Read records of `head` label bytes, the last of which is the class, and 3,072 pixels."""
    content = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files])
    if content.size == 0 or content.size % (head + 3072):
        raise UserError(f"{place} is not made of records of {head + 3072} bytes.", code="bad-file")
    rows = content.reshape(-1, head + 3072)
    return make_arrays(rows[:, head:].reshape(-1, 3, 32, 32), rows[:, head - 1], place, class_names=names)


def _idx(place: Path, config: str | None) -> dict[str, Arrays]:
    """Read idx files of images and labels; what stands before train, test or t10k in their names tells sets apart (EMNIST)."""
    files: dict[tuple[str, str], dict[str, Path]] = {}
    for file in sorted(place.glob("*idx*"), key=lambda file: file.suffix != ".gz"):
        match = re.fullmatch(r"(.*?)(train|test|t10k).*?(images|labels).*", file.name)
        if match and file.is_file():
            split = "train" if match[2] == "train" else "test"
            files.setdefault((match[1].strip("-_."), split), {})[match[3]] = file
    whole = {key: pair for key, pair in files.items() if len(pair) == 2}
    if not whole:
        return {}
    sets = [name.removeprefix("emnist-") for name in dict.fromkeys(name for name, _ in whole)]
    chosen = chosen_set(sets, place, config)
    return {
        split: make_arrays(read_idx(pair["images"]), _first_column(read_idx(pair["labels"])), f"{place} ({split})")
        for (name, split), pair in whole.items()
        if name.removeprefix("emnist-") == chosen
    }


def _first_column(labels: np.typing.NDArray[Any]) -> np.typing.NDArray[Any]:
    """Return the classes of QMNIST, whose labels have seven more columns (https://github.com/facebookresearch/qmnist)."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 8 else labels


def _unzipped(file: Path) -> bytes:
    """Return what a .gz holds. Raises UserError where that is far more than it should."""
    with gzip.open(file) as stream:
        content = stream.read(allowed(file) + 1)
    check_unpacked(file, len(content))
    return content


def read_idx(file: Path) -> np.typing.NDArray[Any]:
    """Return the array of an idx file, which may be gzipped. Raises UserError."""
    try:
        raw = file.read_bytes()
        content = _unzipped(file) if raw[:2] == b"\x1f\x8b" else raw
        zeros, kind, dims = struct.unpack(">HBB", content[:4])
        if zeros != 0:
            raise ValueError("it does not begin as one")
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
        dtype = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}[kind]
        values = np.frombuffer(content, dtype=dtype, offset=4 + 4 * dims, count=math.prod(shape)).reshape(shape)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, struct.error) as error:
        raise UserError(f"{str(file)!r} is not a whole idx file: {error}.", code="bad-file") from error
    return values.astype(values.dtype.newbyteorder("="))


def is_svhn(file: Path) -> bool:
    """Tell a MATLAB file of SVHN by its name, or by X (32, 32, 3, N) and y with tens; others are files of arrays."""
    if "32x32" in file.stem:
        return True
    import scipy.io

    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(str(file))}
        if shapes.get("X", ())[:3] != (32, 32, 3) or "y" not in shapes:
            return False
        labels = scipy.io.loadmat(str(file), variable_names=["y"])["y"]
    except Exception:  # noqa: BLE001
        return False  # who reads it says what is wrong
    return int(labels.max()) == 10 and int(labels.min()) == 1


def read_svhn(file: Path) -> Arrays:
    """Return the images and labels of a MATLAB file in SVHN's form, X (32, 32, 3, N) and y; ten stands for the digit 0."""
    import scipy.io

    try:
        content = scipy.io.loadmat(io.BytesIO(file.read_bytes()))
        images, labels = content["X"], content["y"].astype(np.int64).reshape(-1)
    except KeyError as error:
        raise UserError(f"{str(file)!r} has no {error}; SVHN's files have X and y.", code="bad-file") from error
    except Exception as error:
        raise UserError(f"{str(file)!r} cannot be read as a MATLAB file: {error}.", code="bad-file") from error
    return make_arrays(
        images.transpose(3, 2, 0, 1), labels % 10, str(file), class_names=[str(digit) for digit in range(10)]
    )


def _svhn(place: Path, _: str | None) -> dict[str, Arrays]:
    return {
        split: read_svhn(place / f"{split}_32x32.mat")
        for split in ("train", "test")
        if (place / f"{split}_32x32.mat").is_file()
    }


def _stl10(place: Path, _: str | None) -> dict[str, Arrays]:
    splits = {}
    for split in ("train", "test"):
        files = [place / f"{split}_{letter}.bin" for letter in "Xy"]
        if all(file.is_file() for file in files):
            pixels, labels = (np.fromfile(file, dtype=np.uint8) for file in files)
            images = pixels.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
            splits[split] = make_arrays(
                images, labels.astype(np.int64) - 1, f"{place} ({split})", class_names=_lines(place / "class_names.txt")
            )
    return splits


def _downsampled(place: Path, _: str | None) -> dict[str, Arrays]:
    """Read ImageNet in small, whose classes are numbered from 1: https://patrykchrabaszcz.github.io/Imagenet32/."""
    splits = {}
    for split, pattern in (("train", r"train_data_batch_[0-9]+(\.npz)?"), ("validation", r"val_data(\.npz)?")):
        files = sorted(file for file in place.iterdir() if re.fullmatch(pattern, file.name))
        parts = [_npz(file) if file.suffix else read_plain_pickle(file) for file in files]
        if parts and all({"data", "labels"} <= part.keys() for part in parts):
            rows = np.concatenate([part["data"] for part in parts])
            labels = np.concatenate([part["labels"] for part in parts]).astype(np.int64)
            side = math.isqrt(rows.shape[1] // 3)
            splits[split] = make_arrays(
                rows.reshape(-1, 3, side, side), labels - labels.min().clip(0, 1), f"{place} ({split})"
            )
    return splits


def _npz(file: Path) -> dict[str, Any]:
    check_zip(file)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


_READERS: dict[str, tuple[Callable[[Path, str | None], dict[str, Arrays]], ...]] = {
    "CIFAR10": (_cifar10_python, _cifar10_binary),
    "CIFAR100": (_cifar100_python, _cifar100_binary),
    "MNIST": (_idx,),
    "SVHN": (_svhn,),
    "STL10": (_stl10,),
    "ImageNet32": (_downsampled,),
}  # by torchvision's names
