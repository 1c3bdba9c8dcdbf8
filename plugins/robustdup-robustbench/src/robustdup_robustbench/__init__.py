"""The reference AutoAttack and RobustBench's model zoo behind robustdup's contract. Registering them imports none of them."""

from __future__ import annotations

import importlib.util
from typing import Any

from robustdup import AttackSpec, Registry, Stage, how_to_install

URL = "https://github.com/fra31/auto-attack"

# Of each attack: its function and that of its cost in `autoattack`, what is said of it, and options for a quick run.
ATTACKS: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("APGD-CE", "apgd_ce", "apgd_cost", "AutoAttack's APGD on the cross-entropy", {"n_iter": 20}),
    ("APGD-DLR", "apgd_dlr", "apgd_cost", "AutoAttack's APGD on the difference of logits ratio",
     {"n_iter": 20, "n_restarts": 1}),
    ("APGD-T", "apgd_t", "apgd_t_cost", "AutoAttack's APGD, one target class after the other",
     {"n_iter": 15, "n_target_classes": 3}),
    ("FAB", "fab", "fab_cost", "AutoAttack's FAB against all classes (cost for 10 classes)",
     {"n_iter": 5, "n_restarts": 1}),
    ("FAB-T", "fab_t", "fab_t_cost", "AutoAttack's FAB, one target class after the other",
     {"n_iter": 10, "n_target_classes": 3}),
    ("Square", "square", "square_cost", "AutoAttack's random search", {"n_queries": 200}),
)  # fmt: skip

_PLUS = {"n_restarts": 5, "use_largereps": False}
_RAND = {"n_restarts": 1, "eot_iter": 20}

ENSEMBLES = {
    "robustbench:AutoAttack": (
        (
            Stage("robustbench:APGD-CE"),
            Stage("robustbench:APGD-T"),
            Stage("robustbench:FAB-T"),
            Stage("robustbench:Square"),
        ),
        "The reference AutoAttack, standard version: what RobustBench reports",
    ),
    "robustbench:AutoAttack-plus": (
        (
            Stage("robustbench:APGD-CE", _PLUS),
            Stage("robustbench:APGD-DLR", {"n_restarts": 5}),
            Stage("robustbench:FAB", {"n_restarts": 5}),
            Stage("robustbench:Square"),
            Stage("robustbench:APGD-T", {"n_target_classes": 9, "use_largereps": False}),
            Stage("robustbench:FAB-T"),
        ),
        "The reference AutoAttack, plus version: more restarts, and the untargeted attacks too",
    ),
    "robustbench:AutoAttack-rand": (
        (
            Stage("robustbench:APGD-CE", {**_RAND, "use_largereps": False}),
            Stage("robustbench:APGD-DLR", _RAND),
        ),
        "The reference AutoAttack, rand version: for randomised models, gradients averaged over 20 draws",
    ),
}


def register(registry: Registry) -> None:
    """Register the attacks and versions of AutoAttack, the model that pyautoattack carries, and RobustBench's zoo."""
    missing = importlib.util.find_spec("pyautoattack") is None
    reason = f"pyautoattack is not installed. Run: {how_to_install('robustdup[robustbench]')}" if missing else ""
    for name, function, cost, description, quick in ATTACKS:
        functions: dict[str, Any] = {
            "function": f"robustdup_robustbench.autoattack:{function}",
            "cost": f"robustdup_robustbench.autoattack:{cost}",
        }
        spec = AttackSpec(
            name=f"robustbench:{name}",
            norms=("Linf", "L2", "L1"),
            knowledge="score-based" if name == "Square" else "white-box",
            url=URL,
            description=description,
            quick=quick,
            available=not missing,
            reason=reason,
            **functions,
        )
        registry.add_attack(spec)
    for ensemble, (stages, description) in ENSEMBLES.items():
        registry.add_ensemble(ensemble, stages, description=description, url=URL)
    registry.add_model_source(
        "pyautoattack", "robustdup_robustbench.resnet18:load",
        description="The CIFAR-10 ResNet-18 in the pyautoattack wheel (standard training)",
        examples=("pyautoattack:resnet18",),
    )  # fmt: skip
    registry.add_model_source(
        "robustbench", "robustdup_robustbench.zoo:load",
        description="RobustBench's model zoo: NAME, or DATASET/THREAT/NAME (needs the extra zoo)",
        examples=("robustbench:Wong2020Fast", "robustbench:cifar100/Linf/Rice2020Overfitting"),
    )  # fmt: skip
