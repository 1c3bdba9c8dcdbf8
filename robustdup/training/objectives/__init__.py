"""Objectives: plain functions on the contract of `robustdup.training`, registered without being imported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustdup.config import parse_call
from robustdup.errors import UserError, unknown
from robustdup.plugins.options import resolved

if TYPE_CHECKING:
    from torch import nn

    from robustdup.plugins import ObjectiveSpec, Registry


# Name, function (in `robustdup.training.objectives`, as are `check` and `module`), description, and what else is known.
OBJECTIVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("standard", "adversarial:standard", "Cross-entropy on the images as they are.", {"attacks": False}),
    ("pgd_at", "adversarial:pgd_at", "Cross-entropy on adversarial images.", {"url": "https://arxiv.org/abs/1706.06083"}),
    ("trades", "adversarial:trades", "Cross-entropy on clean images, and how far adversarial answers drift from clean ones.",
     {"check": "adversarial:check_beta", "url": "https://arxiv.org/abs/1901.08573"}),
    ("mart", "adversarial:mart",
     "Boosted cross-entropy on adversarial images, and drift weighed by how unsure the clean answer is.",
     {"check": "adversarial:check_beta", "url": "https://openreview.net/forum?id=rklOg6EFwS"}),
    ("free", "adversarial:free", "Several steps on each batch, whose backward passes also move the images.",
     {"attacks": False, "update": "free", "url": "https://arxiv.org/abs/1904.12843"}),
    ("n_fgsm", "adversarial:n_fgsm", "Cross-entropy on images moved by strong noise and one gradient step.",
     {"attacks": False, "check": "adversarial:check_n_fgsm", "url": "https://arxiv.org/abs/2202.01181"}),
    ("fgsm_pgi", "prior:fgsm_pgi",
     "Cross-entropy after one gradient step from where earlier epochs ended, and how far answers drift on it.",
     {"attacks": False, "check": "prior:check_fgsm_pgi", "url": "https://arxiv.org/abs/2207.08859"}),
    ("ibp", "intervals:ibp",
     "Cross-entropy of the worst logits that interval bounds leave possible: certified training, in Linf.",
     {"attacks": False, "check": "intervals:check_weights", "url": "https://arxiv.org/abs/1810.12715"}),
    ("crown_ibp", "crown_ibp:crown_ibp",
     "As ibp, with linear bounds of the margins at first, or throughout: steadier, tighter at a small radius.",
     {"attacks": False, "check": "intervals:check_weights", "url": "https://arxiv.org/abs/1906.06316"}),
    ("morel", "morel:morel", "MART or TRADES, with clean, adversarial and same-class features drawn together.",
     {"features": True, "module": "morel:morel_module", "check": "morel:check_morel", "url": "https://arxiv.org/abs/2410.01697"}),
)  # fmt: skip


def register_objectives(registry: Registry) -> None:
    """Register the objectives that come with robustdup; none of them is imported."""
    here = "robustdup.training.objectives"
    for name, function, description, known in OBJECTIVES:
        named: dict[str, Any] = {key: f"{here}.{known[key]}" for key in ("check", "module") if key in known}
        registry.add_objective(name, f"{here}.{function}", description=description, **(known | named))


def find_objective(text: str, registry: Registry) -> tuple[ObjectiveSpec, dict[str, Any]]:
    """Return the objective that 'trades(beta=6)' names and its checked options. Raises UserError with the nearest name."""
    name, options = parse_call(text, "objective")
    if name not in registry.objectives:
        raise unknown("objective", name, registry.objectives)
    spec = registry.objectives[name]
    checked = spec.check_options(options)
    return replace(spec, function=resolved(spec.function)), checked


def needs_memory(spec: ObjectiveSpec) -> bool:
    """Tell whether an objective keeps values for each training image from epoch to epoch: it is marked `keeps_memory`."""
    return bool(getattr(resolved(spec.function), "keeps_memory", False))


def check_mixed(spec: ObjectiveSpec, attack: str, mix: str | None) -> None:
    """Raise UserError where images are mixed and the objective, or the inner attack of that name, needs one class each."""
    if not mix:
        return
    if not getattr(spec.function, "takes_mixed_labels", False):
        raise UserError(
            f"mix = {mix}: the objective {spec.name!r} needs one class for each image. Take standard, pgd_at, trades, n_fgsm "
            "or free.",
            code="options-conflict",
        )
    if spec.attacks and attack != "pgd":
        raise UserError(
            f"mix = {mix}: the inner attack {attack!r} needs one class for each image. Take attack = pgd.",
            code="options-conflict",
        )


def check_model(spec: ObjectiveSpec, model: nn.Module) -> None:
    """Raise UserError where the objective needs `model.features` and the model has none."""
    if spec.features and not callable(getattr(model, "features", None)):
        raise UserError(
            f"The objective {spec.name!r} works on features and needs a model with features(images) -> (N, D) and a "
            f"last layer `head`; {type(model).__name__} has none. Choose one of robustdup's architectures, or pgd_at.",
            code="bad-model",
        )
