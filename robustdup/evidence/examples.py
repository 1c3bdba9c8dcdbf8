"""Adversarial examples as other tools save them: tensors, arrays, dicts, tuples, lists, folders of pictures. No pickle runs.

What is read is the images as they lie there, with labels and indices where they are; `match` fits them to the samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustdup.data.decode import no_programs
from robustdup.errors import UserError
from robustdup.inflation import check_tensor, check_zip, read_text

ENDINGS = (".safetensors", ".npz", ".npy", ".pt", ".pth")
PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif")
LARGEST = 4096 * 4096  # pixels of one picture
# Names that tools and scripts give: ours; AutoAttack's script; torchattacks; the rest is common.
IMAGES = (
    "adv_images", "x_adv", "adv_complete", "adv_inputs", "adv", "advs", "adv_examples", "adversarial", "x_advs", "adv_x",
    "images", "arr_0", "x", "data",
)  # fmt: skip
LABELS = ("labels", "y", "label", "y_complete", "targets", "target", "arr_1")
ATTACKED = ("adv", "perturb", "attack", "fool")  # parts of names, where several arrays could be the images
INDEX = ("index", "indices", "idx", "ids")


@dataclass(frozen=True)
class Examples:
    """Examples as they lie in a file: `images` (n, …) in any layout and scale, `labels` (n,), `index` (n,) where it has them."""

    images: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def read_examples(path: Path) -> Examples:
    """Read adversarial examples from a file or a folder of pictures.

    Read are .safetensors, .npz, .npy, .pt and .pth (`weights_only=True`): one array, names such as images, x_adv,
    adv_complete, adv_inputs, pairs (images, labels), lists of images or of batches, and foolbox's (raw, clipped, is_adv).

    Raises:
        UserError: bad-examples, with what was found.
    """
    if path.is_dir():
        return _read_pictures(path)
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.", code="missing-file")
    try:
        content = _read(path)
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise _bad(
            path, f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only refuses  # noqa: BLE001
        raise _bad(
            path,
            "is refused: it holds more than tensors, and loading it as a pickle could run any code. Save the tensor of images "
            f"alone ({str(error).splitlines()[0][:120]})",
        ) from None
    examples = _find(content, path)
    if examples.images.ndim == 5:  # batches in one tensor
        examples = replace(examples, images=examples.images.flatten(0, 1))
    if examples.images.ndim < 2 or not len(examples.images):
        raise _bad(path, f"holds images of shape {tuple(examples.images.shape)}, expected (N, C, H, W)")
    if examples.images.is_complex() or examples.images.dtype == torch.bool:
        raise _bad(path, f"holds images of {examples.images.dtype}, expected floats or bytes")
    return replace(examples, labels=_labels(examples.labels, path), index=_index(examples.index, path))


def _bad(path: Path, reason: str) -> UserError:
    return UserError(f"{str(path)!r} {reason}.", code="bad-examples")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".npz", ".npy"):
        check_zip(path)
        loaded = np.load(path, allow_pickle=False)
        return loaded if path.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
    if path.suffix in (".pt", ".pth"):
        check_zip(path)
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True)
    raise _bad(
        path, f"has the ending {path.suffix!r}: examples are read from {', '.join(ENDINGS)}, and folders of pictures"
    )


def _numpy_names() -> list[Any]:
    """Return what an array inside a .pt file is made of: plain numbers."""
    types = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i1", "i2", "i4", "i8", "?")]
    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, *types]  # type: ignore[attr-defined]


def read_indices(text: str, n: int) -> Tensor:
    """Return the indices (n,) that a text or a file names: "0,2,5", or a .npy, .pt or text file of whole numbers."""
    path = Path(text)
    try:
        if path.is_file() and path.suffix in ENDINGS:
            index = _index(_find(_read(path), path).images, path)
        else:
            words = re.split(r"[\s,]+", read_text(path) if path.is_file() else text)
            index = torch.tensor([int(word) for word in words if word])
    except (ValueError, OSError, RuntimeError, OverflowError):
        raise UserError(
            f"--indices {text[:80]!r} is neither whole numbers with commas, nor a file of them, nor 'nearest'.",
            code="bad-value",
        ) from None
    if index is None or len(index) != n:
        raise UserError(
            f"--indices names {0 if index is None else len(index)} samples; the file holds {n} examples.",
            code="other-samples",
        )
    return index


# --- which of it are the images ---


def _find(content: Any, path: Path) -> Examples:
    """Return images, labels and index inside nested content. Raises UserError that says what is there instead."""
    if isinstance(content, Tensor | np.ndarray):
        return Examples(_tensor(content))
    if isinstance(content, Mapping):
        return _in_mapping(content, path)
    if isinstance(content, list | tuple) and content:
        return _in_sequence(content, path)
    raise _bad(path, f"holds {_kind(content)}, not images")


def _in_mapping(content: Mapping[Any, Any], path: Path) -> Examples:
    named = {str(name).lower(): value for name, value in content.items()}
    images = next((named[name] for name in IMAGES if name in named), None)
    if images is None:
        if (counted := _numbered(named)) is not None:
            return counted
        large = {
            name: value for name, value in named.items() if isinstance(value, Tensor | np.ndarray) and value.ndim >= 3
        }
        attacked = [name for name in large if any(word in name for word in ATTACKED)]
        large = {name: large[name] for name in attacked} if len(attacked) == 1 else large
        nested = [value for value in named.values() if isinstance(value, Mapping | list | tuple)]
        if len(large) == 1:
            (images,) = large.values()
        elif len(nested) == 1 and not large:
            return _find(nested[0], path)
        else:
            raise _bad(path, f"holds {sorted(named)}, none of which is 'images' or 'adv_images'")
    examples = _find(images, path) if not isinstance(images, Tensor | np.ndarray) else Examples(_tensor(images))
    labels, index = (next((named[name] for name in names if name in named), None) for names in (LABELS, INDEX))
    return replace(
        examples,
        labels=examples.labels if labels is None else _flat(labels),
        index=examples.index if index is None else _flat(index),
    )


def _numbered(named: Mapping[str, Any]) -> Examples | None:
    """Return the images of a mapping with a number in each key and an image under it; the numbers are the indices, unless
    they just count."""
    numbers = [int(digits[-1]) if (digits := re.findall(r"\d+", name)) else -1 for name in named]
    tensors = [_tensor(value) for value in named.values() if isinstance(value, Tensor | np.ndarray) and value.ndim > 1]
    alike = len(tensors) == len(numbers) and len({re.sub(r"\d+", "", name) for name in named}) == 1
    if len(numbers) < 2 or not alike or -1 in numbers or len(set(numbers)) < len(numbers):
        return None
    if len({tensor.shape for tensor in tensors}) > 1 or tensors[0].ndim > 3:
        return None
    order = sorted(range(len(numbers)), key=lambda place: numbers[place])
    return Examples(torch.stack([tensors[place] for place in order]), index=_unless_counted(sorted(numbers)))


def _unless_counted(numbers: list[int]) -> Tensor | None:
    """Return rising numbers as an index; None where they just count from 0 or 1."""
    first = numbers[0]
    return None if first in (0, 1) and numbers == list(range(first, first + len(numbers))) else torch.tensor(numbers)


def _in_sequence(content: Sequence[Any], path: Path) -> Examples:
    if len(content) == 3 and _is_answer(content[2]):  # foolbox: raw, clipped to the eps, whether it is adversarial
        return _of_one_eps(content[1], path)
    if all(isinstance(part, Tensor | np.ndarray) for part in content):
        tensors = [_tensor(part) for part in content]
        first = tensors[0]
        if len(tensors) in (2, 3) and first.ndim >= 3 and tensors[1].ndim in (1, 2) and len(tensors[1]) == len(first):
            return Examples(first, labels=tensors[1])
        if len({tensor.shape[1:] for tensor in tensors}) > 1 or first.ndim < 2:
            raise _bad(path, f"holds a list of tensors of shapes {[tuple(tensor.shape) for tensor in tensors[:4]]}")
        if first.ndim <= 3:
            if len({tensor.shape for tensor in tensors}) > 1:
                raise _bad(path, "holds images of several sizes")
            return Examples(torch.stack(tensors))
        return Examples(torch.cat(tensors))
    parts = [_one_or_batch(part, path) for part in content]
    return Examples(
        torch.cat([part.images for part in parts]),
        _joined([part.labels for part in parts]),
        _joined([part.index for part in parts]),
    )


def _one_or_batch(part: Any, path: Path) -> Examples:
    """Return a part of a list, a batch or one image with its label, as a batch."""
    if (
        isinstance(part, list | tuple)
        and len(part) == 2
        and isinstance(part[0], Tensor | np.ndarray)
        and np.ndim(part[1]) == 0
    ):
        part = {"images": part[0], "labels": part[1]}
    examples = _find(part, path)
    labels = examples.labels
    if examples.images.ndim > 3 or (labels is not None and labels.ndim and len(labels) == len(examples.images)):
        return examples
    return replace(examples, images=examples.images[None], labels=None if labels is None else labels.reshape(1))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the parts in a row where all are there."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def _is_answer(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and "bool" in str(value.dtype)


def _of_one_eps(clipped: Any, path: Path) -> Examples:
    if isinstance(clipped, list | tuple):
        if len(clipped) != 1:
            raise _bad(
                path,
                f"holds foolbox's examples for {len(clipped)} values of eps. Save those of one eps: torch.save(clipped[0], …)",
            )
        clipped = clipped[0]
    return _find(clipped, path)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise UserError(f"An array of {value.dtype} holds no images.", code="bad-examples")
        value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
    tensor: Tensor = value
    check_tensor(tensor, "The file")
    return tensor.detach()


def _flat(value: Any) -> Tensor | None:
    """Return a tensor of numbers for labels or index; None for what is none."""
    if isinstance(value, Tensor | np.ndarray):
        return _tensor(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) and part.ndim for part in value):
        return torch.cat([part.detach() for part in value])
    if isinstance(value, int | float | np.number):
        return torch.tensor(value)
    if isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value):
        return torch.tensor(value)
    return None


def _labels(labels: Tensor | None, path: Path) -> Tensor | None:
    """Return labels (n,) int64 from whole numbers of any type, columns, or one-hot rows."""
    if labels is None:
        return None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        rows = labels.double()
        if not bool(((rows == 1).sum(dim=1) == 1).all()) or not bool(((rows == 0) | (rows == 1)).all()):
            raise _bad(path, f"holds labels of shape {tuple(labels.shape)} that are no one-hot rows")
        return rows.argmax(dim=1)
    if labels.ndim != 1 or (labels.is_floating_point() and not bool((labels == labels.round()).all())):
        raise _bad(
            path, f"holds labels of shape {tuple(labels.shape)} and {labels.dtype}, expected one whole number a sample"
        )
    return labels.long()


def _index(index: Tensor | None, path: Path) -> Tensor | None:
    if index is None:
        return None
    whole = index.flatten()
    if whole.is_floating_point() and not bool((whole == whole.round()).all()):
        raise _bad(path, "holds an index that is no whole numbers")
    return whole.long()


def _kind(content: Any) -> str:
    return "an empty list" if content in ([], ()) else f"a {type(content).__name__}"


# --- pictures ---


def has_pictures(folder: Path) -> bool:
    """Tell whether a folder holds pictures, directly."""
    return any(file.suffix.lower() in PICTURES for file in folder.iterdir())


def _read_pictures(folder: Path) -> Examples:
    """Read a folder of pictures by the numbers in their names, which are their indices where they are not just counted."""
    from PIL import Image

    no_programs()
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURES]
    if not files:
        raise _bad(folder, f"holds no pictures ({', '.join(PICTURES)})")
    numbers = [[int(part) for part in re.findall(r"\d+", file.stem)] for file in files]
    last = [digits[-1] if digits else -1 for digits in numbers]
    counted = len(set(last)) == len(files) and -1 not in last
    order = sorted(range(len(files)), key=lambda i: (last[i],) if counted else (*numbers[i], files[i].name))
    pictures = []
    for i in order:
        try:
            with Image.open(files[i]) as picture:
                if picture.width * picture.height > LARGEST:
                    raise _bad(files[i], f"has {picture.width} x {picture.height} pixels: too many for an example")
                pictures.append(np.array(picture.convert("L" if picture.mode in ("L", "1") else "RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            raise _bad(files[i], f"cannot be read: {error}") from None
    if len({picture.shape for picture in pictures}) > 1:
        raise _bad(folder, f"holds pictures of several sizes: {sorted({picture.shape for picture in pictures})[:3]}")
    index = _unless_counted(sorted(last)) if counted else None
    notes = ("Pictures hold 8 bits: what they lost by rounding counts as it is.",)
    return Examples(torch.from_numpy(np.stack(pictures)), index=index, notes=notes)
