"""robustdup: how robust is this classifier really, and what did duplicated training data do to it?

The public names below are imported on first use, so that `import robustdup` stays light (no torch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.api.certification import CertificationResult as CertificationResult
    from robustdup.api.certification import certify as certify
    from robustdup.api.corruptions import evaluate_corruptions as evaluate_corruptions
    from robustdup.api.duplicates import drop_duplicates as drop_duplicates
    from robustdup.api.duplicates import duplicate as duplicate
    from robustdup.api.duplicates import find_duplicates as find_duplicates
    from robustdup.api.evaluation import attack as attack
    from robustdup.api.evaluation import evaluate as evaluate
    from robustdup.api.loading import load_data as load_data
    from robustdup.api.loading import load_model as load_model
    from robustdup.api.results import EvaluationResult as EvaluationResult
    from robustdup.api.runs import compare as compare
    from robustdup.api.runs import gate as gate
    from robustdup.api.runs import rank as rank
    from robustdup.api.runs import train as train
    from robustdup.api.runs import verify as verify
    from robustdup.attacks.isolation import isolated as isolated
    from robustdup.attacks.passes import Passes as Passes
    from robustdup.attacks.passes import input_gradient as input_gradient
    from robustdup.errors import AttackWarning as AttackWarning
    from robustdup.errors import RunError as RunError
    from robustdup.errors import Unavailable as Unavailable
    from robustdup.errors import UserError as UserError
    from robustdup.errors import how_to_install as how_to_install
    from robustdup.plugins import AttackFunction as AttackFunction
    from robustdup.plugins import AttackSpec as AttackSpec
    from robustdup.plugins import Registry as Registry
    from robustdup.plugins import Stage as Stage
    from robustdup.plugins import attack_signature as attack_signature
    from robustdup.plugins import load_plugins as load_plugins
    from robustdup.plugins import register_attack as register_attack
    from robustdup.rng import SampleRng as SampleRng
    from robustdup.threat import ThreatModel as ThreatModel

_PLACES = {
    "robustdup.api.certification": ("CertificationResult", "certify"),
    "robustdup.api.corruptions": ("evaluate_corruptions",),
    "robustdup.api.duplicates": ("drop_duplicates", "duplicate", "find_duplicates"),
    "robustdup.api.evaluation": ("attack", "evaluate"),
    "robustdup.api.loading": ("load_data", "load_model"),
    "robustdup.api.results": ("EvaluationResult",),
    "robustdup.api.runs": ("compare", "gate", "rank", "train", "verify"),
    "robustdup.attacks.isolation": ("isolated",),
    "robustdup.attacks.passes": ("Passes", "input_gradient"),
    "robustdup.errors": ("AttackWarning", "RunError", "Unavailable", "UserError", "how_to_install"),
    "robustdup.plugins": (
        "AttackFunction",
        "AttackSpec",
        "Registry",
        "Stage",
        "attack_signature",
        "load_plugins",
        "register_attack",
    ),
    "robustdup.rng": ("SampleRng",),
    "robustdup.threat": ("ThreatModel",),
}
_PUBLIC = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":  # written once, in pyproject.toml
        from importlib.metadata import version  # takes longer to import than all else here

        return version("robustdup")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'robustdup' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
