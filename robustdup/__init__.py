"""robustdup: how robust is this classifier really, and what did duplicated training data do to it?

The public names below are imported on first use, so that `import robustdup` stays light (no torch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.attacks.isolation import isolated as isolated
    from robustdup.attacks.passes import Passes as Passes
    from robustdup.attacks.passes import input_gradient as input_gradient
    from robustdup.errors import AttackWarning as AttackWarning
    from robustdup.errors import RunError as RunError
    from robustdup.errors import Unavailable as Unavailable
    from robustdup.errors import UserError as UserError
    from robustdup.jobs import evaluate as evaluate
    from robustdup.jobs import train as train
    from robustdup.jobs import verify as verify
    from robustdup.plugins import AttackSpec as AttackSpec
    from robustdup.plugins import Registry as Registry
    from robustdup.plugins import Stage as Stage
    from robustdup.plugins import attack as attack
    from robustdup.plugins import load_plugins as load_plugins
    from robustdup.rng import SampleRng as SampleRng
    from robustdup.threat import ThreatModel as ThreatModel

__version__ = "0.1.0"

_PUBLIC = {
    "AttackSpec": "robustdup.plugins",
    "AttackWarning": "robustdup.errors",
    "Passes": "robustdup.attacks.passes",
    "Registry": "robustdup.plugins",
    "RunError": "robustdup.errors",
    "SampleRng": "robustdup.rng",
    "Stage": "robustdup.plugins",
    "ThreatModel": "robustdup.threat",
    "Unavailable": "robustdup.errors",
    "UserError": "robustdup.errors",
    "attack": "robustdup.plugins",
    "evaluate": "robustdup.jobs",
    "verify": "robustdup.jobs",
    "input_gradient": "robustdup.attacks.passes",
    "isolated": "robustdup.attacks.isolation",
    "load_plugins": "robustdup.plugins",
    "train": "robustdup.jobs",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'robustdup' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
