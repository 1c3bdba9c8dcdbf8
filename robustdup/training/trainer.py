"""The trainer: the optimizer steps of a batch, and the state that they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from robustdup.data.batches import Batch
from robustdup.device import out_of_memory
from robustdup.models.attack_copy.compile import TrainedModel, compile_mode, compiler
from robustdup.models.attack_copy.layout import fits_channels_last
from robustdup.training.asking import ask_objective
from robustdup.training.averages import Averages
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.processes import Processes
from robustdup.training.schedule import make_budget, make_optimizer, rate_over, set_rate
from robustdup.training.state import NEVER, State
from robustdup.training.tracking import Session
from robustdup.training.updates import LossAndMetrics, UpdateTask, loss_scaler

WORTH_COMPILING = 1000  # optimizer steps from which `compile=auto` compiles on CUDA: a minute must pay
STATISTICS_SAMPLES = 10_000  # on which the BatchNorm statistics of averaged (SWA) weights are measured


class Stopped(Exception):
    """The loss or the weights are not finite: says where, and what to try."""


def can_split(batch: Batch) -> bool:
    """Tell whether a batch can be computed in parts: not where the inner attack keeps something of each sample."""
    return getattr(batch, "moves", None) is None


def parts_of(batch: Batch, count: int) -> list[slice]:
    """Return `count` runs of neighbours of a batch, as equal as can be."""
    rows = batch.labels.shape[0]
    return [slice(rows * part // count, rows * (part + 1) // count) for part in range(count)]


class Trainer:
    """Trains the model of `parts`, in place, batch by batch.

    `model` is the model as the objective sees it, `trained` everything that is trained (an objective may have weights of
    its own), `state` where the run stands, `budget` where it ends, `rate` the learning rate after so many steps.
    """

    def __init__(self, parts: Parts, options: TrainerOptions, device: torch.device, session: Session) -> None:
        self.parts, self.options, self.device, self.session = parts, options, device, session
        module = parts.module
        self.trained = parts.model if module is None else nn.ModuleDict({"model": parts.model, "objective": module})
        self.budget = make_budget(options.budget(), options.batch_size, parts.entries, parts.update.steps)
        self.rate = rate_over(options, self.budget.steps)
        if options.channels_last and fits_channels_last(parts.model, device):
            parts.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parts.processes.share_model(self.trained)
        swa_start = round(options.swa * self.budget.steps) if options.swa else None
        averages = Averages(parts.model, ema=options.ema, swa_start=swa_start)
        self.state = State(self.trained, make_optimizer(self.trained, options), averages, parts.update, device)
        self.state.memory = parts.inner.memory
        self.state.split = options.accumulate
        self.state.scaler = loss_scaler(device.type, enabled=options.precision == "fp16")
        worth_it = self.budget.steps >= WORTH_COMPILING
        self._mode = compile_mode(options.compile, device, self.state.events, worth_it=worth_it)
        rows = max(1, options.batch_size // parts.processes.count // options.accumulate)
        self.model = TrainedModel(parts.model, compiled=self._mode, rows=rows)
        self._counted = torch.zeros(4, dtype=torch.int64, device=device)

    def start(self) -> None:
        """Make ready for the first step of this session."""
        _, example = next(iter(self.stream(0)))
        captures = self._mode == "cudagraphs"  # all steps at once then, in place of torch's graphs for each pass
        self.parts.inner.attach(
            self.parts.model,
            example.images[:16],
            compile=compiler("default" if captures else self._mode, self._inner_rows, self.state.events),
            capture=captures,
        )
        self.trained.train()
        for module in self.parts.frozen:
            module.eval()
        set_rate(self.state.optimizer, self.rate(self.state.step))
        self.batch_began = self.state.batch
        self.state.clock.start()

    def _inner_rows(self) -> int:
        """Return the images in an inner pass of a whole batch."""
        return min(self.parts.inner.micro_batch or self.model.rows, self.model.rows)

    def stream(self, start: int, *, rank: int = 0, processes: int = 1) -> Iterable[tuple[int, Batch]]:
        """Return the batches of the run from number `start` on."""
        return self.parts.stream(self.options.batch_size, self.budget.samples, start, rank=rank, processes=processes)

    def batches(self) -> Iterator[tuple[int, Batch, float]]:
        """Yield (number, this process' share of the batch, weight of each of its samples) for the rest of the budget.

        Of a last batch that is too small to be shared out every process sees the whole, which then counts in parts.
        """
        ours, budget, start = self.parts.processes, self.budget, self.state.batch
        too_small = next((n for n in range(start, budget.batches)[-1:] if budget.rows(n) < ours.count), None)
        for number, batch in self.stream(start, rank=ours.rank, processes=ours.count):
            if number == too_small:
                yield number, next(iter(self.stream(number)))[1], 1 / ours.count
            else:
                yield number, batch, 1.0

    def train_on(self, number: int, batch: Batch, share: float) -> None:
        """Make the optimizer steps of a batch, each of whose samples here counts with `share`."""
        state, rows = self.state, self.budget.rows(number)
        state.step_before = state.step
        while True:
            try:
                loss, metrics = self.parts.update.step(self._task(number, batch, share))
                break
            except (RuntimeError, MemoryError) as error:
                if not self._splits_further(error, batch):
                    raise
        sums = {name: values.sum() * share for name, values in metrics.items()}
        state.meter.add(state.step, loss * rows, sums, rows=share * batch.labels.shape[0])
        state.batch = number + 1

    def _task(self, number: int, batch: Batch, share: float) -> UpdateTask:
        """Return what the update rule is to do with a batch, whole or in as many parts as the run has come to."""
        parts, state, rows = self.parts, self.state, self.budget.rows(number)
        ours = parts.processes if share == 1.0 else Processes()  # else every process has the whole batch
        count = min(state.split, batch.labels.shape[0]) if can_split(batch) else 1
        return UpdateTask(
            self.model,
            state.optimizer,
            self._loss_of(batch, slice(None), share / rows),
            batch.images,
            reduce=parts.processes.sum_gradients,
            clip=self._clip,
            stepped=self._stepped,
            first=ours.first_of(rows),
            rows=rows,
            whole=lambda values: ours.whole(values, rows),
            replays=self.budget.replays_of(number),
            parts=[self._loss_of(batch, part, share / rows) for part in parts_of(batch, count)] if count > 1 else (),
            scaler=state.scaler,
        )

    def _loss_of(self, batch: Batch, rows: slice, weight: float) -> Callable[[Tensor | None], LossAndMetrics]:
        """Return the loss of some rows of a batch, each weighed by `weight`, at images that may be shifted."""
        images, labels, rng = batch.images[rows], batch.labels[rows], batch.rng[rows]
        weights = None if batch.weights is None else batch.weights[rows]
        inner, share_used = self.parts.inner, self.state.step / max(self.budget.steps, 1)
        attack = inner.batch(rng, share=share_used, batch=batch if inner.memory else None)

        def loss_of(shift: Tensor | None) -> LossAndMetrics:
            moved = images if shift is None else (images + shift[rows]).clamp(0, 1)
            with self.session.autocast():
                loss, metrics = ask_objective(self.parts.objective, self.model, moved, labels, attack=attack, rng=rng)
            loss = loss.float() if weights is None else loss.float() * weights
            return loss.sum() * weight, metrics

        return loss_of

    def _splits_further(self, error: Exception, batch: Batch) -> bool:
        """Tell whether a batch that ran out of memory is to be tried again in twice as many parts, and note it."""
        state = self.state
        begun = state.step != state.step_before  # a rule of several steps: the weights have moved on
        possible = can_split(batch) and 2 * state.split <= batch.labels.shape[0] and self.parts.processes.count == 1
        if begun or not possible or not out_of_memory(error):
            return False
        state.split *= 2
        state.optimizer.zero_grad(set_to_none=True)
        state.events.append(
            f"Out of memory at step {state.step}: from here on each batch is computed in {state.split} parts, whose gradients "
            "are summed; BatchNorm normalises each part by itself."
        )
        return True

    def _stepped(self) -> None:
        self.state.step += 1
        self.state.averages.update(self.parts.model, self.state.step)
        set_rate(self.state.optimizer, self.rate(self.state.step))

    def _clip(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.options.clip is not None:
            clip_grad_norm_(parameters, self.options.clip)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.state.batch == self.budget.batches

    @property
    def samples(self) -> int:
        """Samples drawn so far."""
        return min(self.state.batch * self.options.batch_size, self.budget.samples)

    @property
    def images_per_second(self) -> float:
        """Samples a second in this session."""
        seen, seconds = self.samples - self.batch_began * self.options.batch_size, self.state.clock.session
        return max(seen, 0) / seconds if seconds else 0.0

    def passed(self, every: int) -> bool:
        """Whether the last batch passed a multiple of `every` steps, or ended the run."""
        return self.state.step // every > self.state.step_before // every or self.done

    def position(self) -> dict[str, Any]:
        """Return where the run stands, as points of curves say it."""
        epoch = self.samples / self.parts.entries
        return {
            "step": self.state.step,
            "samples": self.samples,
            "epoch": epoch,
            "seconds": self.state.clock.training,
        }

    def candidate(self) -> nn.Module:
        """Return the model to validate and save: the averaged one where there is one."""
        samples = min(self.parts.entries, STATISTICS_SAMPLES, self.budget.samples)
        batches = self.parts.stream(self.options.batch_size, samples)
        return self.state.averages.chosen(self.parts.model, (batch.images for _, batch in batches))

    def gather(self) -> None:
        """Bring together what all processes counted: losses and metrics, and the rows of passes."""
        self.state.meter.gather(self.parts.processes)
        inner, model = self.parts.inner.count, self.model
        rows = [inner.forward, inner.backward, model.forward_rows, model.backward_rows]
        counted = torch.tensor(rows, device=self.device)
        new = self.parts.processes.sum(counted - self._counted).tolist()
        self._counted = counted
        passes = self.state.passes
        names = ("attack_forward", "attack_backward", "train_forward", "train_backward")
        sums = {name: getattr(passes, name) + more for name, more in zip(names, new, strict=True)}
        self.state.passes = passes.model_copy(update=sums)

    def check_loss(self) -> None:
        """Raise Stopped where a loss was not finite; waits for the device."""
        bad = int(self.parts.processes.least(self.state.meter.bad))
        if bad < NEVER:
            raise Stopped(self._reason("The loss was not finite at", bad))

    def check(self) -> None:
        """Raise Stopped where a loss or a weight is not finite; waits for the device."""
        self.check_loss()
        values = [value for value in self.trained.state_dict().values() if value.is_floating_point()]
        if not bool(get_total_norm(values, float("inf")).isfinite()):
            raise Stopped(self._reason("The weights were not finite after", self.state.step))

    def _reason(self, event: str, step: int) -> str:
        options, rate = self.options, self.rate(max(step - 1, 0))
        tries = [f"a lower lr (now {options.lr:g})"]
        tries += ["warmup=0.1"] if not options.warmup and options.schedule != "one-cycle" else []
        tries += ["clip=1"] if options.clip is None else [f"a smaller clip (now {options.clip:g})"]
        tries += ["precision=fp32"] if options.precision != "fp32" else []
        where = f"{event} step {step} of {self.budget.steps} (learning rate {rate:.3g})"
        return f"{where}. Try {', '.join(tries[:-1])} or {tries[-1]}."
