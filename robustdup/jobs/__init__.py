"""The one place that assembles: a configuration becomes objects, they run, and a record comes out.

Commands, notebooks, study cells, benches and workers all call what is here.
"""

from __future__ import annotations

from robustdup.evaluation.engine import Evaluation
from robustdup.jobs.evaluation import (
    check_same,
    finished_record,
    load_data,
    parse_threats,
    plan,
    run_evaluation,
)
from robustdup.jobs.training import run_training, train
from robustdup.jobs.verification import verify, verify_bundle, verify_examples

__all__ = [
    "Evaluation",
    "check_same",
    "finished_record",
    "load_data",
    "parse_threats",
    "plan",
    "run_evaluation",
    "run_training",
    "train",
    "verify",
    "verify_bundle",
    "verify_examples",
]
