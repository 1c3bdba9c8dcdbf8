"""The ensembles that robustdup offers by name: AutoAttack's published versions, and a fast one, on the native attacks."""

from __future__ import annotations

from dataclasses import replace

from robustdup.plugins import Registry, Stage

URL = "https://arxiv.org/abs/2003.01690"
L1 = ("L1",)
L0 = ("L0", "L0-pixels")
LINF_L2 = ("Linf", "L2")
CONVEX = ("Linf", "L2", "L1")
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
RAND_EOT = 20
RAND = (Stage("apgd-ce", {"eot": RAND_EOT}), Stage("apgd-dlr", {"eot": RAND_EOT}))

# Every stage but the first goes to the survivors whose margin is smallest so far: those far from the boundary never break.
# What survives several targets at a hair's breadth falls to cross-entropy from new starts rather than to longer runs.
# Square is the witness for masked gradients. Where they show, a copy that sees through masks is followed. Where that was not
# seen to get through, a surrogate is tried, then answers alone, then SPSA, whose wide probes see through rounding and
# ripples, the walk along the boundary, the only place where clipped scores have a slope, and the parts of AutoAttack: all
# together in no more passes than AutoAttack's. What is made for Linf and L2 is replaced by a longer Square in L1. L0 has two
# attacks by gradient, and Sparse-RS as the witness; nothing there goes on where masks show.
FAST = (
    Stage("cosine-pgd", {"steps": 20}, norms=LINF_L2),
    Stage("cosine-pgd-t", {"targets": 5, "steps": 20}, take=0.6, norms=LINF_L2),
    Stage("cosine-pgd-t", {"targets": 9, "steps": 50}, take=0.12, norms=LINF_L2),
    Stage("apgd-ce", {"steps": 50, "restarts": 5}, take=0.06, norms=LINF_L2),
    Stage("apgd-ce", {"steps": 25, "larger_eps": True}, norms=L1),
    Stage("apgd-t", {"targets": 5, "steps": 20, "larger_eps": True}, take=0.6, norms=L1),
    Stage("apgd-t", {"targets": 9, "steps": 40, "larger_eps": True}, take=0.13, norms=L1),
    Stage("sigma-zero", norms=L0),
    Stage("fmn", {"steps": 200}, norms=L0),
    Stage("square", {"queries": 250}, take=0.05, norms=CONVEX),
    Stage("sparse-rs", {"queries": 500}, take=0.1, norms=L0),
    Stage("straight-through", when="masked", norms=CONVEX),
    Stage("straight-through", {"targets": 9, "steps": 40}, take=0.25, when="masked", norms=CONVEX),
    Stage("surrogate", when="blind", norms=CONVEX),
    Stage("rays", {"queries": 500}, when="blind", norms=LINF_L2),
    Stage("spsa", {"steps": 30}, when="blind", norms=LINF_L2),
    Stage("boundary-walk", {"restarts": 1}, when="blind", norms=LINF_L2),
    *(replace(stage, when="blind") for stage in STANDARD[:-2]),
    Stage("fab-t", {"steps": 20}, when="blind", norms=CONVEX),
    Stage("square", {"queries": 1000}, when="blind", norms=LINF_L2),
    Stage("square", when="blind", norms=L1),
)


def register_ensembles(registry: Registry) -> None:
    """Register AutoAttack's three versions, with the settings of https://github.com/fra31/auto-attack, and `fast`."""
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
    registry.add_ensemble(
        "fast", FAST,
        description="Short runs towards many classes on the nearest samples; straight-through, surrogates and more where "
        "gradients look masked.",
    )  # fmt: skip
