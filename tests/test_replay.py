"""`eval --replay`: the adversarial images of an earlier run come first, judged by the referee."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import robustdup
from robustdup import UserError
from robustdup.evidence.bundle import write_bundle
from robustdup.records import load_samples
from tests.raising import raises
from tests.test_jobs import GAP, IMAGES, LABELS, ROBUST, Mean

QUIET = {"diagnostics": False, "progress": False, "attacks": "pgd(steps=10)"}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier") / "run"
    robustdup.evaluate(Mean().eval(), IMAGES, LABELS, eps="0.1", out=folder, **QUIET)
    return folder


def again(place, images=IMAGES, labels=LABELS, eps="0.1", **options):
    return robustdup.evaluate(
        Mean(9.0).eval(), images, labels, eps=eps, replay=str(place), **{**QUIET, **options}
    ).record


def test_one_pass_decides_and_only_the_rest_is_attacked(earlier, tmp_path):
    bundle = write_bundle(earlier, tmp_path / "bundle")
    for place in (earlier, bundle):
        record = again(place)
        first, second = record.attacks
        assert (first.name, first.n_attacked, first.n_broken) == ("replay", 40, int((GAP <= 0.1).sum()))
        assert (first.forward_passes, first.backward_passes, first.evidence) == (0, 0, False)
        assert (second.n_attacked, second.n_broken) == (int((GAP > 0.1).sum()), 0)
        assert record.robust_accuracy.value == pytest.approx(ROBUST)
        assert any("it has one for 40 of 40 samples" in event for event in record.events)


def test_what_came_from_a_larger_ball_is_put_into_the_smaller_one(earlier):
    record = again(earlier, eps="0.05")
    assert record.attacks[0].violations == 0
    assert 0 < record.attacks[0].n_broken <= int((GAP <= 0.05).sum())  # the earlier attack stopped where it broke
    assert record.robust_accuracy.value == pytest.approx(float((GAP > 0.05).double().mean()))


def test_samples_are_matched_by_their_pixels_in_any_order(earlier):
    turned = torch.arange(39, 19, -1)
    record = again(earlier, IMAGES[turned], LABELS[turned])
    assert record.attacks[0].n_broken == int((GAP[turned] <= 0.1).sum())
    assert any("20 of 20" in event for event in record.events)
    mixed = torch.cat([IMAGES[:5], IMAGES[:5] * 0.999])
    record = again(earlier, mixed, torch.cat([LABELS[:5]] * 2))
    assert any("it has one for 5 of 10 samples" in event for event in record.events)


def test_a_forged_image_breaks_nothing(earlier, tmp_path):
    bundle = write_bundle(earlier, tmp_path / "bundle")
    images = load_file(bundle / "adversarial.safetensors")["images"]
    save_file({"images": 1 - IMAGES.round()}, bundle / "adversarial.safetensors")  # all of the other class, far away
    record = again(bundle)
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    save_file({"images": torch.full_like(images, torch.nan)}, bundle / "adversarial.safetensors")
    record = again(bundle)
    assert record.attacks[0].n_broken == 0
    assert record.robust_accuracy.value == pytest.approx(ROBUST)


def test_what_cannot_be_replayed_is_refused_in_words(earlier, tmp_path):
    with raises("unusable-replay", UserError, "There is no record"):
        again(tmp_path / "nowhere")
    with raises("unusable-replay", UserError, "none of its 40 clean images"):
        again(earlier, IMAGES * 0.999)
    bundle = write_bundle(earlier, tmp_path / "bundle")
    save_file({"images": IMAGES[:3].contiguous()}, bundle / "adversarial.safetensors")
    with raises("unusable-replay", UserError, "are not those of its 40 samples"):
        again(bundle)
    (bundle / "adversarial.safetensors").write_bytes(b"not a tensor")
    with raises("unusable-replay", UserError, "damaged"):
        again(bundle)
    (bundle / "adversarial.safetensors").unlink()
    with raises("unusable-replay", UserError, "keeps no adversarial images"):
        again(bundle)


def test_a_replayed_run_is_bundled_and_verified_and_passes_the_gate(earlier, tmp_path):
    out = tmp_path / "new"
    result = robustdup.evaluate(
        Mean(9.0).eval(), IMAGES, LABELS, eps="0.1", replay=str(earlier), out=out, workers=1, **QUIET
    )
    assert np.unique(np.array(load_samples(out)["attack"].to_pylist())).tolist() == ["clean", "pgd", "replay"]
    bundle = write_bundle(out, tmp_path / "evidence")
    checked = robustdup.verify(bundle, Mean(9.0).eval(), IMAGES, LABELS)
    assert checked.accepted, checked.problems
    assert robustdup.gate(out, earlier).passed
    assert json.loads((out / "record.json").read_text())["config"]["replay"] == str(earlier)
    assert result.record.attacks[0].source == "native"


def test_images_of_another_norm_are_put_into_the_ball_of_this_one(earlier):
    record = again(earlier, eps="4", norm="L0", attacks="sigma-zero")
    assert record.attacks[0].violations == 0
    assert 0 < record.attacks[0].n_broken < 40
