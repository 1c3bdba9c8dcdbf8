"""The run folder: what is written while a run goes on (`state/`), and what is left when it is done."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from robustdup.config import EvalConfig, validate
from robustdup.data.labelled import LabelledImages
from robustdup.errors import UserError
from robustdup.records import RECORD_FILE, EvaluationRecord, load_record, save_record, save_samples, write_atomic

STATE = "state"
CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
ELSEWHERE = ("out", "plugin", "device", "workers", "runner")  # settings that do not change what is computed
WORST_FILE = "images/adversarial.safetensors"


def default_folder(config: EvalConfig) -> Path:
    """Return `runs/<time>-<model>-<data>-<four letters>` for a run without a folder of its own."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{config.model.split('@')[0]}-{config.data}").strip("-")[-60:]
    return Path("runs") / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{slug}-{secrets.token_hex(2)}"


def saved_config(folder: Path) -> EvalConfig:
    """Return the configuration with which the run in `folder` was started. Raises UserError where there is none."""
    for path, key in ((folder / STATE / CONFIG_FILE, None), (folder / RECORD_FILE, "config")):
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                return validate(EvalConfig, content if key is None else content[key])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{str(path)!r} is not a whole JSON file ({error}).") from None
    raise UserError(f"{str(folder)!r} holds no run to resume.")


def open_folder(folder: Path, config: EvalConfig, resume: bool) -> None:
    """Start a run folder, or check that the one to resume was started with the same configuration."""
    state = folder / STATE / CONFIG_FILE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder. Choose another --out.")
    if state.is_file():
        if not resume:
            raise UserError(
                f"{str(folder)!r} holds an unfinished run. Go on with it by --resume, or choose another --out."
            )
        check_same(folder, config)
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} is not empty. Choose another --out; nothing is overwritten.")
    write_atomic(state, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; a process that dies lets go. Raises UserError where another one holds it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with (folder / STATE / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is at work in {str(folder)!r}. Wait for it, or choose another --out."
            ) from None
        yield


def check_same(folder: Path, config: EvalConfig) -> None:
    """Raise UserError where the run in `folder` was started with other settings than `config`."""
    mine, theirs = (_comparable(c.model_dump(mode="json")) for c in (config, saved_config(folder)))
    different = [key for key in mine if mine[key] != theirs.get(key)]
    if different:
        key = different[0]
        raise UserError(
            f"The run in {str(folder)!r} was started with {key}={theirs.get(key)!r}, not {mine[key]!r}. "
            "Resume it with the same settings, or choose another --out."
        )


def finished_record(folder: Path) -> EvaluationRecord | None:
    """Return the record of a run that is done; None where attacks are left to run, or points to decide.

    What a kill may have left of its state is removed.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    record = load_record(folder)
    if record.n_undecided and (folder / STATE / CONFIG_FILE).is_file():
        return None
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return record


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ELSEWHERE}


def save_run(
    folder: Path,
    record: EvaluationRecord,
    rows: dict[str, list[Any]],
    worst: Tensor,
    data: LabelledImages,
    config: EvalConfig,
) -> None:
    """Write images, samples and, last, the record; then the state of the run is no longer needed."""
    if config.save_images:
        tensors = {"images": worst.contiguous(), "labels": data.labels, "index": data.index}
        write_atomic(folder / WORST_FILE, save_tensors(tensors))
    save_samples(rows, folder)
    save_record(record, folder)
    if record.n_undecided == 0:
        shutil.rmtree(folder / STATE, ignore_errors=True)
