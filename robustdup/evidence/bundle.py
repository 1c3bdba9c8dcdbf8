"""Evidence that travels: a folder with adversarial examples, outcomes per sample and hashes, written and read."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustdup.errors import RunError, UserError, plain
from robustdup.evaluation.certified import CERTIFICATES
from robustdup.inflation import check_holes, read_text
from robustdup.plugins import record_kinds
from robustdup.records import MANIFEST, RECORD_FILE, SAMPLES_FILE, load_record, load_samples, schema_of

EXAMPLES = "adversarial.safetensors"
SIGNATURE = "signature.json"  # of somebody who states it, see `robustdup.evidence.signature`
FORMAT = "robustdup.bundle/1"
FILES = (RECORD_FILE, SAMPLES_FILE, EXAMPLES)
OPTIONAL = (CERTIFICATES,)  # of a run with certificates


def write_bundle(run: Path, folder: Path) -> Path:
    """Write the evidence of a finished run into a new folder, whole or not at all, and return it.

    Raises UserError where that cannot be done, RunError where the disk does not take it.
    """
    kind = record_kinds().get(schema_of(run))
    if kind is not None and kind.verify is not None:
        return _write(
            run, folder, {name: run / name for name in (RECORD_FILE, *kind.files)}, kind.load(run / RECORD_FILE)
        )
    images = run / "images" / EXAMPLES
    if not images.is_file():
        raise UserError(
            f"{str(run)!r} keeps no adversarial images: run without --no-save-images to bundle.",
            code="no-images",
        )
    load_samples(run)
    try:
        with safe_open(images, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(images)!r} is damaged ({plain(error, 200)}).", code="damaged-run") from None
    kept = [name for name in (RECORD_FILE, SAMPLES_FILE, *OPTIONAL) if name not in OPTIONAL or (run / name).is_file()]
    return _write(run, folder, {**{name: run / name for name in kept}, EXAMPLES: images}, load_record(run))


def _write(run: Path, folder: Path, files: Mapping[str, Path], record: Any) -> Path:
    """Copy files, by their names in the bundle, into a new folder with a manifest, whole or not at all."""
    check_place(folder)
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        for name, source in files.items():
            shutil.copyfile(source, partial / name)
        content = {
            "format": FORMAT,
            "command": record.command,
            "data": record.data.fingerprint,
            "weights": record.model.fingerprint,
            "files": {name: _sha256(partial / name) for name in files},
        }
        (partial / MANIFEST).write_bytes(_canonical({**content, "sha256": _digest(content)}))
        partial.chmod(0o755)
        partial.replace(folder)  # which is not there, or empty
    except OSError as error:
        raise RunError(
            f"Cannot write the bundle {str(folder)!r}: {error.strerror or error}. Nothing of it is left behind, and the run is "
            f"whole: robustdup eval --resume {shlex.quote(str(run))} --bundle {shlex.quote(str(folder))} writes it.",
            code="cannot-write",
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
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


def verifier_of(manifest: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return what rechecks a bundle whose record, by its files, is of a plugin's kind; None for one of attacks."""
    kinds = (kind for kind in record_kinds().values() if set(manifest["files"]) == {RECORD_FILE, *kind.files})
    return next((kind.verify for kind in kinds if kind.verify is not None), None)


def check_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose every byte is as it was written. Raises UserError that names what is not."""
    path = folder / MANIFEST
    if not path.is_file():
        is_run = (folder / RECORD_FILE).is_file()
        run = shlex.quote(str(folder))
        advice = f" It is a run: robustdup eval --resume {run} --bundle FOLDER writes its bundle." if is_run else ""
        raise UserError(f"{str(folder)!r} is not a bundle: it has no {MANIFEST}.{advice}", code="not-a-bundle")
    try:
        content = read_text(path).encode()
        manifest: dict[str, Any] = json.loads(content)
        stated = manifest.pop("sha256")
        files = {str.__str__(name): str.__str__(digest) for name, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise refused(f"{MANIFEST} is damaged.") from None
    if manifest.get("format") != FORMAT:
        raise refused(
            f"its format is {str(manifest.get('format'))[:60]!r}; this robustdup reads {FORMAT!r}. Is it of a newer version?"
        )
    known = set(files) - set(OPTIONAL) == set(FILES) or verifier_of(manifest) is not None
    if sorted(manifest) != ["command", "data", "files", "format", "weights"] or not known:
        raise refused(f"{MANIFEST} holds other fields than {FORMAT!r} has.")
    if content != _canonical({**manifest, "sha256": _digest(manifest)}) or stated != _digest(manifest):
        raise refused(f"{MANIFEST} was changed after it was written.")
    for name in files:
        if not (folder / name).is_file():
            raise refused(f"{name} is missing.")
        check_holes(folder / name)
        if _sha256(folder / name) != files[name]:
            raise refused(f"{name} was changed after it was written (SHA-256 differs).")
    extra = sorted(p.name for p in folder.iterdir() if p.name not in (*files, MANIFEST, SIGNATURE))
    if extra:
        raise refused(f"{extra[0]} does not belong to it.")
    return manifest


def other_manifest(manifest: Mapping[str, Any], record: Any) -> list[str]:
    """Say what a manifest, whole in itself, states otherwise than the record beside it."""
    twins = (
        ("command", record.command),
        ("data", record.data.fingerprint),
        ("weights", record.model.fingerprint),
    )
    return [f"The manifest's {name} is not that of the record." for name, value in twins if manifest[name] != value]
