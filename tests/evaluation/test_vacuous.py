"""Attacks that say nothing of a threat model, and balls that mean nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustdup
from robustdup import UserError
from robustdup.evaluation.vacuous import check_eps
from robustdup.threat import ThreatModel
from tests.lanes import each_once
from tests.raising import raises

VALUES = torch.linspace(0.3, 0.7, 12)
IMAGES = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
LABELS = (VALUES > 0.5).long()


class Mean(nn.Module):
    def forward(self, images):
        signal = 10 * (images.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-signal, signal], dim=1)


@robustdup.register_attack("one-pixel", norms=["L0"], kind="unbounded")
def one_pixel(model, images, labels, threat, *, rng):
    adv_images = images.clone()
    adv_images[:, :, 0, 0] = 1 - labels.view(-1, 1).float()
    return adv_images


@robustdup.register_attack("patch", norms=[], kind="unbounded")
def patch(model, images, labels, threat, *, rng):
    adv_images = images.clone()
    adv_images[:, :, :3, :3] = (1 - labels).view(-1, 1, 1, 1).float()
    return adv_images


@robustdup.register_attack("idle", norms=["Linf"])
def idle(model, images, labels, threat, *, rng):
    return images.clone()


@robustdup.register_attack("divides-by-zero", norms=["Linf"])
def divides_by_zero(model, images, labels, threat, *, rng):
    direction = images - images - 0 * model(images).sum()
    return images + threat.radius * direction / direction.norm()


@robustdup.register_attack("blind", norms=["Linf"])
def blind(model, images, labels, threat, *, rng):
    return threat.project(
        images, images + threat.radius * (labels.view(-1, 1, 1, 1) - 0.5).sign()
    )  # away from the boundary


def evaluate(attacks, **options):
    return robustdup.evaluate(Mean().eval(), IMAGES, LABELS, eps="0.1", attacks=attacks, workers=1, **options)


@each_once(
    attacks=[
        [one_pixel],
        [patch],
        [idle],
        [divides_by_zero],
        [blind],
        ["noise(draws=2)"],
        [patch, idle, "noise(draws=2)"],
    ],
    diagnostics=[True, False],
)
def test_a_run_without_an_attack_on_its_threat_model_is_a_bound_without_a_place(attacks, diagnostics):
    result = evaluate(attacks, diagnostics=diagnostics)
    record, rank = result.record, result.rank()
    assert record.reliable is False
    assert "no attack that works within Linf 0.1" in record.unreliable_reasons[0]
    assert "robust ≤" in str(record)
    assert rank.at_most is None
    assert rank.autoattack is None
    assert "no attack that works within Linf" in rank.reasons[0]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (idle, "idle returned all 12 images unchanged."),
        (divides_by_zero, "divides-by-zero returned 12 of 12 images with NaN or infinity."),
        (blind, "blind never asked the model."),
    ],
)
def test_an_attack_that_did_nothing_is_named(attack, message):
    (sign,) = [sign for sign in evaluate([attack], diagnostics=True).record.diagnostics if sign.code == "no_op"]
    assert sign.message == message


@pytest.mark.parametrize("attacks", [["pgd(steps=5)"], [one_pixel, "pgd(steps=5)"], ["fgsm", idle]])
def test_beside_an_attack_of_substance_the_others_do_no_harm(attacks):
    record = evaluate(attacks).record
    assert record.reliable is not False
    assert record.robust_accuracy.value == pytest.approx(0.5)
    assert [attack.evidence for attack in record.attacks if attack.name == "one-pixel"] in ([], [False])


def test_where_there_was_nothing_to_attack_nothing_is_missing():
    record = robustdup.evaluate(Mean().eval(), IMAGES, 1 - LABELS, eps="0.1", attacks=[idle]).record
    assert record.unreliable_reasons == []


@pytest.mark.parametrize(
    ("norm", "eps", "written"), [("L2", "255", "255/255"), ("L2", "128", "128/255"), ("L1", "3000", "3000/255")]
)
def test_a_ball_that_holds_every_image_is_refused(norm, eps, written):
    with raises("bad-eps", UserError, f"--eps {written}"):
        check_eps(torch.rand(4, 3, 8, 8), ThreatModel(norm, eps))


@pytest.mark.parametrize(
    ("norm", "eps", "notes"), [("L2", "0.5", 0), ("L2", "5", 1), ("L1", "12", 0), ("L1", "90", 1), ("Linf", "1", 0)]
)
def test_a_ball_with_the_grey_image_in_it_is_asked_about(norm, eps, notes):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=generator)  # 192 pixels: 4.0 from the grey image in L2, 48 in L1
    told = check_eps(images, ThreatModel(norm, eps))
    assert len(told) == notes
    assert all("grey" in note and f"--eps {eps}/255" in note for note in told)
