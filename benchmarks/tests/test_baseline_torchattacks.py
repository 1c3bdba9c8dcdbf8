"""The baseline is torchattacks.AutoAttack called as its user calls it."""

import torch
import torchattacks

from benchmarks.baselines.of_torchattacks import torchattacks_autoattack
from robustdup import ThreatModel


def test_same_images_as_from_the_toolkit_batch_by_batch(digits, monkeypatch):
    short = torchattacks.Square.__init__

    def shorter(self, *words, **named):
        short(self, *words, **{**named, "n_queries": 20})

    monkeypatch.setattr("torchattacks.attacks.autoattack.Square.__init__", shorter)
    model, images, labels = digits[0], digits[1][:6], digits[2][:6]
    threat = ThreatModel("Linf", "0.15")
    mine = torchattacks_autoattack(model, images, labels, threat, batch_size=4, seed=5)
    attack = torchattacks.AutoAttack(model, norm="Linf", eps=0.15, n_classes=10, seed=5)
    theirs = torch.cat([attack(images[:4], labels[:4]), attack(images[4:], labels[4:])])
    model.zero_grad(set_to_none=True)  # the toolkit's own call leaves gradients in the weights
    assert torch.equal(mine, theirs)
    assert (model(mine).argmax(dim=1) != labels).float().mean() > 0.3
