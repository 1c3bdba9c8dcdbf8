"""What happens now and then in a run: a point of the curve, a candidate for the best weights, a checkpoint, a view."""

from __future__ import annotations

import time
from collections.abc import Sequence

from robustdup.attacks.isolation import isolated
from robustdup.errors import UserError
from robustdup.records import TrainPoint, TrainProgress, ValidationPoint
from robustdup.statistics import share_p_value
from robustdup.training.checkpoint import Checkpoints
from robustdup.training.parts import ShowProgress
from robustdup.training.trainer import Stopped, Trainer
from robustdup.training.validation import Validate

POINTS = 150  # of the curve, about
CANDIDATES = 20  # for the best weights
COLLAPSED = 0.1  # by how much robust accuracy falls, at least, where training fools its own attack
CHANCE = 0.01  # a fall that few validation images show by chance more often than that is none
SHOWN = 0.1  # seconds between two views of the progress
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.05  # of the time may go into writing checkpoints


def curve_steps(steps: int) -> int:
    """Return the optimizer steps between points of the curve, for a budget of `steps`."""
    return max(1, round(steps / POINTS))


def candidate_steps(validate_every: int | None, steps: int) -> int:
    """Return the optimizer steps between candidates: as asked for, or a twentieth of the budget."""
    return validate_every or max(1, round(steps / CANDIDATES))


def add_point(trainer: Trainer) -> None:
    """Add a point to the curve. Raises Stopped where the loss was not finite."""
    state, processes = trainer.state, trainer.parts.processes
    state.meter.gather(processes)
    trainer.check_loss()
    means = processes.from_first(state.meter.means())
    state.meter.clear()
    rate = trainer.rate(state.step - 1)
    loss, accuracy = means.pop("loss"), means.pop("correct", None)
    state.curve.append(TrainPoint(**trainer.position(), lr=rate, loss=loss, accuracy=accuracy, metrics=means))
    logged = {"loss": loss, "lr": rate, "accuracy": accuracy, **means}
    trainer.session.log({name: value for name, value in logged.items() if value is not None}, state.step)


def consider(trainer: Trainer, validate: Validate, view: View) -> None:
    """Validate the weights as they are (averaged, where that is asked for) as a candidate for the best. Raises Stopped."""
    state, processes = trainer.state, trainer.parts.processes
    trainer.check()
    view.show("validating", at_once=True)
    with state.clock.validating():
        model = trainer.candidate()
        answer = None
        if processes.first:
            with isolated(model):
                model.eval()
                answer = validate(model)
        clean, robust, forward, backward = processes.from_first(answer)  # type: ignore[misc]
    state.passes.validation_forward += forward
    state.passes.validation_backward += backward
    point = ValidationPoint(**trainer.position(), clean_accuracy=clean, robust_accuracy=robust)
    watched = trainer.parts.watched_by
    if watched and (event := catastrophic_overfitting(state.selection.points, point, watched)):
        known = any(other.startswith(event.split(" at ")[0]) for other in state.events)
        state.events += [] if known else [event]
    if state.selection.add(point, model) and processes.first:
        trainer.parts.on_best(state.selection.weights)
    trainer.session.log({"clean_accuracy": clean, "robust_accuracy": robust}, state.step)


def catastrophic_overfitting(before: Sequence[ValidationPoint], point: ValidationPoint, n: int) -> str:
    """Return what to say where robust accuracy on n images has collapsed and clean accuracy has not; empty where not.

    So ends single-step adversarial training that learned to fool its own attack: https://arxiv.org/abs/2001.03994. Told
    from learning that goes badly by clean accuracy, which stays, and from chance by the exact test of two shares.
    """
    best = max(before, key=lambda earlier: earlier.robust_accuracy, default=None)
    if best is None:
        return ""
    fell = best.robust_accuracy - point.robust_accuracy
    if fell < COLLAPSED or point.robust_accuracy > best.robust_accuracy / 2:
        return ""
    if point.clean_accuracy < best.clean_accuracy - COLLAPSED / 2:
        return ""
    if share_p_value(round(point.robust_accuracy * n), round(best.robust_accuracy * n), n) > CHANCE:
        return ""
    return (
        f"Catastrophic overfitting at step {point.step}: robust accuracy on validation images fell from "
        f"{best.robust_accuracy:.1%} (step {best.step}) to {point.robust_accuracy:.1%}, clean accuracy is "
        f"{point.clean_accuracy:.1%}. The model fools the attack of its training. The checkpoint 'best' is from before. Try "
        "fgsm_pgi, n_fgsm with a larger k or a smaller step_size, or pgd with more steps."
    )


class CheckpointSchedule:
    """When checkpoints are written: each `checkpoint_every` steps, or after about a minute of work."""

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        self.trainer, self.checkpoints = trainer, checkpoints
        self.seconds = 0.0  # that the last checkpoint took
        self.saved = time.perf_counter()

    def due(self) -> bool:
        """Tell whether it is time for a checkpoint, in all processes alike."""
        trainer, every = self.trainer, self.trainer.options.checkpoint_every
        if every is not None or trainer.done:
            return trainer.passed(every or trainer.budget.steps)
        processes = trainer.parts.processes
        if processes.count > 1 and not trainer.passed(curve_steps(trainer.budget.steps)):
            return False  # asking the others has its price
        pause = max(CHECKPOINT_SECONDS, self.seconds / CHECKPOINT_SHARE)
        return processes.from_first(time.perf_counter() - self.saved > pause)

    def save(self) -> None:
        """Write a checkpoint. Raises Stopped where not all is finite."""
        began = time.perf_counter()
        self.trainer.gather()
        self.trainer.check()
        self.checkpoints.save(self.trainer.state.state_dict())
        self.saved = time.perf_counter()
        self.seconds = self.saved - began

    def save_first(self) -> None:
        """Write the checkpoint before the first step. Raises UserError for weights that are not finite."""
        try:
            self.save()
        except Stopped:
            message = "The initial weights are not finite: there is nothing to train from."
            raise UserError(message, code="bad-weights") from None

    def resume(self) -> bool:
        """Go on from the last checkpoint; return whether there was one."""
        content = self.checkpoints.load()
        if content is not None:
            self.trainer.state.load_state_dict(content)
            self.trainer.state.events.append(f"Resumed after step {self.trainer.state.step}.")
        return content is not None

    def roll_back(self) -> None:
        """Go back to the last checkpoint, as far as weights and counts are concerned."""
        content = self.checkpoints.load()
        assert content is not None  # one is written before the first step
        self.trainer.state.load_state_dict(content, same_session=True)


class View:
    """Tells `progress` where the run stands, at most ten times a second; waits for the device only then."""

    def __init__(self, trainer: Trainer, progress: ShowProgress) -> None:
        self.trainer, self.progress = trainer, progress
        self.shown = 0.0

    def show(self, message: str = "", *, at_once: bool = False) -> None:
        """Call `progress` where it is time, or `at_once`; always at the end of the run."""
        trainer, state = self.trainer, self.trainer.state
        early = time.perf_counter() - self.shown < SHOWN and not at_once and not trainer.done
        if early or not trainer.parts.processes.first:
            return
        means = state.meter.means()
        last = state.curve[-1] if state.curve else None
        newest = state.selection.points[-1] if state.selection.points else None
        speed = trainer.images_per_second
        self.progress(
            TrainProgress(
                step=state.step,
                n_steps=trainer.budget.steps,
                epoch=trainer.samples / trainer.parts.entries,
                loss=means.get("loss", last.loss if last else None),
                accuracy=means.get("correct", last.accuracy if last else None),
                clean_accuracy=newest.clean_accuracy if newest else None,
                robust_accuracy=newest.robust_accuracy if newest else None,
                images_per_second=speed,
                seconds=state.clock.training,
                seconds_left=self._seconds_left(speed),
                message=message,
            )
        )
        self.shown = time.perf_counter()

    def _seconds_left(self, speed: float) -> float | None:
        if not speed:
            return None
        trainer, state = self.trainer, self.trainer.state
        every = candidate_steps(trainer.options.validate_every, trainer.budget.steps)
        validation = state.clock.validation / max(len(state.selection.points), 1)
        waits = (trainer.budget.steps - state.step) / every * validation
        return (trainer.budget.samples - trainer.samples) / speed + waits
