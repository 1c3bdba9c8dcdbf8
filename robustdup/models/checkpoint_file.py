"""What a checkpoint file holds, told by its content, not by its ending: safetensors, torch.save, arrays of NumPy.

Pickles are loaded only on request.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch

from robustdup.errors import UserError
from robustdup.inflation import check_zip
from robustdup.models.pickles import harmless, is_torchscript, main_is

USUAL_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "checkpoint.pt",
    "checkpoint.pth",
)
INDEX = ".index.json"  # ends the name of a list of the parts that a checkpoint was split into
PART = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")  # the name of a part
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")
CONVERT = "load it there and save its weights by the network's names, as safetensors"
# What a file begins with, and what to do with it.
ELSEWHERE = (
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"), "is compressed: unpack it first"),
    ((b"\x89HDF",), f"is an HDF5 file, as Keras writes them: {CONVERT}"),
    ((b"version https://git-lfs",), "is a Git LFS pointer, not the weights: run 'git lfs pull'"),
    ((b"GGUF",), "holds quantised weights (GGUF), whose values are rounded: give those from before"),
)
# What files of other programs are called, folders of them too.
OTHER_PROGRAMS = {
    r".*\.msgpack|_CHECKPOINT_METADATA|manifest\.ocdbt": f"holds weights of Flax or JAX: {CONVERT}",
    r".*\.keras|.*\.weights\.h5|tf_model\.h5": f"holds a model of Keras: {CONVERT}",
    r"saved_model\.pb|.*\.data-\d{5}-of-\d{5}|.*\.ckpt(-\d+)?\.(index|meta)": f"holds a model of TensorFlow: {CONVERT}",
    r".*\.tflite": "holds a program of TensorFlow Lite, without gradients: give the network it was made from",
    r".*\.(pdparams|pdiparams|params|caffemodel)": f"holds weights of Paddle, MXNet or Caffe: {CONVERT}",
    r".*\.(mlmodel|mlpackage|engine|trt|plan)": "holds a program without gradients: give the network it was made from",
    r".*\.distcp|\.metadata": "holds a distributed checkpoint: join its parts first, "
    "'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt'",
}  # fmt: skip


def refuse_other_programs(place: Path) -> None:
    """Raise UserError for a file of another program, or a folder of such files, with what to do."""
    names = sorted(file.name for file in place.iterdir()) if place.is_dir() else [place.name]
    for pattern, what in OTHER_PROGRAMS.items():
        if fitting := [name for name in names if re.fullmatch(pattern, name)]:
            inside = f" ({fitting[0]})" if place.is_dir() else ""
            raise UserError(f"{str(place)!r} {what}{inside}.", code="other-program")


def weights_file(place: Path) -> Path:
    """Return the file of weights behind a path: itself, or the one in a folder that has one, or one of a usual name.

    Raises UserError for a folder without, or with several that nobody can choose between.
    """
    if not place.is_dir():
        return place
    files = sorted(file for file in place.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    usual = [place / name for name in USUAL_NAMES if place / name in files]
    usual += [file for name in USUAL_NAMES if (file := place / f"{name}{INDEX}").is_file()]
    if usual or len(files) == 1:
        return (usual or files)[0]
    if not files:
        refuse_other_programs(place)
        raise UserError(f"There is no weights file in the folder {str(place)!r}.", code="missing-file")
    names = ", ".join(file.name for file in files[:8])
    raise UserError(
        f"{str(place)!r} has several weights files: {names}. Name one: {place / files[0].name}.", code="several-weights"
    )


def read_checkpoint(file: Path, *, allow_pickle: bool = False, module: ModuleType | None = None) -> Any:
    """Return what a checkpoint holds, on the CPU. Raises UserError for anything that is not one."""
    if file.name.endswith(INDEX):
        parts = [_read_file(part, allow_pickle=allow_pickle, module=module) for part in _parts(file)]
        if not all(isinstance(part, Mapping) for part in parts):
            raise UserError(f"A part that {str(file)!r} names holds no tensors with names.", code="damaged-checkpoint")
        return {name: value for part in parts for name, value in part.items()}
    if (part := PART.fullmatch(file.name)) and (index := file.with_name(f"{part[1]}{part[2]}{INDEX}")).is_file():
        raise UserError(f"{str(file)!r} is one of several parts. Name their list: {index}.", code="part-of-checkpoint")
    return _read_file(file, allow_pickle=allow_pickle, module=module)


def _parts(index: Path) -> list[Path]:
    """Return the files that a list of parts names, which lie beside it. Raises UserError where they do not."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        parts = [index.parent / name for name in names if Path(name).name == name and not name.endswith(INDEX)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(index, error) from error
    missing = sorted({*names} - {part.name for part in parts if part.is_file()})
    if missing or not parts:
        raise UserError(
            f"{str(index)!r} names parts that do not lie beside it: {', '.join(map(repr, missing[:3])) or 'none at all'}.",
            code="missing-file",
        )
    return parts


def _read_file(file: Path, *, allow_pickle: bool, module: ModuleType | None) -> Any:
    """Return what one file holds. Raises UserError."""
    safe = is_safetensors(file)
    try:
        check_zip(file)
        if safe:
            from safetensors.torch import load_file

            return load_file(file)
        if _is_npz(file):
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if is_torchscript(file):
            return torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        with torch.serialization.safe_globals(harmless(file, module)), file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise _broken(file, error) from error
        if not allow_pickle:
            refuse_other_programs(file)
            raise UserError(
                f"{str(file)!r} holds more than weights{_named_in(error)}: loading it as a pickle can run any code of whoever "
                "made it. Save the state dict alone (safetensors, or torch.save(model.state_dict())), or, if you trust the "
                "file, give --allow-pickle.",
                code="refused-pickle",
            ) from error
    except UserError:
        raise
    except Exception as error:
        raise _broken(file, error) from error
    try:
        with main_is(module), file.open("rb") as stream:
            if not zipfile.is_zipfile(file) and _first(stream) != torch.serialization.MAGIC_NUMBER:
                return pickle.load(stream)
            return torch.load(stream, map_location="cpu", weights_only=False)
    except (AttributeError, ModuleNotFoundError) as error:
        raise UserError(
            f"{str(file)!r} is a whole pickled model, and what it is made of cannot be found here: {error}. Put the class "
            "into the file that you name, where the factory is, or save its state dict alone.",
            code="missing-class",
        ) from error
    except Exception as error:
        raise _broken(file, error) from error


def is_safetensors(file: Path) -> bool:
    """Tell whether a file is safetensors or one of torch's or numpy's. Raises UserError for anything else."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise UserError(f"{str(file)!r} is empty: the download or the copy failed.", code="damaged-checkpoint")
    if head.lstrip()[:1] == b"<":
        raise UserError(
            f"{str(file)!r} is a web page, not a checkpoint: the download failed. Open it to see what it says.",
            code="damaged-checkpoint",
        )
    for beginnings, advice in ELSEWHERE:
        if head.startswith(beginnings):
            raise UserError(f"{str(file)!r} {advice}.", code="damaged-checkpoint")
    if head[257:262] == b"ustar":
        raise UserError(f"{str(file)!r} is a tar archive: unpack it first.", code="damaged-checkpoint")
    safe = head[8:9] == b"{"  # after the length of its header
    if not safe and not head.startswith((b"PK", b"\x80")):  # a zip, or a bare pickle
        refuse_other_programs(file)
        raise UserError(
            f"{str(file)!r} is not a checkpoint: neither safetensors nor written by torch.save.",
            code="damaged-checkpoint",
        )
    return safe


def _named_in(error: Exception) -> str:
    """Return what a refused file names, for a message."""
    names = dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    return f" ({', '.join(names)})" if names else ""


def _broken(file: Path, error: Exception) -> UserError:
    """Return what to raise for a file that cannot be read. Raises UserError for one of another program."""
    refuse_other_programs(file)
    detail = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(
        f"{str(file)!r} is not a whole checkpoint: {detail} Download or copy it again.", code="damaged-checkpoint"
    )


def _first(stream: BinaryIO) -> Any:
    """Return the number that a file of torch's old format begins with, which is safe to read; None where it is none."""
    head = stream.read(32)
    stream.seek(0)
    try:
        return next(value for code, value, _ in pickletools.genops(head) if code.name == "LONG1")
    except (StopIteration, ValueError):
        return None


def _is_npz(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)
