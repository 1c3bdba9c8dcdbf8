"""Files of arrays: .npz, .npy pairs such as CIFAR-10-C and CIFAR-10.1, and .pt or .safetensors with images and labels."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.data.arrays import Arrays, make_arrays
from robustdup.data.layouts import hdf5
from robustdup.data.layouts.binaries import CIFAR10, read_plain_pickle
from robustdup.data.layouts.opened import Opened, chosen_set, split_name, split_word
from robustdup.errors import UserError
from robustdup.inflation import check_tensor, check_zip

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".pkl", ".pickle", ".p", ".mat", *hdf5.SUFFIXES)
IMAGES = ("images", "image", "imgs", "img", "data", "x", "inputs", "pixels", "fea")
MORE_IMAGES = ("features", "dataset")  # where nothing else is called by a usual name
LABELS = ("labels", "label", "targets", "target", "y", "classes", "fine_labels", "lbls", "lbl", "gnd")
NAMES = ("classes", "class_names", "classnames", "label_names", "labelnames", "categories", "names")
SEVERITIES = 5  # of CIFAR-10-C and its kind: https://github.com/hendrycks/robustness


def open_array_file(file: Path, *, needs_labels: bool = True) -> Opened:
    """Return the splits of a file of arrays; images alone, where labels are not needed. Raises UserError."""
    if file.suffix == ".npy":
        return _pair(file.parent, file)
    content = _content(file)
    class_names = _class_names(content)
    if len(content) == 1 and not _is_labels(file) and _labels_beside(file.parent, file):
        return _pair(file.parent, file)
    groups = _groups(content, IMAGES)
    if not any("images" in pair for pair in groups.values()):
        groups = _groups(content, MORE_IMAGES)
    whole = {split: pair for split, pair in groups.items() if len(pair) == 2}
    if not whole and not needs_labels:
        whole = {split: {"labels": None, **pair} for split, pair in groups.items() if "images" in pair}
    if not whole and len(content) == 2:  # arr_0 and arr_1, or a tuple
        whole = {"": dict(zip(("images", "labels"), content.values(), strict=True))}
    if not whole:
        listed = ", ".join(f"{name} {tuple(np.shape(values))}" for name, values in content.items()) or "nothing"
        raise UserError(
            f"{str(file)!r} holds {listed}; images and labels are looked for, for instance x_test and y_test.",
            code="bad-data",
        )
    first = _first_label(file, [pair["labels"] for pair in whole.values()])
    splits = {
        split or split_name(file.stem) or "test": make_arrays(
            pair["images"],
            np.asarray(pair["labels"]) - first if first else pair["labels"],
            f"{file} ({split or 'all'})",
            class_names=class_names,
        )
        for split, pair in whole.items()
    }
    notes = (f"The labels of {file} are numbered from 1, as MATLAB counts; they are taken from 0.",) if first else ()
    return Opened(splits, notes, unnamed=list(whole) == [""] and split_name(file.stem) is None)


def _groups(content: Mapping[str, Any], images: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the arrays of each split under "images" and "labels", as words in their names say."""
    groups: dict[str, dict[str, Any]] = {}
    for name, values in content.items():
        words = [word for word in re.split(r"[_\-./ ]+", name.lower()) if word]
        kind = "images" if set(words) & set(images) else "labels" if set(words) & set(LABELS) else ""
        split = next((named for word in words if (named := split_name(word))), "")
        if kind:
            groups.setdefault(split, {}).setdefault(kind, values)
    return groups


def _class_names(content: dict[str, np.typing.NDArray[Any]]) -> list[str]:
    """Take the names of the classes out of the arrays of a file, where it has them: text, fewer than there are images."""
    most = max((len(values) for values in content.values() if np.ndim(values) > 1), default=0)
    for name in [name for name in content if name.lower() in NAMES]:
        words = np.ravel(content[name]).tolist()
        if all(isinstance(word, str | bytes) for word in words) and len(set(words)) == len(words) < most:
            del content[name]
            return [(word.decode() if isinstance(word, bytes) else word).strip() for word in words]
    return []


def _first_label(file: Path, labels: Sequence[Any]) -> int:
    """Return the number of the first class: 1 in a MATLAB file none of whose labels is 0, since MATLAB counts from 1."""
    arrays = [np.asarray(each) for each in labels]
    numeric = all(each.dtype.kind in "iuf" and each.size and (each.ndim < 2 or 1 in each.shape) for each in arrays)
    return int(file.suffix == ".mat" and numeric and min(each.min() for each in arrays) >= 1)


def _content(file: Path) -> dict[str, np.typing.NDArray[Any]]:
    """Return the arrays of a file by name; no code of it runs. Raises UserError."""
    try:
        if file.suffix == ".npz":
            check_zip(file)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(file))
        if file.suffix in hdf5.SUFFIXES or (file.suffix == ".mat" and hdf5.is_matlab(file)):
            return hdf5.read_hdf5(file)
        if file.suffix == ".mat":
            return _matlab_content(file)
        if file.suffix in (".pkl", ".pickle", ".p"):
            return {name: np.asarray(values) for name, values in read_plain_pickle(file).items()}
        return _torch_content(file)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{str(file)!r} cannot be read as plain arrays ({reason}). Pickled objects are never loaded: save tensors.",
            code="bad-file",
        ) from error


def _matlab_content(file: Path) -> dict[str, np.typing.NDArray[Any]]:
    import scipy.io

    content = scipy.io.loadmat(io.BytesIO(file.read_bytes()), simplify_cells=True)
    return {name: np.asarray(values) for name, values in _flat(content).items() if not name.startswith("__")}


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what structs in structs hold, under names such as dataset_train_images."""
    flat: dict[str, Any] = {}
    for name, values in content.items():
        inner = _flat(values) if isinstance(values, Mapping) else None
        flat |= {name: values} if inner is None else {f"{name}_{key}": each for key, each in inner.items()}
    return flat


def _torch_content(file: Path) -> dict[str, np.typing.NDArray[Any]]:
    import torch
    from torch.utils.data import TensorDataset

    check_zip(file)
    with torch.serialization.safe_globals([TensorDataset]):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, TensorDataset):
        content = content.tensors
    if isinstance(content, Sequence) and len(content) == 3 and isinstance(content[2], type):
        content = content[:2]
    if isinstance(content, list) and content and all(isinstance(row, Mapping) and len(row) == 2 for row in content):
        names = list(content[0])  # of the image and of its label
        content = [tuple(row[name] for name in names) for row in content if list(row) == names]
    if isinstance(content, tuple | list) and len(content) == 4 and all(hasattr(part, "shape") for part in content):
        content = {"train": content[:2], "test": content[2:]}
    if (
        isinstance(content, list)
        and content
        and all(isinstance(row, tuple | list) and len(row) == 2 for row in content)
    ):
        images, labels = zip(*content, strict=True)  # a sample after the other
        content = {"images": torch.stack(images), "labels": torch.as_tensor(labels)}
    if isinstance(content, Sequence) and len(content) == 2:
        content = {"images": content[0], "labels": content[1]}
    if not isinstance(content, Mapping):
        raise UserError(
            f"{str(file)!r} holds a {type(content).__name__}; images and labels are wanted: torch.save((x, y), …).",
            code="bad-data",
        )
    flat: dict[str, Any] = {}
    for name, values in content.items():
        if isinstance(values, Sequence) and len(values) == 2 and all(isinstance(part, torch.Tensor) for part in values):
            flat |= {f"{name}_images": values[0], f"{name}_labels": values[1]}
        elif isinstance(values, Mapping):
            flat |= {f"{name}_{inner}": value for inner, value in values.items()}
        else:
            flat[str(name)] = values
    for values in flat.values():
        if isinstance(values, torch.Tensor):
            check_tensor(values, str(file))
    return {
        name: np.asarray(values) for name, values in flat.items() if isinstance(values, torch.Tensor | list | tuple)
    }


def open_array_folder(root: Path, files: Sequence[Path], config: str | None) -> Opened:
    """Return the splits of a folder of array files; where it has several sets, `config` names one. Raises UserError."""
    pairs = [file for file in files if not _is_labels(file) and (file.suffix == ".npy" or _labels_beside(root, file))]
    others = [file for file in files if file.suffix != ".npy" and file not in pairs]
    if pairs and all(_is_labels(file) for file in others):
        by_split = {split_name(word) for file in pairs for word in re.split(r"[_\-.]+", file.stem)} - {None}
        if len(pairs) > 1 and len(by_split) == len(pairs):
            opened = [_pair(root, file) for file in pairs]
            return Opened({name: split for each in opened for name, split in each.splits.items()})
        return _pair(root, _chosen_file(pairs, root, config))
    named = {split_name(file.stem) or split_name(file.stem.rpartition("_")[2]): file for file in others}
    if len(others) > 1 and len(named) == len(others) and None not in named:
        splits = {}
        for split, file in named.items():
            (arrays,) = open_array_file(file).splits.values()
            splits[str(split)] = arrays
        return Opened(splits)
    return open_array_file(_chosen_file(others, root, config))


def _chosen_file(files: Sequence[Path], root: Path, config: str | None) -> Path:
    names = [file.stem for file in files]
    return files[names.index(chosen_set(names, root, config))]


def _is_labels(file: Path) -> bool:
    return bool(set(re.split(r"[_\-.]+", file.stem.lower())) & set(LABELS))


def _pair(root: Path, file: Path) -> Opened:
    """Return the split of a file of images, whose labels lie in another beside it."""
    if _is_labels(file):
        raise UserError(f"{str(file)!r} holds labels by its name; name the file of the images.", code="bad-data")
    labels = _labels_beside(root, file)
    if labels is None:
        raise UserError(
            f"There are no labels beside {str(file)!r}: labels{file.suffix}, or {file.stem}_labels{file.suffix}.",
            code="no-label",
        )
    images, numbers = (_load(each) for each in (file, labels))
    numbers = numbers.reshape(-1) if numbers.size == len(numbers) else numbers  # PatchCamelyon's are (N, 1, 1, 1)
    word = split_word(file.stem)
    names = CIFAR10 if root.name.lower().startswith("cifar-10-c") or file.stem.startswith("cifar10") else ()
    arrays = make_arrays(images, numbers, str(file), class_names=names if names and numbers.max() < len(names) else ())
    if word is not None:
        return Opened({word: arrays})
    return _severities(arrays, file) or Opened({"test": arrays}, unnamed=True)


def _load(file: Path) -> np.typing.NDArray[Any]:
    """Return the one array that a file holds. Raises UserError."""
    if file.suffix != ".npy":
        content = list(_content(file).values())
        if len(content) != 1:
            raise UserError(f"{str(file)!r} holds {len(content)} arrays; one is looked for.", code="bad-data")
        return content[0]
    try:
        values: np.typing.NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{str(file)!r} is not a file of plain numbers: {error}.", code="bad-file") from error
    return values


def _labels_beside(root: Path, file: Path) -> Path | None:
    """Return the labels of images: the same name with labels in place of images or data, or labels.npy. None where none are."""
    stem, words = file.stem, "|".join(IMAGES)
    there = {each.stem.lower(): each for each in sorted(root.glob(f"*{file.suffix}")) if each != file}
    names = [re.sub(rf"(?i)(?<![a-z])({words})(?![a-z])", label, stem) for label in LABELS]
    names += [f"{stem}_{label}" for label in LABELS] + list(LABELS)
    return next((there[name.lower()] for name in names if name.lower() in there), None)


def _severities(arrays: Arrays, file: Path) -> Opened | None:
    """Return one split a severity where the labels are five times the same, as in CIFAR-10-C; None elsewhere."""
    labels = arrays.labels
    if labels is None or len(labels) % SEVERITIES or len(labels) < 2 * SEVERITIES:
        return None
    blocks = labels.reshape(SEVERITIES, -1)
    if (blocks != blocks[0]).any() or len(np.unique(blocks[0])) < 2:
        return None
    size = blocks.shape[1]
    splits = {"test": arrays}
    for number in range(SEVERITIES):
        part = slice(number * size, (number + 1) * size)
        splits[f"severity-{number + 1}"] = Arrays(arrays.images[part], labels[part], arrays.class_names, arrays.notes)
    note = f"{file.name} holds {size} images at five severities, one after the other: 'test' is all, --split severity-5 the last."
    return Opened(splits, split_notes={"test": (note,)})
