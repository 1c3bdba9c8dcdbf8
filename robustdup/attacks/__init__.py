"""Attacks: one a file, each a plain function on the contract of `robustdup.plugins.AttackSpec`, and their ensembles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustdup.attacks.ensembles import register_ensembles
from robustdup.plugins import AttackSpec, Registry
from robustdup.plugins.options import Deferred

NORMS = ("Linf", "L2", "L1")
L0 = ("L0", "L0-pixels")
LINF_L2 = ("Linf", "L2")
APGD_URL = "https://arxiv.org/abs/2003.01690"
FAB_URL = "https://arxiv.org/abs/1907.02044"
COSINE_URL = "https://arxiv.org/abs/2411.15210"

# Functions of `robustdup.attacks.losses`, by the names that attacks take.
LOSSES = (
    ("ce", "ce", "the cross-entropy"),
    ("margin", "cw", "the best other logit minus the true one, above 0 where misclassified"),
    ("dlr", "dlr", "the difference-of-logits ratio"),
    ("probability-margin", "probability_cw", "the best other probability minus the true one, in [-1, 1]"),
)


def _noise_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    return options["draws"], 0


def _spec(name: str, function: str, description: str, *, cost: Any, url: str = "", **fields: Any) -> AttackSpec:
    """Return the spec of a native attack, whose function and cost stand in `robustdup.attacks` under these names."""
    fields = {"norms": NORMS, "batching": "pool", **fields}
    cost = Deferred(f"robustdup.attacks.{cost}") if isinstance(cost, str) else cost
    return AttackSpec(
        name=name, function=Deferred(f"robustdup.attacks.{function}"), cost=cost, description=description, url=url, **fields
    )  # fmt: skip


SPECS = (
    _spec(
        "noise", "noise:noise", "Random points of the ball: the baseline that every attack must beat.",
        norms=(*NORMS, *L0), cost=_noise_cost, knowledge="score-based",
        undemonstrated="It is the noise that the others are compared with.",
    ),
    _spec(
        "fgsm", "fgsm:fgsm", "One step, as far as allowed, along the gradient.",
        cost=(1, 1), url="https://arxiv.org/abs/1412.6572",
    ),
    _spec(
        "pgd", "pgd:pgd", "Projected gradient ascent with restarts, momentum and a choice of losses.",
        cost="pgd:pgd_cost", url="https://arxiv.org/abs/1706.06083",
    ),
    _spec(
        "apgd", "apgd:apgd", "APGD on any loss: steps halve where the loss stops rising.",
        cost="apgd:apgd_cost", url=APGD_URL, quick={"steps": 30},
    ),
    _spec(
        "apgd-ce", "apgd:apgd_ce", "APGD on the cross-entropy, as in AutoAttack.",
        cost="apgd:apgd_cost", url=APGD_URL, quick={"steps": 30},
    ),
    _spec(
        "apgd-dlr", "apgd:apgd_dlr", "APGD on the difference-of-logits ratio.",
        cost="apgd:apgd_cost", url=APGD_URL, quick={"steps": 30},
    ),
    _spec(
        "apgd-t", "apgd_t:apgd_t", "APGD towards the likeliest wrong classes, on the targeted DLR loss.",
        cost="apgd_t:apgd_t_cost", url=APGD_URL, quick={"steps": 30},
    ),
    _spec(
        "fab", "fab:fab", "FAB: the nearest adversarial image, by walking along the decision boundary.",
        cost="fab:fab_cost", url=FAB_URL, quick={"steps": 30}, kind="minimum-norm",
    ),
    _spec(
        "fab-t", "fab_t:fab_t", "FAB towards the likeliest wrong classes.",
        cost="fab_t:fab_t_cost", url=FAB_URL, quick={"steps": 30}, kind="minimum-norm",
    ),
    _spec(
        "fmn", "fmn:fmn", "FMN: the nearest adversarial image, by gradient steps in a ball that shrinks on success.",
        cost="nearest:search_cost", url="https://arxiv.org/abs/2102.12827", quick={"steps": 60}, kind="minimum-norm",
        norms=(*NORMS, *L0),
    ),
    _spec(
        "ddn", "ddn:ddn", "DDN: the nearest adversarial image in L2, direction and length apart.",
        cost="nearest:search_cost", url="https://arxiv.org/abs/1811.09600", quick={"steps": 30}, kind="minimum-norm",
        norms=("L2",),
    ),
    _spec(
        "superdeepfool", "superdeepfool:superdeepfool",
        "SuperDeepFool: the nearest adversarial image, by DeepFool and straight ways onto the boundary it finds.",
        cost="superdeepfool:superdeepfool_cost", url="https://arxiv.org/abs/2303.12481", quick={"steps": 10},
        kind="minimum-norm",
    ),
    _spec(
        "sigma-zero", "sigma_zero:sigma_zero", "σ-zero: the fewest changed values, by descent on a smooth count of them.",
        cost="nearest:search_cost", url="https://arxiv.org/abs/2402.01879", quick={"steps": 100},
        kind="minimum-norm", norms=L0,
    ),
    _spec(
        "sparse-rs", "sparse_rs:sparse_rs",
        "Sparse-RS: a few values or pixels at a time go to other places or colours, kept where the margin falls. No gradient.",
        cost="sparse_rs:sparse_rs_cost", url="https://arxiv.org/abs/2006.12834", quick={"queries": 500}, norms=L0,
        knowledge="score-based",
    ),
    _spec(
        "square", "square:square",
        "Square: random square-shaped changes, kept where the margin falls. Needs no gradient.",
        cost="square:square_cost", url="https://arxiv.org/abs/1912.00049", quick={"queries": 500},
        knowledge="score-based",
    ),
    # The short runs of which `fast` is made.
    _spec(
        "cosine-pgd", "cosine_pgd:cosine_pgd", "Short PGD with momentum and a step that falls along a cosine.",
        cost="cosine_pgd:cosine_pgd_cost", url=COSINE_URL, norms=LINF_L2,
    ),
    _spec(
        "cosine-pgd-t", "cosine_pgd:cosine_pgd_t", "Cosine PGD towards the likeliest wrong classes.",
        cost="cosine_pgd:cosine_pgd_t_cost", url=COSINE_URL, norms=LINF_L2,
    ),
    _spec(
        "straight-through", "straight_through:straight_through",
        "Through rounding, one-hot answers, NumPy and wrong backward passes: the gradient of a copy that passes them.",
        cost="straight_through:straight_through_cost", url="https://arxiv.org/abs/1802.00420",
        quick={"steps": 10, "targets": 1},
    ),
    _spec(
        "surrogate", "surrogate:surrogate",
        "A smooth stand-in, the network inside the model or a student of it, attacked and refined by the model's answers.",
        cost="surrogate:surrogate_cost", url="https://arxiv.org/abs/1602.02697", batching="batch",
        quick={"fit_steps": 60, "steps": 10, "targets": 1, "queries": 50},
    ),
    _spec(
        "rays", "rays:rays", "RayS: the nearest boundary along rays of signs, from answers alone.",
        cost="rays:rays_cost", url="https://arxiv.org/abs/2006.12792", norms=LINF_L2, knowledge="decision-based",
        quick={"queries": 200},
    ),
    # What `fast` adds where the model's gradients look masked.
    _spec(
        "spsa", "spsa:spsa", "SPSA: gradients estimated from wide random probes, for models whose own lead nowhere.",
        cost="spsa:spsa_cost", url="https://arxiv.org/abs/1802.05666", norms=LINF_L2, knowledge="score-based",
        quick={"steps": 20, "probes": 32},
    ),
    _spec(
        "boundary-walk", "boundary_walk:boundary_walk",
        "Along the decision boundary into the ball, for models whose scores are flat around an image.",
        cost="boundary_walk:boundary_walk_cost", url="https://arxiv.org/abs/1904.02144", norms=LINF_L2,
        quick={"restarts": 2},
    ),
)  # fmt: skip


def register(registry: Registry) -> None:
    """Register the native attacks, losses and ensembles; none of them is imported."""
    for name, function, description in LOSSES:
        registry.add_loss(name, f"robustdup.attacks.losses:{function}", description=description)
    for spec in SPECS:
        registry.add_attack(spec)
    register_ensembles(registry)
