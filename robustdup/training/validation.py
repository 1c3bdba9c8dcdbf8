"""Which weights are the best: candidates by their robust accuracy on held-out images, never on the test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import misclassified
from robustdup.attacks.passes import Passes
from robustdup.config import parse_call
from robustdup.errors import UserError
from robustdup.plugins import AttackSpec, Registry
from robustdup.records import ValidationPoint
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

BATCH_ROWS = 128  # of a pass
Weights = dict[str, Tensor]
# A model in eval mode -> (clean accuracy, robust accuracy, rows forward, rows backward), accuracies in [0, 1].
Validate = Callable[[nn.Module], tuple[float, float, int, int]]


class Selection:
    """The candidates so far, and the weights of the best: highest robust accuracy, then clean accuracy, then earliest."""

    def __init__(self) -> None:
        self.points: list[ValidationPoint] = []
        self.weights: Weights = {}

    @property
    def best(self) -> ValidationPoint | None:
        """The candidate that is the best so far."""
        return next((point for point in self.points if point.best), None)

    def add(self, point: ValidationPoint, model: nn.Module) -> bool:
        """Take in a candidate; return whether it is the best now."""
        before = self.best
        better = before is None or _worth(point) > _worth(before)
        if better:
            self.points = [other.model_copy(update={"best": False}) for other in self.points]
            self.weights = weights_of(model)
        self.points.append(point.model_copy(update={"best": better}))
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {"points": [point.model_dump() for point in self.points], "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.points = [ValidationPoint.model_validate(point) for point in state["points"]]
        self.weights = state["weights"]


def _worth(point: ValidationPoint) -> tuple[float, float]:
    return point.robust_accuracy, point.clean_accuracy


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of a model's state dict on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class ValidationSet:
    """Images that are not trained on: float32 (V, C, H, W) in [0, 1], labels (V,), and their indices in the split (V,)."""

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class ValidationAttack:
    """The attack by which candidates are compared: a registered one with its options, in a threat model."""

    spec: AttackSpec
    options: dict[str, Any]
    threat: ThreatModel


def find_validation_attack(text: str, registry: Registry, threat: ThreatModel) -> ValidationAttack:
    """Return the attack that 'pgd(steps=10)' names. Raises UserError for one unknown, and for one of other norms."""
    name, options = parse_call(text, "validation attack")
    spec = registry.get_attack(name)
    if threat.norm not in spec.norms:
        message = f"The validation attack {name!r} works in {', '.join(spec.norms)}, not in {threat.norm}."
        raise UserError(message, code="bad-norm")
    return ValidationAttack(spec, spec.check_options(options), threat)


def make_validate(samples: ValidationSet, attack: ValidationAttack, *, seed: int, device: torch.device) -> Validate:
    """Return what says of a model (clean accuracy, robust accuracy, rows forward, rows backward) on the validation set."""
    answer = correct_per_sample(samples, attack, seed=seed, device=device)

    def validate(model: nn.Module) -> tuple[float, float, int, int]:
        clean, robust, passes = answer(model)
        n = len(clean)
        return int(clean.sum()) / n, int(robust.sum()) / n, passes.count.forward, passes.count.backward

    return validate


def correct_per_sample(
    samples: ValidationSet, attack: ValidationAttack, *, seed: int, device: torch.device
) -> Callable[[nn.Module], tuple[Tensor, Tensor, Passes]]:
    """Return what says of a model which images it classifies rightly (V,), which also under attack (V,), and the passes.

    The attack starts alike for every model (draws are keyed by the images' indices), and is judged by a pass of its own.
    """
    images, labels = samples.images.to(device), samples.labels.to(device)
    rng = SampleRng(seed, samples.index.to(device)).fold("validation attack")

    def answer(model: nn.Module) -> tuple[Tensor, Tensor, Passes]:
        passes = Passes(model, min(BATCH_ROWS, len(labels)))
        with torch.no_grad():
            clean = ~misclassified(passes(images), labels)
        index = clean.nonzero().squeeze(1)
        function = attack.spec.function
        assert function is not None
        with isolated(model, seed=rng.call_seed()):
            adv_images = function(passes, images[index], labels[index], attack.threat, rng=rng[index], **attack.options)
        adv_images = attack.threat.project(images[index], adv_images.detach())
        robust = torch.zeros_like(clean)
        with torch.no_grad():
            robust[index] = ~misclassified(passes(adv_images), labels[index])
        return clean, robust, passes

    return answer
