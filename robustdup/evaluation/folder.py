"""The run folder of an evaluation: what is written while it goes on (`state/`), and what is left when it is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustdup.config import EvalConfig, validate
from robustdup.data.dataset import ImageDataset
from robustdup.records import RECORD_FILE, EvaluationRecord, load_record, save_record, save_samples, write_atomic
from robustdup.records import folder as run_folder
from robustdup.records.folder import CONFIG_FILE, STATE, locked

__all__ = ["CONFIG_FILE", "STATE", "locked"]

ELSEWHERE = ("out", "plugin", "device", "workers", "runner")  # settings that do not change what is computed
WORST_FILE = "images/adversarial.safetensors"
CLEAN_FILE = "images/clean.safetensors"


def saved_config(folder: Path) -> EvalConfig:
    """Return the configuration with which the run in `folder` was started. Raises UserError where there is none."""
    return validate(EvalConfig, run_folder.saved_content(folder))


def open_folder(folder: Path, config: EvalConfig, resume: bool) -> None:
    """Start a run folder, or check that the one to resume was started with the same configuration."""
    run_folder.start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=ELSEWHERE)


def check_same(folder: Path, config: EvalConfig) -> None:
    """Raise UserError where the run in `folder` was started with other settings than `config`."""
    saved = saved_config(folder).model_dump(mode="json")
    run_folder.check_same(folder, config.model_dump(mode="json"), saved, elsewhere=ELSEWHERE)


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


def save_run(
    folder: Path,
    record: EvaluationRecord,
    rows: dict[str, list[Any]],
    worst: Tensor,
    data: ImageDataset,
    config: EvalConfig,
) -> None:
    """Write images, samples and, last, the record; then the state of the run is no longer needed."""
    if config.save_images:
        tensors = {"images": worst.contiguous(), "labels": data.labels, "index": data.index}
        write_atomic(folder / WORST_FILE, save_tensors(tensors))
        write_atomic(folder / CLEAN_FILE, save_tensors({"images": _stored(data.images)}))
    save_samples(rows, folder)
    save_record(record, folder)
    if record.n_undecided == 0:
        shutil.rmtree(folder / STATE, ignore_errors=True)


def _stored(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as bytes where they lie on the 8-bit grid, as they are otherwise."""
    levels = (images * 255).round()
    on_grid = bool(((images * 255 - levels).abs() <= 1e-4).all())
    return (levels.to(torch.uint8) if on_grid else images).contiguous()
