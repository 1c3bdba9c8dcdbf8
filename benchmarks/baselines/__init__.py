"""What robustdup is measured beside: toolkits at their published settings, called as their users would call them.

A baseline is `baseline(model, images, labels, threat, *, batch_size, seed) -> adversarial images`, same shape and device. It
gets all samples, images (N, C, H, W) in [0, 1], and the frozen model in eval mode; `batch_size` None is the toolkit's own. It is
called with no images first, untimed: import there what is needed, and return them.

A trainer is `trainer(model, images, labels, threat, *, steps, step_size, batch_size, lr, seed) -> None`: it trains `model` in
place for one epoch on images (N, C, H, W) in [0, 1] with PGD. It too is called with no images first, untimed.

A file given with `--plugin` may add its own to BASELINES in its `register(registry)`.
"""

from __future__ import annotations

from robustdup.plugins import Named
from robustdup.plugins.options import Deferred

_HERE = "benchmarks.baselines"

BASELINES = {
    "pyautoattack": Named(
        "pyautoattack", Deferred(f"{_HERE}.of_robustbench:pyautoattack"),
        "The reference AutoAttack, standard version, in one call of run_standard_evaluation",
        "https://github.com/fra31/auto-attack",
    ),
    "torchattacks-autoattack": Named(
        "torchattacks-autoattack", Deferred(f"{_HERE}.of_torchattacks:torchattacks_autoattack"),
        "torchattacks.AutoAttack, standard version: 10 steps of APGD and FAB, where the reference has 100",
        "https://github.com/Harry24k/adversarial-attacks-pytorch",
    ),
    "art-autoattack": Named(
        "art-autoattack", Deferred(f"{_HERE}.of_art:art_autoattack"),
        "ART's ensemble of the name: APGD-CE, APGD-DLR, DeepFool, Square; neither FAB nor targeted APGD",
        "https://github.com/Trusted-AI/adversarial-robustness-toolbox",
    ),
}  # fmt: skip

TRAINERS = {
    "torchattacks-pgd": Named(
        "torchattacks-pgd", Deferred(f"{_HERE}.of_torchattacks:torchattacks_trainer"),
        "a plain PyTorch loop around torchattacks.PGD, SGD with momentum",
        "https://github.com/Harry24k/adversarial-attacks-pytorch",
    ),
    "art-madry-pgd": Named(
        "art-madry-pgd", Deferred(f"{_HERE}.of_art:art_trainer"),
        "ART's AdversarialTrainerMadryPGD on a PyTorchClassifier, SGD with momentum",
        "https://github.com/Trusted-AI/adversarial-robustness-toolbox",
    ),
}  # fmt: skip
