"""The baseline is torchattacks.AutoAttack called as its user calls it."""

import torch
import torchattacks

from benchmarks.baselines.of_torchattacks import torchattacks_autoattack
from robustdup import ThreatModel


def test_same_images_as_from_the_toolkit_batch_by_batch(task, monkeypatch):
    short = torchattacks.Square.__init__

    def shorter(self, *words, **named):
        short(self, *words, **{**named, "n_queries": 20})

    monkeypatch.setattr("torchattacks.attacks.autoattack.Square.__init__", shorter)
    few = task.rows(6)
    threat = ThreatModel("Linf", "0.15")
    mine = torchattacks_autoattack(few.model, few.images, few.labels, threat, batch_size=4, seed=5)
    attack = torchattacks.AutoAttack(few.model, norm="Linf", eps=0.15, n_classes=10, seed=5)
    theirs = torch.cat([attack(few.images[:4], few.labels[:4]), attack(few.images[4:], few.labels[4:])])
    few.model.zero_grad(set_to_none=True)  # the toolkit's own call leaves gradients in the weights
    assert torch.equal(mine, theirs)
    assert few.broken(mine).float().mean() > 0.3
