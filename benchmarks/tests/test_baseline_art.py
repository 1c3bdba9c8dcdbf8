"""The baseline is ART's AutoAttack on a plain classifier, called as its user calls it."""

import pytest
import torch
from torch import nn

from benchmarks.baselines.of_art import art_autoattack
from robustdup import ThreatModel, UserError


class Halves(nn.Module):
    """Four classes: how bright each quarter of the image is."""

    def forward(self, images):
        rows = images.mean(dim=1).unflatten(2, (2, -1)).mean(dim=3).unflatten(1, (2, -1)).mean(dim=2)
        return 10 * rows.flatten(1)


@pytest.fixture
def quick(monkeypatch):
    """ART's list of attacks with few steps; what it was given is kept."""
    import art.attacks.evasion.auto_attack as module

    given = []
    for name, key in (
        ("AutoProjectedGradientDescent", "max_iter"),
        ("DeepFool", "max_iter"),
        ("SquareAttack", "max_iter"),
    ):
        made = getattr(module, name)

        def shorter(*words, made=made, key=key, **named):
            given.append((made.__name__, named))
            return made(
                *words,
                **{**named, key: 3, "verbose": False, **({"nb_random_init": 1} if "nb_random_init" in named else {})},
            )

        monkeypatch.setattr(module, name, shorter)
    return given


def test_an_attack_at_arts_settings(quick):
    images = 0.45 + 0.1 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Halves()
    labels = model(images).argmax(dim=1)
    adv = art_autoattack(model, images, labels, ThreatModel("Linf", "0.2"), batch_size=None, seed=0)
    assert (adv.shape, adv.dtype) == (images.shape, images.dtype)
    assert (model(adv).argmax(dim=1) != labels).all()
    assert float((adv - images).abs().max()) <= 0.2 + 1e-6
    assert [name for name, _ in quick] == ["AutoProjectedGradientDescent"] * 2 + ["DeepFool", "SquareAttack"]
    assert {named["batch_size"] for _, named in quick if "batch_size" in named} == {32}
    assert quick[0][1]["eps_step"] == 0.1


def test_no_images_and_no_l1():
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    assert len(art_autoattack(Halves(), images[:0], labels[:0], ThreatModel("Linf", "0.1"), batch_size=8, seed=0)) == 0
    with pytest.raises(UserError, match="not in L1"):
        art_autoattack(Halves(), images, labels, ThreatModel("L1", "1"), batch_size=8, seed=0)
