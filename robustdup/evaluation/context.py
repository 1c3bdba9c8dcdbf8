"""What an evaluation runs on: the untouched original, the model to attack, the device, and how rows are packed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustdup.attacks.guided import Guided
from robustdup.attacks.passes import Passes
from robustdup.errors import UserError
from robustdup.evaluation.draws import USUAL_EOT, Draws
from robustdup.models.adapt import usable_copy
from robustdup.models.attack_copy.prepare import Prepared, prepare


@dataclass(frozen=True)
class EngineOptions:
    """How an evaluation computes, and what it looks for besides robust accuracy.

    Args:
        batch_size: samples in one call of an attack, which is what a kill can lose; None: by the device and the clock.
        micro_batch: rows in one padded model call; None: measured.
        fold: whether native attacks run on a copy with BatchNorm folded into convolutions.
        compile: whether that copy is compiled; `auto` is off on a CPU, and on with CUDA for long runs.
        precision: of that copy (chosen: no `auto`); the referee is always fp32.
        draws: fresh draws by which a randomised model is judged.
        mode: whether the model is put in eval mode or left as it comes.
        seed: of everything random.
        threads: CPU threads; None: one for a model too small to share out, all otherwise.
        individual: whether each attack runs on all samples instead of on those that are left.
        each_norm: whether every ball of a union is attacked on all samples, not on those that the balls before it left.
        min_distance: whether minimum-norm attacks look for the smallest eps of every sample.
        diagnostics: whether to look for signs that the result should not be believed.
    """

    batch_size: int | None = None
    micro_batch: int | None = None
    fold: bool = True
    compile: Literal["auto", "off", "on", "cudagraphs"] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    draws: int = 100
    mode: Literal["eval", "as-is"] = "eval"
    seed: int = 0
    threads: int | None = None
    individual: bool = False
    each_norm: bool = False
    min_distance: bool = False
    diagnostics: bool = True


@dataclass
class Context:
    """What attacks run on: the original that the referee asks, the model to attack, and how rows are packed.

    Every call of a wrapped attack gets a fresh copy of `attacked`, so that it may ruin it and harm neither the referee nor
    the next attack; native attacks share `attack_copy`. Samples in a call: `batch_size`, where given; rows in a padded
    model call: `micro_batch`, and `sizes`, others at which it computes the same bits; up to `fill` rows it pays to ask at once
    what would be asked one after the other (0: the model does not repeat itself). `seconds` are those of a row, (forward,
    forward and backward), where they were measured.
    """

    original: Passes
    attacked: nn.Module
    device: torch.device
    batch_size: int
    micro_batch: int
    draws: int
    seed: int
    copied: bool = True  # False where the model refuses: then attacks run on the original itself
    stand_in: bool = False  # whether `attacked` is another model than the original
    attack_copy: Prepared | None = None
    sizes: tuple[int, ...] = ()
    fill: int = 0
    seconds: tuple[float, float] | None = None
    worth_compiling: bool = True  # whether the run is long enough for `compile=auto` to compile on CUDA
    longest: float = 0.0  # seconds that the run would take in one process if every sample survived
    batch_size_given: bool = True
    workers: int = 1  # that share the samples
    first_look: Any = None  # at the model's gradients and outputs, kept for the diagnostics (`masking.look_first`)
    gradient_draws: Draws = field(default_factory=Draws)  # of a model that answers at random
    usual_margin: float = 0.0  # median of the clean margins, for what counts as close
    held: list[Any] = field(default_factory=list)  # what else no attack may change (`robustdup.evaluation.held`)
    guard: Any = None  # of the judge: `robustdup.evaluation.guard`, made when the first attack is about to run
    batch_dependent: bool = (
        False  # whether answers depend on who shares a batch: then its rows are not chosen by the clock
    )

    @property
    def looks(self) -> int:
        """Over how many draws a look at gradients and answers averages: one where the model repeats itself."""
        return min(self.gradient_draws.eot, USUAL_EOT) if self.draws > 1 else 1

    def looking_at(self, model: nn.Module) -> Passes:
        """Return a model to look at: asked in micro-batches, over so many draws, its passes counted from 0."""
        return Passes(model, self.micro_batch, draws=self.looks)


def check_modules(model: object, attack_model: object = None) -> None:
    """Raise UserError where a model is not a module of torch; `attack_model` may be None."""
    for name, module in (("model", model), ("attack model", attack_model)):
        if not isinstance(module, nn.Module) and not (name == "attack model" and module is None):
            raise UserError(
                f"The {name} must be a torch.nn.Module, got a {type(module).__name__}.", code="not-a-module"
            )


def make_context(
    model: nn.Module, stand_in: nn.Module | None, device: torch.device, options: EngineOptions | None = None
) -> Context:
    """Copy the model for the referee, in the right mode, on the device; `stand_in` is attacked in its place if given."""
    options = options or EngineOptions()
    cuda = device.type == "cuda"
    micro_batch = options.micro_batch or (256 if cuda else 32)
    original = usable_copy(model, device, eval_mode=options.mode == "eval")
    return Context(
        original=Passes(original, micro_batch),
        attacked=original if stand_in is None else _guided(stand_in, original, device, options.mode),
        device=device,
        batch_size=options.batch_size or (512 if cuda else 128),
        micro_batch=micro_batch,
        draws=1,
        seed=options.seed,
        copied=original is not model,
        stand_in=stand_in is not None,
        batch_size_given=options.batch_size is not None,
    )


def _guided(stand_in: nn.Module, original: nn.Module, device: torch.device, mode: str) -> nn.Module:
    """Return the stand-in with the answers of the judged model, so that a sample leaves when that one is wrong."""
    guide = usable_copy(stand_in, device, eval_mode=mode == "eval")
    try:
        judged = copy.deepcopy(original)
    except Exception:  # see usable_copy  # noqa: BLE001
        return guide
    return Guided(guide, judged)


def make_attack_copy(
    context: Context, options: EngineOptions, examples: Tensor, randomized: bool, *, compiled: bool = True
) -> Sequence[str]:
    """Put an attack copy of the attacked model into the context, and return what a reader should know of it.

    Nothing is done where no preparation is asked for, or where the same was done already.

    Args:
        context: what the evaluation runs on; its `attack_copy` is set.
        options: whether to fold, to compile, and the precision.
        examples: images (n, C, H, W), at most a micro-batch, on which the copy must answer as the model does.
        randomized: whether the model answers at random, so that answers cannot be compared.
        compiled: False to put compiling off until the micro-batch is known.
    """
    compile_it = options.compile in ("on", "cudagraphs") or (
        options.compile == "auto" and context.device.type == "cuda" and context.worth_compiling
    )
    wanted = options.fold or compile_it or options.precision != "fp32"
    if wanted and (context.attack_copy is None or compile_it):
        context.attack_copy = prepare(
            context.attacked,
            examples,
            micro_batch=context.micro_batch,
            fold=options.fold,
            channels_last=options.fold,
            compile=options.compile if compiled and compile_it else "off",
            precision=options.precision,
            randomized=randomized,
        )
    return () if context.attack_copy is None else context.attack_copy.notes


def fresh_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with frozen weights for attacking; the model itself where it cannot be copied."""
    try:
        copied = copy.deepcopy(model)
    except Exception:  # see usable_copy  # noqa: BLE001
        return model
    for parameter in copied.parameters():  # of a TorchScript module too, which has no requires_grad_
        if not parameter.is_leaf:  # what copying TorchScript leaves
            parameter.detach_()
        parameter.requires_grad_(False)
    return copied


def remarks(model: nn.Module, context: Context) -> list[str]:
    """Say what a reader should know of how the model is judged: in another precision, or not as a copy."""
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()} - {"float32"}
    if not context.copied:
        return [
            "The model cannot be copied, so attacks run on the very model that is judged; it is checked at the end."
        ]
    if dtypes:
        return [f"The model's weights came as {', '.join(sorted(dtypes))}; they are judged as float32."]
    return []
