"""`robustdup train`: standard and adversarial training, to a checkpoint and a record."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from robustdup.cli.flags import RECORD_AS_JSON, RESUME, TRUST, split_words, with_flags
from robustdup.cli.quiet import diverted
from robustdup.cli.runs import configuration, interrupted
from robustdup.config import TrainConfig
from robustdup.errors import UserError
from robustdup.records.folder import fresh_folder


def _train_command(
    words: list[str],
    flags: dict[str, Any],
    resume: str | None = RESUME,
    trust: bool = TRUST,
    json: bool = RECORD_AS_JSON,
) -> int:
    """Train a classifier, standard or adversarially. With no arguments: PGD training on the built-in digits."""
    file, overrides = split_words(words)
    config, folder = configuration(TrainConfig, "objective", _fresh, file, overrides, flags, resume, trust=trust)

    from robustdup import jobs  # torch is imported from here on
    from robustdup.report.training import LiveTraining, show_training

    first = int(os.environ.get("RANK", "0")) == 0  # of several processes, one speaks
    view = LiveTraining(enabled=first and not json and sys.stderr.isatty(), lines=first)
    try:
        with view, diverted(json):
            record = jobs.run_training(config, folder=folder, resume=resume is not None, progress=view.update)
    except KeyboardInterrupt:
        if not folder.is_dir():
            raise
        return interrupted("train", folder)
    if first:
        show_training(record, folder, json=json)
    return 0 if record.status == "complete" else 1


def _fresh(config: TrainConfig) -> Path:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("Several processes share one run folder: name it with --out.", code="missing-option")
    return fresh_folder("train", config.model, config.data)


train_command = with_flags(TrainConfig, _train_command)
