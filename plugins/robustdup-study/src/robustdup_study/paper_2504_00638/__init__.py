"""The published protocol of arXiv 2504.00638: its networks, its table, its illustration, and verdicts on its claims.

Nothing else imports this package: it comes through an entry point of its own.
"""

from __future__ import annotations

from robustdup import Registry

URL = "https://arxiv.org/abs/2504.00638"


def register(registry: Registry) -> None:
    """Register the networks of the paper."""
    networks = "robustdup_study.paper_2504_00638.networks"
    registry.add_architecture(
        "paper-standard", f"{networks}:paper_standard", url=URL,
        description="The CNN of the duplication paper's standard arm (16 and 32 filters).",
    )  # fmt: skip
    registry.add_architecture(
        "paper-robust", f"{networks}:paper_robust", url=URL,
        description="The CNN of the duplication paper's adversarial arm (32 and 64 filters).",
    )  # fmt: skip
