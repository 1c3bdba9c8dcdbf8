"""Objectives: one a file, each a plain function on the contract of `robustdup.training`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustdup.config import parse_call
from robustdup.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn

    from robustdup.plugins.registry import ObjectiveSpec, Registry


def register_objectives(registry: Registry) -> None:
    """Register the objectives that come with robustdup."""
    from robustdup.training.objectives.free import free
    from robustdup.training.objectives.mart import mart
    from robustdup.training.objectives.morel import check_morel, morel, morel_module
    from robustdup.training.objectives.n_fgsm import check_n_fgsm, n_fgsm
    from robustdup.training.objectives.pgd_at import pgd_at
    from robustdup.training.objectives.standard import standard
    from robustdup.training.objectives.terms import check_beta
    from robustdup.training.objectives.trades import trades

    registry.add_objective(
        "standard", standard, attacks=False, description="Cross-entropy on the images as they are."
    )  # fmt: skip
    registry.add_objective(
        "pgd_at", pgd_at, description="Cross-entropy on adversarial images.", url="https://arxiv.org/abs/1706.06083"
    )
    registry.add_objective(
        "trades", trades, check=check_beta, url="https://arxiv.org/abs/1901.08573",
        description="Cross-entropy on clean images, and how far adversarial answers drift from clean ones.",
    )  # fmt: skip
    registry.add_objective(
        "mart", mart, check=check_beta, url="https://openreview.net/forum?id=rklOg6EFwS",
        description="Boosted cross-entropy on adversarial images, and drift weighed by how unsure the clean answer is.",
    )  # fmt: skip
    registry.add_objective(
        "free", free, update="free", attacks=False, url="https://arxiv.org/abs/1904.12843",
        description="Several steps on each batch, whose backward passes also move the images.",
    )  # fmt: skip
    registry.add_objective(
        "n_fgsm", n_fgsm, attacks=False, check=check_n_fgsm, url="https://arxiv.org/abs/2202.01181",
        description="Cross-entropy on images moved by strong noise and one gradient step.",
    )  # fmt: skip
    registry.add_objective(
        "morel", morel, features=True, module=morel_module, check=check_morel, url="https://arxiv.org/abs/2410.01697",
        description="MART or TRADES, with clean, adversarial and same-class features drawn together.",
    )  # fmt: skip


def find_objective(text: str, registry: Registry) -> tuple[ObjectiveSpec, dict[str, Any]]:
    """Return the objective that 'trades(beta=6)' names and its checked options. Raises UserError with the nearest name."""
    name, options = parse_call(text, "objective")
    if name not in registry.objectives:
        raise unknown("objective", name, registry.objectives)
    spec = registry.objectives[name]
    return spec, spec.check_options(options)


def check_model(spec: ObjectiveSpec, model: nn.Module) -> None:
    """Raise UserError where the objective needs `model.features` and the model has none."""
    if spec.features and not callable(getattr(model, "features", None)):
        raise UserError(
            f"The objective {spec.name!r} works on features and needs a model with features(images) -> (N, D) and a "
            f"last layer `head`; {type(model).__name__} has none. Choose one of robustdup's architectures, or pgd_at."
        )
