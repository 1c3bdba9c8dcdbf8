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

_PUBLIC = {
    # the verbs
    "attack": "robustdup.api.evaluation",
    "certify": "robustdup.api.certification",
    "compare": "robustdup.api.runs",
    "drop_duplicates": "robustdup.api.duplicates",
    "duplicate": "robustdup.api.duplicates",
    "evaluate": "robustdup.api.evaluation",
    "evaluate_corruptions": "robustdup.api.corruptions",
    "find_duplicates": "robustdup.api.duplicates",
    "gate": "robustdup.api.runs",
    "load_data": "robustdup.api.loading",
    "load_model": "robustdup.api.loading",
    "rank": "robustdup.api.runs",
    "train": "robustdup.api.runs",
    "verify": "robustdup.api.runs",
    # what they return and raise
    "AttackWarning": "robustdup.errors",
    "CertificationResult": "robustdup.api.certification",
    "EvaluationResult": "robustdup.api.results",
    "RunError": "robustdup.errors",
    "ThreatModel": "robustdup.threat",
    "Unavailable": "robustdup.errors",
    "UserError": "robustdup.errors",
    # for authors of plugins
    "AttackFunction": "robustdup.plugins",
    "AttackSpec": "robustdup.plugins",
    "Passes": "robustdup.attacks.passes",
    "Registry": "robustdup.plugins",
    "SampleRng": "robustdup.rng",
    "Stage": "robustdup.plugins",
    "attack_signature": "robustdup.plugins",
    "how_to_install": "robustdup.errors",
    "input_gradient": "robustdup.attacks.passes",
    "isolated": "robustdup.attacks.isolation",
    "load_plugins": "robustdup.plugins",
    "register_attack": "robustdup.plugins",
}

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
