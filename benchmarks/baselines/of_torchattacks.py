"""torchattacks as its user calls it, for `benchmarks.timing`: its AutoAttack, and adversarial training with its PGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdup_torchattacks.adapter import load

from robustdup import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import ThreatModel

URL = "https://adversarial-attacks-pytorch.readthedocs.io/en/latest/attacks.html"
BATCH_SIZE = 250  # torchattacks has none of its own: that of the reference AutoAttack


def torchattacks_autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, batch_size: int | None, seed: int
) -> Tensor:
    """Run torchattacks.AutoAttack on images (N, C, H, W) in [0, 1], a batch after the other, 250 rows if not given.

    One forward pass of one row tells the number of classes, which its user knows. Raises UserError in L1, Unavailable
    without the package, and what torchattacks raises.
    """
    import torch

    from robustdup import isolated

    toolkit = load()
    if not len(images):
        return images
    if threat.norm not in ("Linf", "L2"):
        raise UserError(f"torchattacks.AutoAttack works in Linf and L2, not in {threat.norm}.")
    with isolated(model, seed=seed):
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        attack = toolkit.AutoAttack(model, norm=threat.norm, eps=threat.radius, n_classes=classes, seed=seed)
        size = batch_size or BATCH_SIZE
        parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
        return torch.cat([attack(part, truth).detach() for part, truth in parts])


def torchattacks_trainer(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, steps: int, step_size: float,
    batch_size: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Train `model` for one epoch on images (N, C, H, W) in [0, 1] that torchattacks' PGD has attacked, batch by batch.

    The loop is that of its documentation: the attack sees the model in train mode as it is. Raises UserError in L1,
    Unavailable without the package.
    """
    import torch
    import torch.nn.functional as F

    from robustdup import isolated

    toolkit = load()
    if threat.norm not in ("Linf", "L2"):
        raise UserError(f"torchattacks' PGD works in Linf and L2, not in {threat.norm}.")
    if not len(images):
        return
    kind = toolkit.PGD if threat.norm == "Linf" else toolkit.PGDL2
    attack = kind(model, eps=threat.radius, alpha=step_size, steps=steps, random_start=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    with isolated(seed=seed):
        model.train()
        for rows in torch.split(torch.randperm(len(images)), batch_size):
            part, truth = images[rows], labels[rows]
            adv_images = attack(part, truth)
            optimizer.zero_grad()
            F.cross_entropy(model(adv_images), truth).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
