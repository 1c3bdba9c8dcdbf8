"""ART as its user calls it, for `benchmarks.timing`: its AutoAttack, and its trainer of Madry's PGD training."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from robustdup import Unavailable, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import ThreatModel

URL = "https://adversarial-robustness-toolbox.readthedocs.io/en/latest/modules/attacks/evasion.html#autoattack"
BATCH_SIZE = 32  # ART's default


def art_autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, batch_size: int | None, seed: int
) -> Tensor:
    """Run ART's AutoAttack on a plain PyTorchClassifier: images (N, C, H, W) in [0, 1] -> the same shape.

    Its other settings are ART's defaults; batches are of 32 if not given. One forward pass of one row tells the number of
    classes, which its user knows. Raises UserError in L1, where its Square does nothing, Unavailable without the
    packages, and what ART raises.
    """
    import numpy as np
    import torch

    from robustdup import isolated

    for module, package in (("art", "adversarial-robustness-toolbox"), ("multiprocess", "multiprocess")):
        if importlib.util.find_spec(module) is None:
            raise Unavailable(f"The package {package} is not installed. Run: pip install {package}")
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    if not len(images):
        return images
    orders = {"Linf": np.inf, "L2": 2}
    if threat.norm not in orders:
        raise UserError(f"ART's AutoAttack works in Linf and L2, not in {threat.norm}.")
    with isolated(model, seed=seed):
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        classifier = PyTorchClassifier(
            model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=classes,
            clip_values=(0.0, 1.0), device_type="gpu" if images.device.type == "cuda" else "cpu",
        )  # fmt: skip
        attack = AutoAttack(
            classifier, norm=orders[threat.norm], eps=threat.radius, batch_size=batch_size or BATCH_SIZE
        )
        adv_images = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(adv_images).to(images)


def art_trainer(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, steps: int, step_size: float,
    batch_size: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Train `model` for one epoch on images (N, C, H, W) in [0, 1] with ART's AdversarialTrainerMadryPGD.

    Raises UserError unless the norm is Linf, which is the only one of this trainer, Unavailable without the package.
    """
    import torch

    from robustdup import isolated

    if importlib.util.find_spec("art") is None:
        raise Unavailable("The package art is not installed. Run: pip install adversarial-robustness-toolbox")
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    if threat.norm != "Linf":
        raise UserError(f"ART's AdversarialTrainerMadryPGD works in Linf, not in {threat.norm}.")
    if not len(images):
        return
    with torch.no_grad():
        classes = model.eval()(images[:1]).shape[1]
    with isolated(seed=seed):
        classifier = PyTorchClassifier(
            model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=classes,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4),
            clip_values=(0.0, 1.0), device_type="gpu" if images.device.type == "cuda" else "cpu",
        )  # fmt: skip
        trainer = AdversarialTrainerMadryPGD(
            classifier, nb_epochs=1, batch_size=batch_size, eps=threat.radius, eps_step=step_size, max_iter=steps
        )
        trainer.attack.set_params(verbose=False)
        trainer.fit(images.cpu().numpy(), labels.cpu().numpy())
