"""The ensembles that robustdup offers by name: AutoAttack's published versions, on the native attacks."""

from __future__ import annotations

from robustdup.registry import Registry, Stage

URL = "https://arxiv.org/abs/2003.01690"
L1 = ("L1",)
LINF_L2 = ("Linf", "L2")
# In L1 APGD starts with larger balls, five times, and takes five targets: https://arxiv.org/abs/2103.01208.
L1_CE = {"restarts": 5, "larger_eps": True}
L1_TARGETED = {"targets": 5, "larger_eps": True}

STANDARD = (
    Stage("apgd-ce", norms=LINF_L2),
    Stage("apgd-ce", L1_CE, norms=L1),
    Stage("apgd-t", norms=LINF_L2),
    Stage("apgd-t", L1_TARGETED, norms=L1),
    Stage("fab-t"),
    Stage("square"),
)
PLUS = (
    Stage("apgd-ce", {"restarts": 5}),
    Stage("apgd-dlr", {"restarts": 5}),
    Stage("fab", {"restarts": 5}),
    Stage("square"),
    Stage("apgd-t"),
    Stage("fab-t"),
)
RAND = (Stage("apgd-ce", {"eot": 20}), Stage("apgd-dlr", {"eot": 20}))


def register_ensembles(registry: Registry) -> None:
    """Register AutoAttack's three versions, with the settings of https://github.com/fra31/auto-attack."""
    registry.add_ensemble(
        "autoattack", STANDARD, url=URL,
        description="AutoAttack, standard version: APGD-CE, targeted APGD-DLR, targeted FAB, Square. In fp32.",
    )  # fmt: skip
    registry.add_ensemble(
        "autoattack-plus", PLUS, url=URL,
        description="AutoAttack, plus version: six attacks, five restarts of APGD and FAB. In fp32.",
    )  # fmt: skip
    registry.add_ensemble(
        "autoattack-rand", RAND, url=URL,
        description="AutoAttack for randomised models: APGD-CE and APGD-DLR on 20 draws a step. In fp32.",
    )  # fmt: skip
