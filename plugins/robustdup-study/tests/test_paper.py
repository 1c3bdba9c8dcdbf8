"""The published protocol: its parts against what the notebooks do, and the illustration against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from robustdup_study.paper_2504_00638 import gaussian
from robustdup_study.paper_2504_00638.protocol import (
    BLACK,
    PaperConfig,
    attack,
    crop_and_flip,
    network,
    run_arm,
    scaled,
)
from robustdup_study.paper_2504_00638.published import FIGURES


def test_networks_have_the_published_sizes():
    standard, adversarial = network("standard", 3, (32, 32), 10), network("adversarial", 3, (32, 32), 10)
    assert [tuple(p.shape) for p in standard.parameters()][::2] == [
        (16, 3, 3, 3),
        (32, 16, 3, 3),
        (128, 2048),
        (10, 128),
    ]
    assert [tuple(p.shape) for p in adversarial.parameters()][::2] == [
        (32, 3, 3, 3), (64, 32, 3, 3), (256, 4096), (10, 256),
    ]  # fmt: skip
    assert any(isinstance(layer, torch.nn.Dropout) for layer in standard)
    assert not any(isinstance(layer, torch.nn.Dropout) for layer in adversarial)


def test_the_clamp_turns_every_dark_pixel_grey_and_goes_beyond_the_radius():
    model = network("adversarial", 1, (8, 8), 3).requires_grad_(False)
    images = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    adv = attack(model, images, torch.tensor([0, 1, 2, 0]))
    assert float(adv.min()) >= 0
    dark = images < -0.1
    # A dark pixel is drawn up to grey: up to 1 away, though the difference was clipped at 0.5.
    assert torch.all(adv[dark] <= 0.1 + 1e-6)
    assert float((adv - images).abs().max()) > 0.9
    bright = (images > 0.1) & (images < 0.9)
    assert float((adv - images)[bright].abs().max()) <= 0.1 + 1e-6  # ten steps of 0.01 reach no further


def test_the_repaired_clamp_leaves_dark_pixels_where_ten_steps_bring_them():
    torch.manual_seed(0)
    model = network("adversarial", 1, (8, 8), 3).requires_grad_(False)
    images = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    adv = attack(model, images, torch.tensor([0, 1, 2, 0]), BLACK)
    assert float(adv.min()) == -1
    assert float((adv - images).abs().max()) <= 0.1 + 1e-6
    published = attack(model, images, torch.tensor([0, 1, 2, 0]))
    assert float((published - adv).abs().max()) > 0.8


def test_pixels_are_scaled_and_cropped_as_published():
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    torch.manual_seed(0)
    image = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    found = crop_and_flip(image)
    assert found.shape == image.shape
    padded = torch.nn.functional.pad(image[:1], (4, 4, 4, 4), value=-1.0)[0, 0]
    windows = {
        tuple(turned.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for turned in (padded[top : top + 8, left : left + 8], padded[top : top + 8, left : left + 8].flip(1))
    }
    assert {tuple(one.flatten().tolist()) for one in found} <= windows
    assert len({tuple(one.flatten().tolist()) for one in found}) > 50


@pytest.mark.parametrize("arm", ["standard", "adversarial"])
def test_an_arm_measures_every_dose_and_repeats_itself(arm):
    config = PaperConfig(arm=arm, percents=[0, 20], epochs=1, data="builtin:digits", n=256, test_n=100, seed=3)
    before = torch.get_rng_state()
    told = []
    found, again = (run_arm(config, torch.device("cpu"), lambda *step: told.append(step)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert found == again
    assert [one.factors["percent"] for one in found] == [0, 20]
    # 256 images are 2 steps; 20 means two further whole copies in one arm, and 51 more images in the other.
    assert [one.metrics["steps"] for one in found] == ([2, 6] if arm == "standard" else [2, 3])
    total = 8 if arm == "standard" else 5
    assert told == 2 * [(step, total) for step in range(1, total + 1)]
    assert ("test_adv_acc" in found[0].metrics) == (arm == "adversarial")


def test_the_repaired_clamp_changes_the_adversarial_arm_and_no_measurement_need_be_made_on_training_images():
    def metrics(**more):
        config = PaperConfig(
            arm="adversarial", percents=[0], epochs=4, data="builtin:digits", n=512, test_n=100, seed=3, **more
        )
        return run_arm(config, torch.device("cpu"))[0].metrics

    published, repaired, short = metrics(), metrics(clamp="repaired"), metrics(measure_training=False)
    assert short == {name: value for name, value in published.items() if not name.startswith(("train_", "original_"))}
    assert published["test_clean_acc"] != repaired["test_clean_acc"]
    # Digits are mostly dark. What the published arm learned it knows of grey images, the repaired one of the images.
    assert published["clamped_accuracy"] > published["test_clean_acc"]
    assert repaired["test_clean_acc"] > repaired["clamped_accuracy"]


def test_momentum_carries_over_from_dose_to_dose():
    def last(percents):
        config = PaperConfig(percents=percents, epochs=1, data="builtin:digits", n=256, test_n=100, seed=3)
        return run_arm(config, torch.device("cpu"))[-1].metrics

    assert last([0, 20]) != last([20])


def test_published_figures_are_those_of_the_notebooks():
    assert len(FIGURES) == 20
    adversarial = {
        figure.percent: figure.clean for figure in FIGURES if figure.arm == "adversarial" and "output" in figure.source
    }
    assert (adversarial[0], adversarial[60], adversarial[100]) == (41.16, 20.90, 36.21)


def test_gaussian_points_and_duplicates_are_drawn_as_published():
    rng = np.random.default_rng(0)
    points, labels = gaussian.draw(rng, 4000)
    assert points[labels == 1].mean(axis=0) == pytest.approx([1, 1], abs=0.06)
    assert np.cov(points[labels == -1].T) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]), abs=0.08)
    rows = gaussian.duplicates(rng, labels, 5000, 0.8)
    assert (labels[rows] == 1).mean() == pytest.approx(0.8, abs=0.025)


def test_gaussian_skewed_duplicates_harm_and_the_training_accuracy_hides_it():
    lines = gaussian.run(range(6))
    last = {line.scheme: line for line in lines if line.added == gaussian.DOSES[line.scheme][-1]}
    assert last["80/20"].difference.high < 0  # worse on fresh points
    assert last["80/20"].duplicated > last["80/20"].original > last["80/20"].fresh
    assert last["balanced"].difference.mean > last["80/20"].difference.mean
    first = [line for line in lines if line.added == 0]
    assert all(line.difference.mean == 0 and line.original == line.duplicated for line in first)
