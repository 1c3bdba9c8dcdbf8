"""Checkpoints: the state from which a run goes on, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdup.errors import RunError, UserError, plain
from robustdup.records.folder import STATE
from robustdup.records.sealed import read_sealed, write_sealed
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts

CHECKPOINT_FILE = "checkpoint.pt"
VERSION = 1
# Settings under which a run may go on though they differ: they do not change the weights that come out.
FREE_TO_CHANGE = (
    "out",
    "plugin",
    "device",
    "threads",
    "loader_workers",
    "in_memory",
    "track",
    "checkpoint_every",
    "allow_pickle",
    "evaluate",
    "test_split",
    "test_data",
    "test_n",
    "targets",
)


class Checkpoints:
    """The last good state of a run: in the run's `folder` where there is one, else in memory.

    `identity` is what a state must share to be gone on from. Only the process that `writes` touches the folder.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], *, writes: bool = True) -> None:
        self.path = None if folder is None else folder / STATE / CHECKPOINT_FILE
        self.identity, self.writes = identity, writes
        self._kept = b""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state of tensors, numbers, texts, and lists and dicts of them. Raises RunError; the last one then stays."""
        if self.path is not None and not self.writes:
            return
        memory = io.BytesIO()
        torch.save({"version": VERSION, "identity": self.identity, "state": dict(state)}, memory)
        if self.path is None:
            self._kept = memory.getvalue()
        else:
            write_sealed(self.path, memory.getvalue())

    def load(self) -> dict[str, Any] | None:
        """Return the last state, on the CPU; None where there is none.

        Raises UserError for the state of another run, RunError for a broken file.
        """
        if not (self._kept if self.path is None else self.path.exists()):
            return None
        try:
            saved = self._kept if self.path is None else read_sealed(self.path)
            content = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not {"version", "identity", "state"} <= content.keys():
                raise ValueError("it holds no state of a training")
        except Exception as error:
            raise RunError(
                f"{str(self.path)!r} is damaged ({plain(error, 200)}), and the training cannot go on from it. Start it again "
                "in another --out.",
                code="damaged-checkpoint",
            ) from error
        self._check(content)
        return dict(content["state"])

    def _check(self, content: Mapping[str, Any]) -> None:
        if content.get("version") != VERSION:
            raise UserError(
                f"The checkpoint {str(self.path)!r} has version {content.get('version')}; this robustdup reads {VERSION}.",
                code="other-checkpoint",
            )
        for kind, ours in self.identity.items():
            theirs = content["identity"].get(kind, {})
            for key in [*ours, *(key for key in theirs if key not in ours)]:
                there, here = theirs.get(key, "missing"), ours.get(key, "missing")
                if there != here:
                    raise UserError(
                        f"The checkpoint {str(self.path)!r} is of another {kind}: {key} is {there} there and {here} here. "
                        "Resume with what the run was started with, or choose another --out.",
                        code="other-checkpoint",
                    )


def identity_of(model: nn.Module, parts: Parts, options: TrainerOptions) -> dict[str, dict[str, Any]]:
    """Return what two runs must share for one to go on from the other's checkpoint."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    settings = {**asdict(options), **parts.settings}
    return {
        "architecture": shapes,
        "configuration": {key: value for key, value in settings.items() if key not in FREE_TO_CHANGE},
        "data": {"entries": parts.entries, **parts.data},
    }
