"""The baseline is the reference called as its user calls it: the same images come back."""

import torch
from pyautoattack import AutoAttack

from benchmarks.baselines.of_robustbench import pyautoattack
from robustdup import ThreatModel


def test_without_images_nothing_is_attacked(digits):
    model, images, labels = digits
    assert (
        pyautoattack(model, images[:0], labels[:0], ThreatModel("Linf", "0.1"), batch_size=None, seed=0).shape[0] == 0
    )


def test_same_images_as_from_the_reference_in_its_own_batches(digits, monkeypatch):
    def shorter(self, version="standard"):
        self.attacks_to_run = ["apgd-ce", "square"]
        self.apgd.n_iter, self.apgd.n_restarts, self.square.n_queries = 10, 1, 20

    monkeypatch.setattr(AutoAttack, "_set_version", shorter)
    model, images, labels = digits
    images, labels = images[:12], labels[:12]
    for given, size in ((None, 250), (5, 5)):
        reference = AutoAttack(model, norm="Linf", eps=0.2, seed=3)
        theirs, _ = reference.run_standard_evaluation(images, labels, batch_size=size)
        state = torch.get_rng_state()
        mine = pyautoattack(model, images, labels, ThreatModel("Linf", "0.2"), batch_size=given, seed=3)
        assert torch.equal(mine, theirs)
        assert (model(mine).argmax(dim=1) != labels).float().mean() > 0.3
        assert torch.equal(state, torch.get_rng_state())
