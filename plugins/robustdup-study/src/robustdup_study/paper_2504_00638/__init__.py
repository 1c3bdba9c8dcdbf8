"""The published protocol of arXiv 2504.00638: its networks, its table, its illustration, and verdicts on its claims.

Nothing else imports this package: it comes through entry points of its own, to robustdup and to studies.
"""

from __future__ import annotations

from robustdup import Registry
from robustdup.plugins.options import Deferred
from robustdup_study.publications import DoseFactor, Metric, Protocol, Publication

HERE = "robustdup_study.paper_2504_00638"
NAME = "arXiv 2504.00638"
URL = "https://arxiv.org/abs/2504.00638"


def register(registry: Registry) -> None:
    """Register the networks of the paper and the command of its illustration."""
    registry.add_architecture(
        "paper-standard",
        f"{HERE}.networks:paper_standard",
        url=URL,
        description="The CNN of the duplication paper's standard arm (16 and 32 filters).",
    )
    registry.add_architecture(
        "paper-robust",
        f"{HERE}.networks:paper_robust",
        url=URL,
        description="The CNN of the duplication paper's adversarial arm (32 and 64 filters).",
    )
    registry.add_command("study gaussian", f"{HERE}.gaussian:command", help=f"The Gaussian illustration of {NAME}.")


def publication() -> Publication:
    """Return what the paper brings to studies."""
    return Publication(
        name=NAME,
        url=URL,
        protocols={
            "as-published": Protocol(Deferred(f"{HERE}.protocol:paper_grid"), Deferred(f"{HERE}.protocol:run_cell"))
        },
        dose_factors={"percent": DoseFactor(Deferred(f"{HERE}.percent:plan"), Deferred(f"{HERE}.percent:readings"))},
        metrics={
            "test_clean_acc": Metric("clean accuracy (published protocol)"),
            "test_adv_acc": Metric("accuracy under the published attack"),
            "train_clean_acc": Metric("accuracy on the repeated training set (published protocol)"),
            "train_adv_acc": Metric("accuracy on the repeated training set under the published attack"),
            "original_clean_acc": Metric("accuracy on the original training set (published protocol)"),
            "original_adv_acc": Metric("accuracy on the original training set under the published attack"),
            "clean_accuracy_plain_test": Metric("clean accuracy on test images without augmentation"),
            "clamped_accuracy": Metric("accuracy on test images clamped to [0, 1] without attack"),
        },
        figures=Deferred(f"{HERE}.beside:set_beside"),
        claims=Deferred(f"{HERE}.claims:judge_claims"),
    )
