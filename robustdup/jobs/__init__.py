"""The one place that assembles: a configuration becomes objects, they run, and a record comes out.

Commands, notebooks, study cells, benchmarks and workers all call what is here. A name is imported on first use: an
evaluation does not import the trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.evaluation.engine import Evaluation as Evaluation
    from robustdup.jobs.evaluation import check_same as check_same
    from robustdup.jobs.evaluation import finished_record as finished_record
    from robustdup.jobs.evaluation import load_data as load_data
    from robustdup.jobs.evaluation import parse_threats as parse_threats
    from robustdup.jobs.evaluation import plan as plan
    from robustdup.jobs.evaluation import plan_for as plan_for
    from robustdup.jobs.evaluation import run_evaluation as run_evaluation
    from robustdup.jobs.training import run_training as run_training
    from robustdup.jobs.transferred import transfer as transfer
    from robustdup.jobs.verification import is_bundle as is_bundle
    from robustdup.jobs.verification import verify_bundle as verify_bundle
    from robustdup.jobs.verification import verify_examples as verify_examples

_PLACES = {
    "robustdup.evaluation.engine": ("Evaluation",),
    "robustdup.jobs.evaluation": (
        "check_same",
        "finished_record",
        "load_data",
        "parse_threats",
        "plan",
        "plan_for",
        "run_evaluation",
    ),
    "robustdup.jobs.training": ("run_training",),
    "robustdup.jobs.transferred": ("transfer",),
    "robustdup.jobs.verification": ("is_bundle", "verify_bundle", "verify_examples"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'robustdup.jobs' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
