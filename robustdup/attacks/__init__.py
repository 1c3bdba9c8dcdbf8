"""Attacks: one a file, each a plain function on the contract of `robustdup.registry.AttackSpec`."""

from __future__ import annotations

from robustdup.registry import AttackSpec, Registry, Stage

NORMS = ("Linf", "L2", "L1")


def register(registry: Registry) -> None:
    """Register the native attacks, losses and ensembles."""
    from robustdup.attacks.fgsm import fgsm
    from robustdup.attacks.losses import LOSSES
    from robustdup.attacks.noise import noise
    from robustdup.attacks.pgd import pgd, pgd_cost

    for name, function in LOSSES.items():
        registry.add_loss(name, function, description=(function.__doc__ or "").split(":")[0].removeprefix("Return "))
    registry.add_attack(
        AttackSpec(
            name="noise", function=noise, norms=NORMS, knowledge="score-based", batching="pool",
            cost=lambda options: (options["draws"], 0),
            description="Random points of the ball: the baseline that every attack must beat.",
            undemonstrated="It is the noise that the others are compared with.",
        )
    )  # fmt: skip
    registry.add_attack(
        AttackSpec(
            name="fgsm", function=fgsm, norms=NORMS, batching="pool", cost=(1, 1),
            description="One step, as far as allowed, along the gradient.",
            url="https://arxiv.org/abs/1412.6572",
        )
    )  # fmt: skip
    registry.add_attack(
        AttackSpec(
            name="pgd", function=pgd, norms=NORMS, batching="pool", cost=pgd_cost,
            description="Projected gradient ascent with restarts, momentum and a choice of losses.",
            url="https://arxiv.org/abs/1706.06083",
        )
    )  # fmt: skip
    registry.add_ensemble(
        "default",
        [
            Stage("noise"),
            Stage("fgsm"),
            Stage("pgd", {"steps": 40, "loss": "ce"}),
            Stage("pgd", {"steps": 40, "loss": "margin", "restarts": 3}),
        ],
        description="Noise, FGSM and PGD on two losses: a first answer in seconds. It is not AutoAttack.",
    )
