"""The reference AutoAttack and RobustBench's model zoo behind robustdup's contract."""

from __future__ import annotations

import importlib.util
from typing import Any

from robustdup import AttackSpec, Registry

_AUTOATTACK = "https://github.com/fra31/auto-attack"

_QUICK: dict[str, dict[str, Any]] = {
    "APGD-CE": {"n_iter": 20},
    "APGD-DLR": {"n_iter": 20, "n_restarts": 1},
    "APGD-T": {"n_iter": 15, "n_target_classes": 3},
    "FAB": {"n_iter": 5, "n_restarts": 1},
    "FAB-T": {"n_iter": 10, "n_target_classes": 3},
    "Square": {"n_queries": 200},
}


def register(registry: Registry) -> None:
    """Register the attacks and versions of AutoAttack, the model that pyautoattack carries, and RobustBench's zoo."""
    from robustdup_robustbench import autoattack, resnet18, zoo

    missing = importlib.util.find_spec("pyautoattack") is None
    reason = "pyautoattack is not installed. Run: pip install pyautoattack==0.2.0" if missing else ""

    def add(name: str, function: Any, cost: Any, description: str, knowledge: Any = "white-box") -> None:
        registry.add_attack(
            AttackSpec(
                name=f"robustbench:{name}", function=function, norms=("Linf", "L2", "L1"), kind="bounded",
                knowledge=knowledge, url=_AUTOATTACK, batching="batch", cost=cost, description=description, quick=_QUICK[name],
                available=not missing, reason=reason,
            )
        )  # fmt: skip

    add("APGD-CE", autoattack.apgd_ce, autoattack.apgd_cost, "AutoAttack's APGD on the cross-entropy")
    add("APGD-DLR", autoattack.apgd_dlr, autoattack.apgd_cost, "AutoAttack's APGD on the difference of logits ratio")
    add("APGD-T", autoattack.apgd_t, autoattack.apgd_t_cost, "AutoAttack's APGD, one target class after the other")
    add("FAB", autoattack.fab, autoattack.fab_cost, "AutoAttack's FAB against all classes (cost for 10 classes)")
    add("FAB-T", autoattack.fab_t, autoattack.fab_t_cost, "AutoAttack's FAB, one target class after the other")
    add("Square", autoattack.square, autoattack.square_cost, "AutoAttack's random search", "score-based")
    for name, (stages, description) in autoattack.ENSEMBLES.items():
        registry.add_ensemble(name, stages, description=description, url=_AUTOATTACK)
    registry.add_model_source(
        "pyautoattack", resnet18.load,
        description="The CIFAR-10 ResNet-18 in the pyautoattack wheel (standard training)",
        examples=("pyautoattack:resnet18",),
    )  # fmt: skip
    registry.add_model_source(
        "robustbench", zoo.load,
        description="RobustBench's model zoo: NAME, or DATASET/THREAT/NAME (needs the extra zoo)",
        examples=("robustbench:Wong2020Fast", "robustbench:cifar100/Linf/Rice2020Overfitting"),
    )  # fmt: skip
