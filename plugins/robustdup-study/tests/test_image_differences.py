"""The effect of copies on the images that have them, on answers whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest
from robustdup_study.cell_record import CellResult
from robustdup_study.image_differences import ImageEffect, _sentence, effect, image_differences
from robustdup_study.records import StudyRun


def answers(rng, images=120, seeds=4, tau=0.1, tilt=0.0):
    """Chances of a right answer: of the image, of the seed, and `tau` more with copies, which easy images get more often."""
    image, seed = (part.ravel() for part in np.meshgrid(np.arange(images), np.arange(seeds), indexing="ij"))
    ease, luck = rng.uniform(0.2, 0.6, images), rng.normal(0, 0.05, seeds)
    copied = rng.random(len(image)) < 0.3 + tilt * (ease[image] - 0.4)
    right = rng.random(len(image)) < ease[image] + luck[seed] + tau * copied
    return image, seed, copied, right.astype(float)


def test_two_images_and_two_seeds_by_hand():
    # Image 0 is copied in seed 1, image 1 in seed 0; with a constant for image and seed the effect is (d0 - d1) / 2, where
    # d is seed 1 less seed 0.
    image, seed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    copied = np.array([False, True, True, False])
    found = effect(image, seed, copied, np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.difference == pytest.approx(0.5)
    assert found.images == 2


def test_easy_images_that_are_copied_more_often_do_not_count_and_intervals_cover():
    rng, inside, plain = np.random.default_rng(5), 0, []
    runs = 400
    for _ in range(runs):
        image, seed, copied, right = answers(rng, tau=0.1, tilt=1.0)
        found = effect(image, seed, copied, right)
        inside += found.low <= 0.1 <= found.high
        plain.append(right[copied].mean() - right[~copied].mean())
    assert abs(inside / runs - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)
    assert np.mean(plain) > 0.13  # what comparing the groups would have said


def test_images_that_were_never_met_on_both_sides_say_nothing():
    image, seed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert effect(image, seed, np.array([True, True, False, False]), np.ones(4)) is None
    assert effect(image, seed, np.array([True, False, True, False]), np.ones(4)) is None  # the seed tells it all
    assert effect(image[:0], seed[:0], np.zeros(0, dtype=bool), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (ImageEffect(0.2, 0.1, 0.3, 9), "was 20.0 points [10.0, 30.0] higher where they were duplicated"),
        (ImageEffect(-0.2, -0.3, -0.1, 9), "was 20.0 points [10.0, 30.0] lower where they were duplicated"),
        (
            ImageEffect(0.05, -0.05, 0.15, 9),
            "is undecided: it differed by +5.0 points [−5.0, 15.0] where they were duplicated",
        ),
        (ImageEffect(0.0, 0.0, 0.0, 9), "was the same where they were duplicated"),
    ],
)
def test_what_chance_may_do_is_called_undecided(effect, said):
    assert _sentence("accuracy", effect, {}, 0.5, [], 2) == (
        f"On the same training images accuracy {said} at dose 0.5, 9 images in 2 seeds (interval over images)."
    )


def test_a_study_tells_it_for_each_dose_in_a_sentence():
    rng, rows, found = np.random.default_rng(1), [], {}
    image, seed, copied, right = answers(rng, images=400, tau=0.3)
    for number in range(4):
        mine = seed == number
        for dose in (0, 0.5):
            key = f"{dose}-{number}"
            rows.append(
                StudyRun(factors={"objective": "standard", "dose": dose}, seed=number, cell=key, status="complete")
            )
            samples = {
                "index": image[mine].tolist(), "copies": (copied[mine] * (dose > 0)).astype(int).tolist(),
                "correct": right[mine].astype(int).tolist(), "robust": [0] * int(mine.sum()),
            }  # fmt: skip
            found[key] = CellResult(key=key, created="", status="complete", samples=samples)
    one, held = image_differences(rows, found, "dose", ["objective"])
    assert (one.measure, one.dose, one.seeds) == ("accuracy", 0.5, [0, 1, 2, 3])
    assert one.low < 0.3 < one.high
    assert one.images == sum(len(set(copied[image == i])) == 2 for i in range(400))
    assert one.sentence.startswith("On the same training images accuracy was ")
    assert f"higher where they were duplicated at dose 0.5 (standard), {one.images} images in 4 seeds" in one.sentence
    assert held.sentence == (
        f"On the same training images robust accuracy was the same where they were duplicated at dose 0.5 (standard), "
        f"{one.images} images in 4 seeds (interval over images)."
    )
