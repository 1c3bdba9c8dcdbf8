"""Exporting a trained network: files that load without robustdup, written, loaded again and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from robustdup.errors import RunError, UserError, user_path
from robustdup.models.load import load_model
from robustdup.models.programs import load_program
from robustdup.models.trained import NetworkDescription, read_description, save_weights
from robustdup.plugins import Registry
from robustdup.plugins.loading import import_file
from robustdup.records import write_atomic
from robustdup.rng import SampleRng
from robustdup_publish.programs import save_program
from robustdup_publish.standalone import configuration, modeling_code

Kind = Literal["hub", "safetensors", "onnx", "pt2"]
KINDS = ("hub", "safetensors", "onnx", "pt2")
COMPARED = 4  # images on which what was written must answer as the network does
TOLERANCE = 1e-3  # of logits, as a share of the largest


@dataclass(frozen=True)
class Exported:
    """What was written into `folder`: its `kind` (a hub folder is safetensors or pt2), `files`, the largest `difference`."""

    folder: Path
    kind: Kind
    files: tuple[str, ...]
    difference: float
    description: NetworkDescription


def export_run(run: str, kind: Kind, folder: Path, registry: Registry) -> Exported:
    """Write the network of a training run, FOLDER, FOLDER@best or FOLDER@last, into a new folder.

    Raises UserError for a run without a network, a folder that holds something, and a network that cannot be written so;
    RunError where what was written answers otherwise than the network.
    """
    run = run.removeprefix("run:")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{str(folder)!r} is not empty: nothing is overwritten. Choose another --out.", code="not-empty"
        )
    model = load_model(f"run:{run}", registry=registry)
    place = run.rpartition("@")[0] if run.endswith(("@best", "@last")) else run
    description = read_description(user_path(place))
    code = modeling_code(description, registry)
    if kind == "hub":
        kind = "pt2" if code is None else "safetensors"
    if kind == "safetensors" and code is None:
        raise UserError(
            f"{description.spec} is not an architecture of robustdup's own, whose code could go with the weights: export to pt2 "
            "or onnx, which hold the whole network.",
            code="bad-option",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.json", configuration(description).encode())
    size = (description.channels, *description.size)
    images = SampleRng(0, torch.arange(COMPARED)).uniform(size)
    if kind == "safetensors" and code is not None:
        save_weights(folder, "model", model)
        write_atomic(folder / "modeling.py", code.encode())
        files: tuple[str, ...] = ("model.safetensors", "modeling.py")
    else:
        save_program(model, images[:2], folder / f"model.{kind}")
        files = (f"model.{kind}",)
    difference = _difference(model, _again(folder, kind), images)
    return Exported(folder, kind, (*files, "config.json"), difference, description)


def _again(folder: Path, kind: Kind) -> nn.Module:
    """Load what was written, as somebody without robustdup would."""
    if kind != "safetensors":
        return load_program(folder / f"model.{kind}", allow_pickle=True)  # written here
    module = import_file("robustdup_exported_modeling", folder / "modeling.py")
    model: nn.Module = module.load(folder)
    return model


def _difference(model: nn.Module, again: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        ours, theirs = model(images), again(images)
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise RunError(
            f"What was written answers otherwise than the network: logits differ by {difference:.3g}.",
            code="other-answers",
        )
    return difference
