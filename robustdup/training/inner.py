"""The inner attack of training: any registered bounded attack, or PGD made for training.

`prepare_inner` checks everything before training starts; `Inner.batch` gives the attack of one batch, which objectives
call. Running statistics, modes, gradients and the global random state stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes
from robustdup.config import parse_call
from robustdup.errors import RunError, UserError, unknown
from robustdup.models.attack_copy.following import FollowingCopy, make_following_copy
from robustdup.plugins import AttackSpec, Registry
from robustdup.plugins.options import check_keywords, keywords
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel
from robustdup.training.captured import CapturedSteps
from robustdup.training.curriculum import Curriculum
from robustdup.training.memory import Memory
from robustdup.training.modes import inner_mode
from robustdup.training.pgd import Execution, RowLoss, check_training_pgd, row_gradient, slices, training_pgd

if TYPE_CHECKING:
    from robustdup.data.augment import Moves
    from robustdup.data.batches import Batch

BATCH_NORM = ("eval", "train")
CPU_ROWS = 64  # rows of an inner pass for each CPU thread: what stays in cache beats what fills all lanes

T = TypeVar("T")


def prepare_inner(
    text: str,
    registry: Registry,
    threat: ThreatModel,
    *,
    bn: str = "eval",
    smoothing: float = 0.0,
    micro_batch: int | None = None,
) -> Inner:
    """Return the inner attack that 'pgd(steps=10,step_size=2/255)' or 'torchattacks:PGD(steps=7)' names, checked.

    'pgd' is PGD made for training, with the options steps, step_size and random_start; every other registered attack that
    stays within a bound can be named, with its own options. `bn`: BatchNorm during the attack uses running statistics
    ("eval") or the batch's ("train"). `smoothing`: what objectives smooth labels by. `micro_batch`: rows of an inner
    pass; by default 64 for each CPU thread, and all elsewhere.
    Raises UserError for what cannot be: an unknown attack or option, another norm, an attack without a bound.
    """
    if bn not in BATCH_NORM:
        raise unknown("value of inner_bn", bn, BATCH_NORM)
    name, given = parse_call(text, "inner attack")
    if name == "pgd":
        known = keywords(training_pgd, besides=("rng", "loss", "execution"))
        options = check_keywords("the inner attack 'pgd'", "pgd", known, given)
        check_training_pgd(**options)
        return Inner("pgd", options, threat, None, bn, smoothing, micro_batch)
    spec = _bounded(name, registry, threat)
    return Inner(name, spec.check_options(given), threat, spec, bn, smoothing, micro_batch)


def _bounded(name: str, registry: Registry, threat: ThreatModel) -> AttackSpec:
    if name in registry.ensembles:
        raise UserError(
            f"{name!r} is an ensemble; the inner attack is a single one, such as pgd, apgd-ce or fgsm.",
            code="bad-attack",
        )
    spec = registry.get_attack(name)
    if spec.kind != "bounded":
        why = (
            "looks for the nearest adversarial image, at any distance"
            if spec.kind == "minimum-norm"
            else "keeps to no bound"
        )
        raise UserError(
            f"Attack {name!r} {why}: training needs images within {threat}. Name a bounded attack, such as pgd "
            "('robustdup attacks list' shows the kind of each).",
            code="bad-attack",
        )
    if threat.norm not in spec.norms:
        raise UserError(
            f"Attack {name!r} works in {' or '.join(spec.norms)}; the threat model is {threat}.", code="bad-norm"
        )
    return spec


@dataclass
class Inner:
    """The inner attack of a run. `spec` is None for PGD made for training; `count` has all rows of inner passes so far.

    `curriculum` changes radius and steps over the budget, `memory` is what an objective keeps of each training entry.
    `attach` it to the model once; `notes` then says what was left out and why.
    """

    name: str
    options: dict[str, Any]
    threat: ThreatModel
    spec: AttackSpec | None
    bn: str
    label_smoothing: float
    micro_batch: int | None
    count: Count = field(default_factory=Count)
    notes: list[str] = field(default_factory=list)
    curriculum: Curriculum = field(default_factory=Curriculum)
    memory: Memory | None = None
    _model: nn.Module | None = None
    _twin: FollowingCopy | None = None
    _stale: bool = True
    captured: CapturedSteps | None = None

    def attach(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        compile: Callable[[nn.Module], nn.Module] | None = None,
        capture: bool = False,
    ) -> None:
        """Attack this model from now on: the very module that is trained, not one that wraps or compiles it.

        `images` (n, C, H, W): a few examples, on the model's device. Attacks of robustdup's own run on a twin with
        BatchNorm folded, where that gives the same logits; `compile` is applied to it; `capture` makes the steps
        of PGD up the cross-entropy one CUDA graph where that can be.
        """
        self._model, self._twin, self._stale = model, None, True
        self.captured = CapturedSteps(self.notes) if capture else None
        if self.micro_batch is None and images.device.type == "cpu" and self.bn == "eval":
            self.micro_batch = CPU_ROWS * torch.get_num_threads()
        if self.bn == "train":
            self.micro_batch = None  # the statistics are those of the whole batch
            self.notes += ["inner_bn=train: inner passes are not compiled."] if compile is not None else []
        else:
            with inner_mode(model):
                self._twin, note = make_following_copy(model, images, compile=compile)
            self.notes += [note] if note else []

    @property
    def folded(self) -> int:
        """BatchNorm layers that the twin does without; 0 where there is none."""
        return self._twin.folded if self._twin is not None else 0

    def batch(self, rng: SampleRng, *, share: float = 0.0, batch: Batch | None = None) -> InnerAttack:
        """Return the attack of one batch; `rng` holds the streams of its samples, `share` of the budget is used up.

        `batch` is what an objective with a memory asks for the places of its samples.
        """
        self._stale = True  # the weights have moved since the batch before; through `.data` no version tells it
        return InnerAttack(self, rng.fold("attack"), share, batch)

    @contextmanager
    def network(self, *, own: bool = True) -> Iterator[nn.Module]:
        """Lend the network as inner passes see it: frozen, in the mode asked for; the twin for `own` attacks."""
        if self._model is None:
            raise RunError("The inner attack is not attached to a model.")
        with inner_mode(self._model, self.bn):
            if self._twin is None or not own:
                yield self._model
                return
            if self._stale or not self._twin.is_fresh():  # weights move within a batch too, where it is replayed
                self._twin.refresh()
                self._stale = False
            yield self._twin.network


class InnerAttack:
    """The inner attack of one batch: see `robustdup.training` for what objectives may ask of it.

    What it finds is kept for the batch.
    """

    def __init__(self, inner: Inner, rng: SampleRng, share: float = 0.0, batch: Batch | None = None) -> None:
        self.inner = inner
        self.rng = rng
        self.threat = inner.curriculum.threat_at(share, inner.threat)
        steps = inner.curriculum.steps_at(share)
        self.options = inner.options if steps is None else {**inner.options, "steps": steps}
        self._batch = batch
        self._kept: dict[Hashable, tuple[Any, tuple[Tensor, ...]]] = {}

    @property
    def label_smoothing(self) -> float:
        """Label smoothing of the cross-entropy terms that an objective minimises."""
        return self.inner.label_smoothing

    def __call__(self, images: Tensor, labels: Tensor, loss: RowLoss | None = None, *, key: str = "") -> Tensor:
        """Return adversarial images for (N, C, H, W), (N,): detached, in the ball and the box; the same for a second call.

        `loss(logits, rows) -> (n,)` is what PGD made for training maximises in place of the cross-entropy; other attacks
        keep their own. `key` tells apart attacks of one batch on the same tensors.
        """
        attack = self._own if self.inner.spec is None else self._registered
        return self.once(("attack", key), lambda: attack(images, labels, loss), images, labels)

    def once(self, key: Hashable, make: Callable[[], T], *tensors: Tensor) -> T:
        """Return what `make()` gave for this key and these very tensors when it was first asked for in this batch."""
        place = (key, *map(id, tensors))
        if place not in self._kept:
            self._kept[place] = make(), tensors  # the tensors are held, so that their ids stay theirs
        value: T = self._kept[place][0]
        return value

    def recall(self, name: str) -> Tensor:
        """Return what the objective kept under this name for the batch's images (n, C, H, W), as they are moved now."""
        memory, batch, moves = self._kept_for()
        return memory.read(name, batch.position, moves)

    def remember(self, name: str, values: Tensor) -> None:
        """Keep values (n, C, H, W) for the batch's images until they come again."""
        memory, batch, moves = self._kept_for()
        memory.write(name, batch.position, moves, values)

    def _kept_for(self) -> tuple[Memory, Batch, Moves]:
        if self.inner.memory is None or self._batch is None or self._batch.moves is None:
            raise RunError("This objective keeps values for each training image, and was given no memory for them.")
        return self.inner.memory, self._batch, self._batch.moves

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of the network as the inner attack sees it, without a graph."""
        return self.once("logits", lambda: self._logits(images), images)

    def gradient(self, images: Tensor, labels: Tensor, loss: RowLoss | None = None) -> Tensor:
        """Return the gradient by the images (N, C, H, W) of the loss, by default the cross-entropy, summed over samples."""
        function: RowLoss = loss or (lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="sum"))
        self.inner.count += Count(len(images), len(images))
        with self.inner.network() as network:
            parts = slices(len(images), self.inner.micro_batch)
            return torch.cat([row_gradient(network, images[rows], function, rows) for rows in parts])

    def _logits(self, images: Tensor) -> Tensor:
        self.inner.count += Count(len(images))
        with self.inner.network() as network, torch.no_grad():
            parts = slices(len(images), self.inner.micro_batch)
            return torch.cat([network(images[rows]) for rows in parts])

    def _own(self, images: Tensor, labels: Tensor, loss: RowLoss | None) -> Tensor:
        options = self.options
        passes = len(images) * int(options.get("steps", 10))
        self.inner.count += Count(passes, passes)
        with self.inner.network() as network:
            return training_pgd(
                network,
                images.detach(),
                labels,
                self.threat,
                rng=self.rng,
                loss=loss,
                execution=Execution(self.inner.micro_batch, self.inner.captured),
                **options,
            )

    def _registered(self, images: Tensor, labels: Tensor, loss: RowLoss | None) -> Tensor:
        spec, rng = self.inner.spec, self.rng
        if spec is None or spec.function is None:
            raise RunError(f"The inner attack {self.inner.name!r} has no function.")
        clean = images.detach()
        pool, own = spec.batching == "pool", spec.source == "native"
        with (
            torch.autocast(clean.device.type, enabled=False),  # before the network: its weights follow it
            self.inner.network(own=own) as network,
            isolated(self.inner._model, seed=rng.call_seed()),
        ):
            # On a GPU one shape serves: each new one would be compiled, or tuned for, anew.
            rows = len(clean) if clean.is_cuda and self.inner.bn == "eval" else None
            passes = Passes(network, (self.inner.micro_batch or rows) if pool else None)
            adv_images = spec.function(passes, clean, labels, self.threat, rng=rng, **self.options)
        self.inner.count += passes.count
        return _inside(spec.name, clean, adv_images, self.threat)


def _inside(name: str, images: Tensor, adv_images: Any, threat: ThreatModel) -> Tensor:
    """Return what an attack gave, projected into the ball and the box. Raises RunError where it is no such images."""
    if not isinstance(adv_images, Tensor) or adv_images.shape != images.shape:
        got = tuple(adv_images.shape) if isinstance(adv_images, Tensor) else type(adv_images).__name__
        raise RunError(
            f"The inner attack {name!r} returned {got} for images of shape {tuple(images.shape)}.", code="bad-shape"
        )
    return threat.project(images, adv_images.detach().to(images))
