"""What is expected of a score: wrong pairs from the tail, a threshold, and recall where somebody confirmed pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detect_pictures import detect, encoded, found, pictures, write
from robustdup_detect.calibrate import (
    ANNOTATED,
    ANNOTATED_PAIRS,
    FEW,
    LEAST,
    MOST,
    annotated_recall,
    calibrate,
    choose_threshold,
    compared,
    fit_tail,
    logit,
)
from robustdup_detect.decisions import Decisions, known_recall, read_decisions
from robustdup_detect.kinds import KINDS, copies_of_kinds
from robustdup_detect.pairlist import identical_pairs
from robustdup_detect.record import load_pairs
from robustdup_detect.scores import USUAL_SCORE, USUAL_THRESHOLD
from robustdup_detect.transforms import change

from robustdup.errors import UserError
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def candidates(seed, n=20000, rate=0.6, duplicates=300):
    """Log odds of different pictures that fall off exponentially from -12 on, and of duplicates around 7."""
    rng = np.random.default_rng(seed)
    return np.concatenate([-12 + rng.exponential(1 / rate, n), rng.normal(7, 4.5, duplicates)])


def each_alone(odds):
    """Candidates each of which is the only one of its two images."""
    return compared([(np.arange(len(odds)), np.arange(len(odds)), odds)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("duplicates", [0, 300])
def test_wrong_pairs_are_extrapolated_and_duplicates_are_not_counted_as_such(seed, duplicates):
    """20,000 exp(-12 * 0.6) = 14.9 different pictures lie above even odds, with or without duplicates."""
    odds = candidates(seed, duplicates=duplicates)
    assert fit_tail(odds).above(0) == pytest.approx(20000 * np.exp(-12 * 0.6), rel=0.35)
    assert fit_tail(odds).rate == pytest.approx(0.6, rel=0.1)
    assert fit_tail(odds, duplicates=False).above(0) >= 0.9 * fit_tail(odds).above(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("duplicates", [0, 300, 1000])
def test_the_interval_of_the_wrong_pairs_holds_the_truth(seed, duplicates):
    made = calibrate(each_alone(candidates(seed, duplicates=duplicates)), 1000, USUAL_SCORE, target=0.95, threshold=0.5)
    assert made.different_low <= 20000 * np.exp(-12 * 0.6) <= made.different_high
    assert made.precision(made.different_high) <= max(1 - 14.9 / made.images, 0.0) <= made.precision(made.different_low)


def test_the_threshold_is_the_lowest_that_holds_the_precision_and_does_not_run_to_its_cap():
    odds = candidates(0)
    tail = fit_tail(odds)
    cut, missed = choose_threshold(each_alone(odds), tail, 0.95)
    assert not missed
    share = tail.above(logit(cut)) / (odds >= logit(cut)).sum()
    assert share <= 0.05
    assert tail.above(logit(cut - 0.01)) / (odds >= logit(cut - 0.01)).sum() > 0.05 or cut == LEAST


def test_the_threshold_does_not_run_to_its_cap_where_there_are_hardly_any_duplicates():
    none = candidates(0, duplicates=0)
    cut, missed = choose_threshold(
        each_alone(none[none < 0]), fit_tail(none), 0.95
    )  # 15 wrong pairs expected, none seen
    assert (cut, missed) == (USUAL_THRESHOLD, True)
    apart = candidates(0, rate=1.0, duplicates=3)
    cut, missed = choose_threshold(each_alone(apart), fit_tail(apart), 0.95)
    assert not missed
    assert cut == LEAST
    assert fit_tail(apart).above(logit(cut)) <= 0.05 * FEW


def test_wrong_pairs_are_held_against_images_and_not_against_the_pairs_of_a_few():
    """40 shots of one picture make 780 right pairs, of 39 images on the side that has fewer: 15 wrong ones are too many."""
    odds = candidates(0, duplicates=0)
    first, second = np.triu_indices(40, 1)
    alone = 100 + np.arange(len(odds))
    shots = compared([(first, second, np.full(780, 8.0)), (alone, alone, odds)])
    one = compared([(np.r_[first, alone], np.r_[second, alone], np.r_[np.full(780, 8.0), odds])])
    each = each_alone(np.r_[np.full(780, 8.0), odds])
    assert (shots.pairs(0.0), shots.images(0.0)) == (one.pairs(0.0), one.images(0.0))
    assert one.pairs(7.0) == each.pairs(7.0) == 780
    assert (one.images(7.0), each.images(7.0)) == (39, 780)
    cuts = [choose_threshold(seen, fit_tail(seen.odds), 0.95)[0] for seen in (each, one)]
    assert cuts[0] == LEAST
    assert cuts[1] > 0.9
    made = calibrate(one, 1000, USUAL_SCORE, target=0.95, threshold=None)
    assert made.precision(made.different) >= 0.95
    assert made.precision(made.different) == 1 - made.different / made.images


def test_the_interval_knows_that_most_wrong_pairs_are_of_images_with_a_right_one():
    odds = candidates(0)
    rows = np.arange(len(odds))
    shared = compared([(rows % 50, rows, odds)])  # 50 images have all pairs
    assert each_alone(odds).best_share(0.0) == 1.0
    assert shared.best_share(0.0) == 0.0
    assert compared([(rows, rows, np.full(len(rows), 5.0))]).best_share(0.0) == 1.0  # nothing lies there


def test_recall_is_that_of_annotated_pairs_and_its_lower_end_falls_where_pairs_lie_just_below():
    odds = np.concatenate([candidates(0, duplicates=0), np.full(300, 6.0)])
    found, low, high = annotated_recall(each_alone(odds), fit_tail(odds), 0.9)
    assert found == dict(ANNOTATED)[0.9] / ANNOTATED_PAIRS
    assert 0.85 < low < found < high < 1
    near = np.concatenate([odds, np.full(100, 1.0)])  # at a score of 0.73
    assert annotated_recall(each_alone(near), fit_tail(odds), 0.9)[1] == pytest.approx(0.75, abs=0.05)
    assert annotated_recall(each_alone(odds), fit_tail(odds), 1.0)[0] == 0
    assert [pairs for _, pairs in ANNOTATED] == sorted((pairs for _, pairs in ANNOTATED), reverse=True)


def test_a_precision_that_cannot_be_had_is_told(tmp_path):
    alike = np.random.default_rng(0).normal(0, 4, 5000)  # different pictures that cannot be told apart
    made = calibrate(each_alone(alike), 1000, USUAL_SCORE, target=0.95, threshold=None)
    assert made.missed
    assert made.threshold == MOST


def test_too_few_images_say_nothing():
    made = calibrate(each_alone(candidates(0)), 199, USUAL_SCORE, target=0.95, threshold=None)
    assert (made.calibrated, made.threshold, made.precision(made.different)) == (False, USUAL_THRESHOLD, None)
    assert not calibrate(each_alone(np.array([])), 1000, USUAL_SCORE, target=0.95, threshold=None).calibrated


def test_a_run_says_what_to_expect_and_not_what_it_does_not_know(tmp_path):
    images = pictures(300)
    data = write(tmp_path / "data", images=[encoded(image) for image in images])
    record = detect(data, tmp_path / "run", shard=1000)
    assert record.n_near == 0  # all are different
    assert record.method.threshold < MOST
    assert record.expected.recall is None
    assert "not known" in record.expected.about
    assert set(record.expected.recall_by_change) <= set(KINDS)
    assert record.expected.recall_by_change["gamma"] > 0.8
    again = detect(data, tmp_path / "again", shard=1000, seed=3)
    assert abs(again.method.threshold - record.method.threshold) < 0.1


def test_decisions_are_honoured_and_say_what_recall_is(tmp_path):
    images = pictures(60)
    copies = change("crop", images[:30], np.random.default_rng(0))
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, *copies]])
    lines = [f"{row},{60 + row},true" for row in range(24)] + ["70,3,yes", "24,84,false", "25,85,no"]
    (tmp_path / "said.csv").write_text("a,b,duplicate\n" + "\n".join(lines) + "\n")
    before = detect(data, tmp_path / "before")
    record = detect(data, tmp_path / "run", decisions=str(tmp_path / "said.csv"))
    pairs = {(a, b) for a, b, _ in found(tmp_path / "run")}
    assert (24, 84) in {(a, b) for a, b, _ in found(tmp_path / "before")}
    assert pairs == {(row, 60 + row) for row in range(30)} - {(24, 84), (25, 85)} | {(3, 70)}
    assert (
        record.n_redundant == before.n_redundant - 2
    )  # 84 and 85 stay; 3 and 10 are no pair: both stay, and 70 leaves
    assert record.expected.recall == 24 / 25
    assert record.expected.recall_low < 0.96 < record.expected.recall_high
    assert record.expected.confirmed == 25
    assert sum(load_pairs(tmp_path / "run").to_pydict()["decided"]) == 25
    assert any("2 that are none" in note for note in record.notes)


@pytest.mark.parametrize(
    ("text", "named"),
    [("a,b,duplicate\n0,9,true\n", "9"), ("a,b,duplicate\n0,1,perhaps\n", "perhaps"), ("x,y\n0,1\n", "no a"),
     ("a,b,duplicate\n0,1,true\n1,0,false\n", "and none"), ("a,b,duplicate\nq.png,1,true\n", "q.png"),
     ("a,b,duplicate\n0,a.png,true\n", "same image")],
)  # fmt: skip
def test_mistakes_in_decisions_are_explained(tmp_path, text, named):
    (tmp_path / "said.csv").write_text(text)
    with raises("bad-file", UserError, named):
        read_decisions(str(tmp_path / "said.csv"), ["a.png", "", ""], ["a.png", "", ""], within=True)


@pytest.mark.parametrize(
    "text",
    [
        "path_a,path_b,duplicate\nx/b.png,a.png,1\n",
        "\ufeffa, b, duplicate\r\nx/b.png, 0, TRUE\r\n",
        "a;b;duplicate\n1;0;yes\n",
    ],
)
def test_decisions_may_name_files_and_come_from_spreadsheets(tmp_path, text):
    (tmp_path / "said.csv").write_text(text)
    assert read_decisions(
        str(tmp_path / "said.csv"), ["a.png", "x/b.png"], ["a.png", "x/b.png"], within=True
    ) == Decisions(same=frozenset({(0, 1)}))


def test_identical_pairs_say_nothing_about_recall():
    decisions = Decisions(same=frozenset((row, row + 1) for row in range(30)))
    same = identical_pairs(np.arange(30), np.arange(1, 31))
    assert known_recall(same, decisions) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_picture_and_keeps_its_size(kind):
    images = pictures(4, size=48)
    copies, names = copies_of_kinds(images, np.random.default_rng(0), (kind,))
    assert copies.shape == images.shape
    assert copies.dtype == torch.uint8
    assert (copies != images).flatten(1).any(dim=1).all()
    assert names == [kind] * 4
