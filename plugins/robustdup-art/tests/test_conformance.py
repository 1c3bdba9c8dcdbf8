"""Every attack that is listed as available keeps the contract and, unless the table says otherwise, beats noise.

The full test of the attacks that ask the model a hundred times an image or more is slow: `pytest -m slow`. All of them
run on a small linear model here.
"""

from __future__ import annotations

import pytest
import torch
from robustdup_art.table import ENTRIES
from torch import Tensor, nn

from robustdup import Registry, SampleRng, ThreatModel
from robustdup.testing import check_attack

FAST = {
    "AutoConjugateGradient", "AutoProjectedGradientDescent", "BasicIterativeMethod", "FastGradientMethod",
    "FeatureAdversariesPyTorch", "FrameSaliencyAttack", "MomentumIterativeMethod", "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy", "ProjectedGradientDescentPyTorch", "RescalingAutoConjugateGradient",
}  # fmt: skip

NOT_SHOWN = {("GeoDA", "Linf")}  # keeps the contract; with the few queries of this test it does not come within eps

GIVES_UP = {("ThresholdAttack", "eps")}  # where its short search fails it returns the image itself, whatever eps is


def _cases(slow: bool) -> list[object]:
    """Return (name, norm) of all attacks; the slow ones are marked, or none where `slow` is false."""
    cases = []
    for entry in ENTRIES:
        marks = [pytest.mark.slow] if slow and entry.name not in FAST else []
        cases.extend(
            pytest.param(entry.name, norm, marks=marks, id=f"{entry.name}-{norm}") for norm in entry.norms or (None,)
        )
    return cases


@pytest.mark.parametrize(("name", "norm"), _cases(slow=True))
def test_attack_keeps_the_contract_and_beats_noise(registry: Registry, name: str, norm: str | None) -> None:
    spec = registry.attacks[f"art:{name}"]
    if not spec.available:
        pytest.skip(spec.reason)
    report = check_attack(spec, norm=norm)
    assert not [finding for finding in report.findings if not finding.ok and (name, finding.code) not in GIVES_UP]
    if not spec.undemonstrated and (name, norm) not in NOT_SHOWN:
        assert report.demonstrated, report.evidence


class Simple(nn.Module):
    """Logits: how bright each of the first three columns is, and each of the three colours."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * (images.mean(dim=(1, 2))[:, :3] + images.mean(dim=(2, 3)))


def _images(side: int) -> tuple[Tensor, Tensor]:
    """Two noisy grey images whose second, respectively first, column is a little brighter."""
    images = 0.45 + 0.1 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0])
    for row, label in enumerate(labels):
        images[row, :, :, label] += 0.1
    return images, labels


@pytest.mark.parametrize(("name", "norm"), [case for case in _cases(slow=False) if case.values[0] not in FAST])
def test_attack_runs_and_moves_the_right_way(registry: Registry, name: str, norm: str | None) -> None:
    """Of two points near the boundary, at least one falls, in the box and, for a bounded attack, within eps."""
    spec = registry.attacks[f"art:{name}"]
    if not spec.available:
        pytest.skip(spec.reason)
    side = 10 if norm == "L2" and name in ("SquareAttack", "AutoAttack") else 6
    images, labels = _images(side)
    threat = ThreatModel(norm if norm in ("Linf", "L2", "L1") else "L2", {"Linf": "0.2", "L1": "20"}.get(norm, "3"))
    rng = SampleRng(0, torch.arange(2))
    assert (Simple()(images).argmax(dim=1) == labels).all()
    adv = spec.function(Simple(), images, labels, threat, rng=rng, **spec.check_options(spec.quick))
    again = spec.function(Simple(), images, labels, threat, rng=rng, **spec.check_options(spec.quick))
    assert torch.equal(adv, again)
    assert (adv.shape, adv.dtype, adv.requires_grad) == (images.shape, images.dtype, False)
    found = threat.violations(images, adv)
    assert not (found.not_finite | found.box).any()
    assert spec.kind != "bounded" or not found.ball.any()
    assert (Simple()(adv).argmax(dim=1) != labels).any()
