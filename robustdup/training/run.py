"""A training run on its way: everything that changes from step to step, what is done with it now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from robustdup.attacks.isolation import isolated
from robustdup.config import TrainConfig
from robustdup.errors import UserError
from robustdup.models.attack_copy.compile import TrainedModel, compile_mode, compiler
from robustdup.models.attack_copy.layout import fits_channels_last
from robustdup.records import TrainPasses, TrainPoint, TrainProgress, ValidationPoint
from robustdup.training.averages import Averages
from robustdup.training.checkpoint import Checkpoints, identity_of
from robustdup.training.meter import NEVER, Clock, Meter, peak_memory
from robustdup.training.parts import Outcome, Parts, ShowProgress, TrainBatch, Validate
from robustdup.training.processes import Processes
from robustdup.training.schedule import make_budget, make_optimizer, rate_over, set_rate
from robustdup.training.selection import Selection, candidate_steps, weights_of
from robustdup.training.tracking import Session
from robustdup.training.updates import Batch

POINTS = 150  # of the curve, about
SHOWN = 0.1  # seconds between two views of the progress
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.05  # of the time may go into writing checkpoints
STATISTICS_SAMPLES = 10_000  # on which the BatchNorm statistics of averaged (SWA) weights are measured


class Stopped(Exception):
    """The loss or the weights are not finite: says where, and what to try."""


class Run:
    """The state of a run, what it does at a step, and what it does now and then.

    `batch` is the number of the next batch, `step` that of optimizer steps made.
    """

    def __init__(
        self, parts: Parts, config: TrainConfig, device: torch.device, folder: Path | None, session: Session
    ) -> None:
        self.parts, self.config, self.device, self.folder, self.session = parts, config, device, folder, session
        own = parts.module
        self.trained = parts.model if own is None else nn.ModuleDict({"model": parts.model, "objective": own})
        self.events: list[str] = []
        self.budget = make_budget(config, parts.entries, parts.update.steps)
        self.rate = rate_over(config, self.budget.steps)
        self.point_every = max(1, round(self.budget.steps / POINTS))
        self.candidate_every = candidate_steps(config.validate_every, self.budget.steps)
        self.batch = self.step = self.step_before = 0
        self.save_cost = 0.0  # seconds that the last checkpoint took
        self.clock, self.meter, self.selection = Clock(), Meter(device), Selection()
        self.curve: list[TrainPoint] = []
        self.passes, self.counted = TrainPasses(), torch.zeros(4, dtype=torch.int64, device=device)

    def begin(self, resume: bool) -> None:
        """Build what depends on the model, and go on from the last checkpoint where asked to."""
        parts, config, ours = self.parts, self.config, self.parts.processes
        if config.channels_last and fits_channels_last(parts.model, self.device):
            parts.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ours.share_model(self.trained)
        mode = compile_mode(config.compile, self.device, self.events)
        self.model = TrainedModel(parts.model, compiled=mode, rows=max(1, config.batch_size // ours.count))
        self.optimizer = make_optimizer(self.trained, config)
        swa_start = round(config.swa * self.budget.steps) if config.swa else None
        self.averages = Averages(parts.model, ema=config.ema, swa_start=swa_start)
        identity = identity_of(self.trained, config, {"entries": parts.entries, **parts.kept})
        self.checkpoints = Checkpoints(self.folder, identity, writes=ours.first)
        state = self.checkpoints.load() if resume else None
        if state is not None:
            self.load_state_dict(state)
            self.events.append(f"Resumed after step {self.step}.")
        _, example = next(iter(self.stream(0)))
        parts.inner.attach(parts.model, example.images[:16], compile=compiler(mode))
        self.trained.train()
        set_rate(self.optimizer, self.rate(self.step))
        if state is None:
            self._save_first()
        self.batch_began, self.shown, self.saved = self.batch, 0.0, time.perf_counter()
        self.clock.start()

    def _save_first(self) -> None:
        try:
            self.save()
        except Stopped:
            raise UserError("The initial weights are not finite: there is nothing to train from.") from None

    def stream(self, start: int, *, rank: int = 0, processes: int = 1) -> Iterable[tuple[int, TrainBatch]]:
        """Return the batches of the run from number `start` on."""
        return self.parts.stream(self.config.batch_size, self.budget.samples, start, rank=rank, processes=processes)

    def make_steps(self, number: int, batch: TrainBatch, share: float) -> None:
        """Make the optimizer steps of a batch, each of whose samples here counts with `share`."""
        parts, rows = self.parts, self.budget.rows(number)
        attack = parts.inner.batch(batch.rng)

        def loss_of(shift: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
            images = batch.images if shift is None else (batch.images + shift).clamp(0, 1)
            with self.session.autocast():
                loss, metrics = parts.objective(self.model, images, batch.labels, attack=attack, rng=batch.rng)
            loss = loss.float() if batch.weights is None else loss.float() * batch.weights
            return loss.sum() * (share / rows), metrics

        ours = parts.processes if share == 1.0 else Processes()  # else every process has the whole batch
        work = Batch(
            self.model, self.optimizer, loss_of, batch.images,
            reduce=parts.processes.sum_gradients, clip=self._clip, stepped=self._stepped,
            first=ours.first_of(rows), rows=rows, whole=lambda values: ours.whole(values, rows),
        )  # fmt: skip
        self.step_before = self.step
        loss, metrics = self._replayed(work, self.budget.replays_of(number))
        sums = {name: values.sum() * share for name, values in metrics.items()}
        self.meter.add(self.step, loss * rows, sums, rows=share * batch.labels.shape[0])
        self.batch = number + 1

    def _replayed(self, work: Batch, replays: int) -> tuple[Tensor, dict[str, Tensor]]:
        rule = self.parts.update
        usual = rule.steps
        if replays == usual:
            return rule.step(work)
        rule.steps = replays  # the last batch of a budget in steps
        try:
            return rule.step(work)
        finally:
            rule.steps = usual

    def _stepped(self) -> None:
        self.step += 1
        self.averages.update(self.parts.model, self.step)
        set_rate(self.optimizer, self.rate(self.step))

    def _clip(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.config.clip is not None:
            clip_grad_norm_(parameters, self.config.clip)

    def passed(self, every: int) -> bool:
        """Whether the last batch passed a multiple of `every` steps, or ended the run."""
        return self.step // every > self.step_before // every or self.batch == self.budget.batches

    @property
    def samples(self) -> int:
        """Training entries drawn so far."""
        return min(self.batch * self.config.batch_size, self.budget.samples)

    # Now and then: points of the curve, candidates, checkpoints, the view.

    def add_point(self) -> None:
        """Add a point to the curve. Raises Stopped where the loss was not finite."""
        self.meter.gather(self.parts.processes)
        self._check_loss()
        means = self.parts.processes.from_first(self.meter.means())
        self.meter.clear()
        rate = self.rate(self.step - 1)
        point = TrainPoint(
            **self._position(), lr=rate, loss=means.pop("loss"), accuracy=means.pop("correct", None), metrics=means
        )
        self.curve.append(point)
        shown = {"loss": point.loss, "lr": rate, "accuracy": point.accuracy, **means}
        self.session.log({name: value for name, value in shown.items() if value is not None}, self.step)

    def consider(self, validate: Validate, progress: ShowProgress) -> None:
        """Validate the weights as they are (averaged, where that is asked for) as a candidate for the best."""
        self.check()
        self.show(progress, "validating", at_once=True)
        with self.clock.validating():
            model = self.chosen()
            found = None
            if self.parts.processes.first:
                with isolated(model):
                    model.eval()
                    found = validate(model)
            clean, robust, forward, backward = self.parts.processes.from_first(found)  # type: ignore[misc]
        self.passes.validation_forward += forward
        self.passes.validation_backward += backward
        point = ValidationPoint(**self._position(), clean_accuracy=clean, robust_accuracy=robust)
        if self.selection.add(point, model) and self.parts.processes.first:
            self.parts.on_best(self.selection.weights)
        self.session.log({"clean_accuracy": clean, "robust_accuracy": robust}, self.step)

    def chosen(self) -> nn.Module:
        """Return the model whose weights count: the averaged one where there is one."""
        samples = min(self.parts.entries, STATISTICS_SAMPLES, self.budget.samples)
        first = self.parts.stream(self.config.batch_size, samples)
        return self.averages.chosen(self.parts.model, (batch.images for _, batch in first))

    def wants_checkpoint(self) -> bool:
        """Whether it is time for a checkpoint: each `checkpoint_every` steps, or after about a minute of work."""
        if self.config.checkpoint_every is not None or self.batch == self.budget.batches:
            return self.passed(self.config.checkpoint_every or self.budget.steps)
        if self.parts.processes.count > 1 and not self.passed(self.point_every):
            return False  # asking the others has its price
        pause = max(CHECKPOINT_SECONDS, self.save_cost / CHECKPOINT_SHARE)
        return self.parts.processes.from_first(time.perf_counter() - self.saved > pause)

    def save(self) -> None:
        """Write a checkpoint, after a look that all is finite."""
        began = time.perf_counter()
        self.meter.gather(self.parts.processes)
        self._gather_passes()
        self.check()
        self.checkpoints.save(self.state_dict())
        self.saved = time.perf_counter()
        self.save_cost = self.saved - began

    def _gather_passes(self) -> None:
        """Add the rows of all processes since the last time."""
        inner, model = self.parts.inner.count, self.model
        seen = torch.tensor(
            [inner.forward, inner.backward, model.forward_rows, model.backward_rows], device=self.device
        )
        new = self.parts.processes.sum(seen - self.counted).tolist()
        self.counted = seen
        names = ("attack_forward", "attack_backward", "train_forward", "train_backward")
        self.passes = self.passes.model_copy(
            update={name: getattr(self.passes, name) + rows for name, rows in zip(names, new, strict=True)}
        )

    def check(self) -> None:
        """Raise Stopped where the loss or a weight is not finite; waits for the device."""
        self._check_loss()
        values = [value for value in self.trained.state_dict().values() if value.is_floating_point()]
        if not bool(get_total_norm(values, float("inf")).isfinite()):
            raise Stopped(self._reason("The weights were not finite after", self.step))

    def _check_loss(self) -> None:
        bad = int(self.parts.processes.least(self.meter.bad))
        if bad < NEVER:
            raise Stopped(self._reason("The loss was not finite at", bad))

    def _reason(self, what: str, step: int) -> str:
        config, rate = self.config, self.rate(max(step - 1, 0))
        tries = [f"a lower lr (now {config.lr:g})"]
        tries += ["warmup=0.1"] if not config.warmup and config.schedule != "one-cycle" else []
        tries += ["clip=1"] if config.clip is None else [f"a smaller clip (now {config.clip:g})"]
        tries += ["precision=fp32"] if config.precision != "fp32" else []
        where = f"{what} step {step} of {self.budget.steps} (learning rate {rate:.3g})"
        return f"{where}. Try {', '.join(tries[:-1])} or {tries[-1]}."

    def roll_back(self) -> None:
        """Go back to the last checkpoint."""
        state, clock = self.checkpoints.load(), self.clock
        assert state is not None  # one is written before the first step
        self.load_state_dict(state)
        self.clock = clock  # the time was spent

    def show(self, progress: ShowProgress, message: str = "", *, at_once: bool = False) -> None:
        """Call `progress`, at most ten times a second; waits for the device only then."""
        now = time.perf_counter()
        last = self.batch == self.budget.batches
        if not self.parts.processes.first or (now - self.shown < SHOWN and not at_once and not last):
            return
        means = self.meter.means()
        point = self.curve[-1] if self.curve else None
        newest = self.selection.points[-1] if self.selection.points else None
        speed = self.images_per_second()
        progress(
            TrainProgress(
                step=self.step, n_steps=self.budget.steps, epoch=self.samples / self.parts.entries,
                loss=means.get("loss", point.loss if point else None),
                accuracy=means.get("correct", point.accuracy if point else None),
                clean_accuracy=newest.clean_accuracy if newest else None,
                robust_accuracy=newest.robust_accuracy if newest else None,
                images_per_second=speed, seconds=self.clock.training,
                seconds_left=self._seconds_left(speed), message=message,
            )
        )  # fmt: skip
        self.shown = time.perf_counter()

    def _seconds_left(self, speed: float) -> float | None:
        candidates = len(self.selection.points)
        if not speed:
            return None
        waits = (self.budget.steps - self.step) / self.candidate_every * self.clock.validation / max(candidates, 1)
        return (self.budget.samples - self.samples) / speed + waits

    def images_per_second(self) -> float:
        """Return the training entries a second in this session."""
        seen = self.samples - self.batch_began * self.config.batch_size
        return max(seen, 0) / self.clock.session if self.clock.session else 0.0

    # What is kept, and what comes out.

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on as if nothing had happened."""
        return {
            "model": self.trained.state_dict(), "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict(), "update": self.parts.update.state_dict(),
            "selection": self.selection.state_dict(), "meter": self.meter.state_dict(),
            "batch": self.batch, "step": self.step, "curve": [point.model_dump() for point in self.curve],
            "passes": self.passes.model_dump(), "seconds": self.clock.training,
            "validation_seconds": self.clock.validation, "events": list(self.events),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.trained.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state_dict(state["averages"])
        self.parts.update.load_state_dict(state["update"])
        self.selection.load_state_dict(state["selection"])
        self.meter.load_state_dict(state["meter"])
        self.batch, self.step, self.step_before = state["batch"], state["step"], state["step"]
        self.curve = [TrainPoint.model_validate(point) for point in state["curve"]]
        self.passes = TrainPasses.model_validate(state["passes"])
        self.clock.load(state["seconds"], state["validation_seconds"])
        self.events = list(state["events"])

    def _position(self) -> dict[str, Any]:
        epoch = self.samples / self.parts.entries
        return {"step": self.step, "samples": self.samples, "epoch": epoch, "seconds": self.clock.training}

    def finish(self, stopped: str) -> Outcome:
        """Return the outcome; `stopped` is the reason of a run that did not go through."""
        speed = self.images_per_second()
        last = weights_of(self.chosen())
        best = self.selection.best
        return Outcome(
            status="stopped" if stopped else "complete", reason=stopped,
            steps=self.step, samples=self.samples, epochs=self.samples / self.parts.entries,
            curve=self.curve, validation=self.selection.points,
            best_step=best.step if best else self.step, best=self.selection.weights if best else last,
            last_step=self.step, last=last, passes=self.passes, seconds=self.clock.training,
            validation_seconds=self.clock.validation, images_per_second=speed,
            peak_memory=peak_memory(self.device), compiled=self.model.compiled,
            events=[*self.events, *self.parts.inner.notes, *self.model.notes],
        )  # fmt: skip
