"""Which weights are the best: candidates by their robust accuracy on held-out images, never on the test split."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustdup.records import ValidationPoint

Weights = dict[str, Tensor]


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


def candidate_steps(validate_every: int | None, steps: int) -> int:
    """Return the optimizer steps between candidates: as asked for, or a twentieth of the budget."""
    return validate_every or max(1, round(steps / 20))


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of a model's state dict on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
