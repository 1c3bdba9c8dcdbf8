"""Training from its first step to its result, downwards: batches, optimizer steps, what happens now and then."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from robustdup.device import out_of_memory
from robustdup.errors import RunError
from robustdup.rng import seed_torch
from robustdup.training.asking import device_failed
from robustdup.training.checkpoint import Checkpoints, identity_of
from robustdup.training.events import CheckpointSchedule, View, add_point, candidate_steps, consider, curve_steps
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts, ShowProgress, TrainResult
from robustdup.training.processes import whole_batch_norm
from robustdup.training.state import peak_memory
from robustdup.training.tracking import open_session
from robustdup.training.trainer import Stopped, Trainer
from robustdup.training.validation import Validate, weights_of


def fit(
    parts: Parts,
    options: TrainerOptions,
    *,
    device: torch.device,
    folder: Path | None = None,
    resume: bool = False,
    validate: Validate | None = None,
    progress: ShowProgress = lambda _: None,
) -> TrainResult:
    """Train `parts.model` in place for the budget of `options` and return the result.

    With a `folder` (which the caller holds, see `robustdup.records.folder.locked`) checkpoints are written there; with
    `resume` the run goes on from its last checkpoint, to the same weights. `validate` chooses the best weights;
    without it the last ones are the best. A loss that is not finite ends the run with status "stopped". Raises
    UserError for settings that cannot be and for a checkpoint of another run, RunError where the device fails or a file
    cannot be written: the last checkpoint is kept then.
    """
    with open_session(options, device, folder, parts.processes, parts.settings) as session:
        trainer = Trainer(parts, options, device, session)
        identity = identity_of(trainer.trained, parts, options)
        checkpoints = CheckpointSchedule(trainer, Checkpoints(folder, identity, writes=parts.processes.first))
        view = View(trainer, progress)
        resumed = resume and checkpoints.resume()
        trainer.start()
        if not resumed:
            checkpoints.save_first()
        trainer.state.clock.start()
        stopped = ""
        try:
            with whole_batch_norm(trainer.trained, parts.processes):
                train_to_the_end(trainer, checkpoints, view, validate)
        except Stopped as reason:
            checkpoints.roll_back()
            stopped = str(reason)
        except RuntimeError as error:
            failure = _device_failure(error, trainer, kept=folder is not None)
            if failure is None:
                raise
            raise failure from error
        return _result(trainer, stopped)


def train_to_the_end(trainer: Trainer, checkpoints: CheckpointSchedule, view: View, validate: Validate | None) -> None:
    """Run the budget from where the run stands. Raises Stopped where the loss is not finite."""
    options, steps, rank = trainer.options, trainer.budget.steps, trainer.parts.processes.rank
    point_every, candidate_every = curve_steps(steps), candidate_steps(options.validate_every, steps)
    for number, batch, share in trainer.batches():
        seed_torch(step_seed(options.seed, number, rank))
        trainer.train_on(number, batch, share)
        if trainer.passed(point_every):
            add_point(trainer)
        if validate is not None and trainer.passed(candidate_every):
            consider(trainer, validate, view)
            checkpoints.save()
        elif checkpoints.due():
            checkpoints.save()
        view.show()


def step_seed(seed: int, batch: int, rank: int) -> int:
    """Return the seed of torch's generator for a batch: dropout and the like need no state to go on from a checkpoint."""
    content = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(content, "little") >> 1


def _result(trainer: Trainer, stopped: str) -> TrainResult:
    """Return what the run leaves; `stopped` is the reason of one that did not go through."""
    state, speed = trainer.state, trainer.images_per_second
    last, best = weights_of(trainer.candidate()), state.selection.best
    return TrainResult(
        status="stopped" if stopped else "complete",
        reason=stopped,
        steps=state.step,
        samples=trainer.samples,
        epochs=trainer.samples / trainer.parts.entries,
        curve=state.curve,
        validation=state.selection.points,
        best_step=best.step if best else state.step,
        best=state.selection.weights if best else last,
        last_step=state.step,
        last=last,
        passes=state.passes,
        seconds=state.clock.training,
        validation_seconds=state.clock.validation,
        images_per_second=speed,
        peak_memory=peak_memory(trainer.device),
        compiled=trainer.model.compiled,
        events=[*state.events, *trainer.parts.inner.notes, *trainer.model.notes],
    )


def _device_failure(error: RuntimeError, trainer: Trainer, *, kept: bool) -> RunError | None:
    """Return the error to show where the device failed, None for any other error."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    again = "The last checkpoint is kept: go on with --resume." if kept else ""
    step = trainer.state.step
    if out_of_memory(error):
        message = f"Out of memory at step {step}: {text} Take a smaller batch_size. {again}".rstrip()
        return RunError(message, code="out-of-memory")
    if trainer.device.type != "cpu" and device_failed(error):
        return RunError(f"The device failed at step {step}: {text} {again}".rstrip(), code="device-failed")
    return None
