"""The public names as a user's code sees them: checked by mypy --strict, never run."""

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import robustdup
from robustdup import AttackSpec, EvaluationResult, Registry, SampleRng, ThreatModel, UserError


@robustdup.register_attack("grey", norms=["Linf"], batching="pool")
def grey(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, share: float = 1.0
) -> Tensor:
    """Move towards grey."""
    return threat.project(images, images + share * (0.5 - images))


def register(registry: Registry) -> None:
    """Register an attack by name."""
    registry.add_attack(AttackSpec(name="mine:grey", function=grey, norms=("Linf",)))
    registry.add_command("hello", "my_package.command:hello", help="Say hello.")


def verbs(loader: DataLoader[tuple[Tensor, Tensor]], table: datasets.Dataset) -> float:
    """Use every verb."""
    model: nn.Module = robustdup.load_model("builtin:digits-robust")
    data = robustdup.load_data("builtin:digits", n=10)
    images: Tensor = data.images
    result: EvaluationResult = robustdup.evaluate(
        model, data, eps="8/255", attacks=["fast", grey], workers=2, precision="fp32", progress=False
    )
    robustdup.evaluate(model, loader, eps=0.1)
    robustdup.evaluate(model, images, data.labels, eps=["2/255", "8/255"], seed=1)
    adv_images: Tensor = robustdup.attack(model, images, data.labels, "pgd", eps="8/255", steps=40)
    record = robustdup.train(data="builtin:digits", objective="trades(beta=6)", epochs=1.0, out="runs/t")
    copies: datasets.Dataset = robustdup.duplicate(table, dose=0.3, scheme="uniform", copies=2)
    try:
        difference = robustdup.compare(result, "runs/other")
        rank: str = robustdup.rank(result).sentence()
    except UserError as error:
        rank = error.code
    certified: Tensor = robustdup.certify(model, data, eps="8/255", method="bounds", seconds=10.0).certified
    accepted: bool = robustdup.verify("evidence").accepted
    print(adv_images.shape, certified, record.status, len(copies), rank, accepted, difference.clean.p_value)
    broken: int = sum(attack.n_broken for attack in result.attacks)
    print(broken, [sign.message for sign in result.diagnostics], result.threat.text, result.seed, result.n)
    value: float = result.robust_accuracy.value
    return value + float(torch.mean(result.adv_images))
