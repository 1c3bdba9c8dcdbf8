"""Evidence that travels: a folder with adversarial examples, outcomes per sample and hashes, written and read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustdup.errors import RunError, UserError
from robustdup.records import RECORD_FILE, SAMPLES_FILE, load_record, write_atomic

MANIFEST = "manifest.json"
EXAMPLES = "adversarial.safetensors"
FORMAT = "robustdup.bundle/1"
FILES = (RECORD_FILE, SAMPLES_FILE, EXAMPLES)


def write_bundle(run: Path, folder: Path) -> Path:
    """Write the evidence of a finished run into a new folder and return it. Raises UserError where that cannot be done."""
    images = run / "images" / EXAMPLES
    if not images.is_file():
        raise UserError(
            f"{str(run)!r} keeps no adversarial images: run without --no-save-images to bundle.",
            code="no-images",
        )
    check_place(folder)
    record = load_record(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, name in ((run / RECORD_FILE, RECORD_FILE), (run / SAMPLES_FILE, SAMPLES_FILE), (images, EXAMPLES)):
            shutil.copyfile(source, folder / name)
    except OSError as error:
        raise RunError(f"Cannot write the bundle {str(folder)!r}: {error.strerror}.", code="cannot-write") from error
    content = {
        "format": FORMAT,
        "command": record.command,
        "data": record.data.fingerprint,
        "weights": record.model.fingerprint,
        "files": {name: _sha256(folder / name) for name in FILES},
    }
    write_atomic(folder / MANIFEST, _canonical({**content, "sha256": _digest(content)}))
    return folder


def check_place(folder: Path) -> None:
    """Raise UserError unless a bundle can be written to `folder`: it is empty, or not there yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{str(folder)!r} is not an empty folder. Choose another --bundle; nothing is overwritten.",
            code="not-empty",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def refused(reason: str) -> UserError:
    """Build the error for a bundle whose content is not what it says."""
    return UserError(f"The bundle is refused: {reason}", code="refused-bundle")


def check_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose every byte is as it was written. Raises UserError that names what is not."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is not a bundle: it has no {MANIFEST}.", code="not-a-bundle")
    content = path.read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(content)
        stated = manifest.pop("sha256")
        files = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise refused(f"{MANIFEST} is damaged.") from None
    if manifest.get("format") != FORMAT:
        raise refused(
            f"its format is {str(manifest.get('format'))[:60]!r}; this robustdup reads {FORMAT!r}. Is it of a newer version?"
        )
    if sorted(manifest) != ["command", "data", "files", "format", "weights"] or sorted(files) != sorted(FILES):
        raise refused(f"{MANIFEST} holds other fields than {FORMAT!r} has.")
    if content != _canonical({**manifest, "sha256": _digest(manifest)}) or stated != _digest(manifest):
        raise refused(f"{MANIFEST} was changed after it was written.")
    for name in FILES:
        if name not in files or not (folder / name).is_file():
            raise refused(f"{name} is missing.")
        if _sha256(folder / name) != files[name]:
            raise refused(f"{name} was changed after it was written (SHA-256 differs).")
    extra = sorted(p.name for p in folder.iterdir() if p.name not in (*FILES, MANIFEST))
    if extra:
        raise refused(f"{extra[0]} does not belong to it.")
    return manifest


def read_examples(path: Path) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Read (images float32 (N, C, H, W), labels or None, index or None) from .safetensors, .npz, .npy or .pt.

    Names looked for: images, adv_images, x_adv; labels, y; index. A .pt file is read with `weights_only=True`.
    """
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.", code="missing-file")
    try:
        content = _read(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}", code="bad-examples") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only refuses  # noqa: BLE001
        raise UserError(f"{str(path)!r} is refused: {str(error).splitlines()[0]}", code="bad-examples") from None
    images = _first(content, ("images", "adv_images", "x_adv", "adv", "x"))
    if images is None:
        raise UserError(
            f"{str(path)!r} holds {sorted(content)}, none of which is 'images' or 'adv_images'.", code="bad-examples"
        )
    if images.ndim != 4:
        raise UserError(
            f"The images in {str(path)!r} have shape {tuple(images.shape)}, expected (N, C, H, W).", code="bad-examples"
        )
    if images.dtype == torch.uint8:
        images = images.float() / 255
    labels, index = _first(content, ("labels", "y", "label")), _first(content, ("index",))
    return images.float(), labels.long() if labels is not None else None, index.long() if index is not None else None


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".npz", ".npy"):
        import numpy as np

        loaded = np.load(path, allow_pickle=False)
        arrays = {"images": loaded} if path.suffix == ".npy" else dict(loaded)
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiu"}
    if path.suffix in (".pt", ".pth"):
        content = torch.load(path, map_location="cpu", weights_only=True)
        return (
            {"images": content}
            if isinstance(content, Tensor)
            else {k: v for k, v in content.items() if isinstance(v, Tensor)}
        )
    raise UserError(
        f"{str(path)!r}: examples are read from .safetensors, .npz, .npy and .pt files.", code="bad-examples"
    )


def _first(content: dict[str, Tensor], names: Sequence[str]) -> Tensor | None:
    return next((content[name] for name in names if name in content), None)
