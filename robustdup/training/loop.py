"""The training loop: batches in, optimizer steps, candidates, checkpoints, and an outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from robustdup.config import TrainConfig
from robustdup.device import out_of_memory
from robustdup.errors import RunError
from robustdup.training.parts import Outcome, Parts, ShowProgress, TrainBatch, Validate
from robustdup.training.processes import whole_batch_norm
from robustdup.training.run import Run, Stopped
from robustdup.training.tracking import open_session


def run_training(
    parts: Parts,
    config: TrainConfig,
    *,
    device: torch.device,
    folder: Path | None = None,
    resume: bool = False,
    validate: Validate | None = None,
    progress: ShowProgress = lambda _: None,
) -> Outcome:
    """Train `parts.model` in place for the budget of `config` and return the outcome.

    With a `folder` (which the caller holds, see `robustdup.records.folder.locked`) checkpoints are written there; with
    `resume` the run goes on from its last checkpoint, to the same weights. `validate` chooses the best weights;
    without it the last ones are the best. A loss that is not finite ends the run with status "stopped". Raises
    UserError for settings that cannot be and for a checkpoint of another run, RunError where the device fails or a file
    cannot be written: the last checkpoint is kept then.
    """
    with open_session(config, device, folder, parts.processes) as session:
        run = Run(parts, config, device, folder, session)
        run.begin(resume)
        try:
            with whole_batch_norm(run.trained, parts.processes):
                train(run, validate, progress)
            stopped = ""
        except Stopped as reason:
            run.roll_back()
            stopped = str(reason)
        except RuntimeError as error:
            failure = _device_failure(error, run)
            if failure is None:
                raise
            raise failure from error
        return run.finish(stopped)


def train(run: Run, validate: Validate | None, progress: ShowProgress) -> None:
    """Run the budget from where the run stands. Raises Stopped where the loss is not finite."""
    for number, batch, share in batches(run):
        torch.manual_seed(step_seed(run.config.seed, number, run.parts.processes.rank))
        run.make_steps(number, batch, share)
        if run.passed(run.point_every):
            run.add_point()
        if validate is not None and run.passed(run.candidate_every):
            run.consider(validate, progress)
            run.save()
        elif run.wants_checkpoint():
            run.save()
        run.show(progress)


def batches(run: Run) -> Iterator[tuple[int, TrainBatch, float]]:
    """Yield (number, this process' share of the batch, weight of each of its samples) for the rest of the budget.

    Of a last batch that is too small to be shared out every process sees the whole, which then counts in parts.
    """
    ours = run.parts.processes
    alone = next((n for n in range(run.batch, run.budget.batches)[-1:] if run.budget.rows(n) < ours.count), None)
    for number, batch in run.stream(run.batch, rank=ours.rank, processes=ours.count):
        if number == alone:
            yield number, next(iter(run.stream(number)))[1], 1 / ours.count
        else:
            yield number, batch, 1.0


def step_seed(seed: int, batch: int, rank: int) -> int:
    """Return the seed of torch's generator for a batch: dropout and the like need no state to go on from a checkpoint."""
    content = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(content, "little") >> 1


def _device_failure(error: RuntimeError, run: Run) -> RunError | None:
    """Return the error to show where the device failed, None for any other error."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kept = "The last checkpoint is kept: go on with --resume." if run.folder is not None else ""
    if out_of_memory(error):
        return RunError(f"Out of memory at step {run.step}: {text} Take a smaller batch_size. {kept}".rstrip())
    if run.device.type != "cpu" and any(word in text for word in ("CUDA error", "device-side", "MPS", "HIP error")):
        return RunError(f"The device failed at step {run.step}: {text} {kept}".rstrip())
    return None
