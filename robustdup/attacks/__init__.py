"""Attacks: one a file, each a plain function on the contract of `robustdup.plugins.registry.AttackSpec`."""

from __future__ import annotations

from robustdup.attacks.ensembles import register_ensembles
from robustdup.plugins.registry import AttackSpec, Registry

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
    _register_autoattack(registry)
    _register_cosine_pgd(registry)
    _register_for_masked(registry)
    register_ensembles(registry)


def _register_autoattack(registry: Registry) -> None:
    """Register the attacks of AutoAttack, each also under its own name."""
    from robustdup.attacks.apgd import apgd, apgd_ce, apgd_cost, apgd_dlr
    from robustdup.attacks.apgd_t import apgd_t, apgd_t_cost
    from robustdup.attacks.fab import fab, fab_cost
    from robustdup.attacks.fab_t import fab_t, fab_t_cost
    from robustdup.attacks.square import square, square_cost

    apgd_url, fab_url = "https://arxiv.org/abs/2003.01690", "https://arxiv.org/abs/1907.02044"
    for name, function, cost, url, said in (
        ("apgd", apgd, apgd_cost, apgd_url, "APGD on any loss: steps halve where the loss stops rising."),
        ("apgd-ce", apgd_ce, apgd_cost, apgd_url, "APGD on the cross-entropy, as in AutoAttack."),
        ("apgd-dlr", apgd_dlr, apgd_cost, apgd_url, "APGD on the difference-of-logits ratio."),
        ("apgd-t", apgd_t, apgd_t_cost, apgd_url, "APGD towards the likeliest wrong classes, on the targeted DLR loss."),
    ):  # fmt: skip
        registry.add_attack(
            AttackSpec(
                name=name, function=function, norms=NORMS, batching="pool", cost=cost, description=said, url=url,
                quick={"steps": 30},
            )
        )  # fmt: skip
    for name, walk, cost, said in (
        ("fab", fab, fab_cost, "FAB: the nearest adversarial image, by walking along the decision boundary."),
        ("fab-t", fab_t, fab_t_cost, "FAB towards the likeliest wrong classes."),
    ):
        registry.add_attack(
            AttackSpec(
                name=name, function=walk, norms=NORMS, kind="minimum-norm", batching="pool", cost=cost,
                description=said, url=fab_url, quick={"steps": 30},
            )
        )  # fmt: skip
    registry.add_attack(
        AttackSpec(
            name="square", function=square, norms=NORMS, knowledge="score-based", batching="pool", cost=square_cost,
            description="Square: random square-shaped changes, kept where the margin falls. Needs no gradient.",
            url="https://arxiv.org/abs/1912.00049", quick={"queries": 500},
        )
    )  # fmt: skip


def _register_cosine_pgd(registry: Registry) -> None:
    """Register the short runs of which `fast` is made."""
    from robustdup.attacks.cosine_pgd import cosine_pgd, cosine_pgd_cost, cosine_pgd_t, cosine_pgd_t_cost

    for name, function, cost, said in (
        ("cosine-pgd", cosine_pgd, cosine_pgd_cost, "Short PGD with momentum and a step that falls along a cosine."),
        ("cosine-pgd-t", cosine_pgd_t, cosine_pgd_t_cost, "Cosine PGD towards the likeliest wrong classes."),
    ):
        registry.add_attack(
            AttackSpec(
                name=name, function=function, norms=("Linf", "L2"), batching="pool", cost=cost, description=said,
                url="https://arxiv.org/abs/2411.15210",
            )
        )  # fmt: skip


def _register_for_masked(registry: Registry) -> None:
    """Register the attacks that `fast` adds where the model's gradients look masked."""
    from robustdup.attacks.boundary_walk import boundary_walk, boundary_walk_cost
    from robustdup.attacks.spsa import spsa, spsa_cost

    registry.add_attack(
        AttackSpec(
            name="spsa", function=spsa, norms=("Linf", "L2"), knowledge="score-based", batching="pool", cost=spsa_cost,
            description="SPSA: gradients estimated from wide random probes, for models whose own lead nowhere.",
            url="https://arxiv.org/abs/1802.05666", quick={"steps": 20, "probes": 32},
        )
    )  # fmt: skip
    registry.add_attack(
        AttackSpec(
            name="boundary-walk", function=boundary_walk, norms=("Linf", "L2"), batching="pool", cost=boundary_walk_cost,
            description="Along the decision boundary into the ball, for models whose scores are flat around an image.",
            url="https://arxiv.org/abs/1904.02144", quick={"restarts": 2},
        )
    )  # fmt: skip
