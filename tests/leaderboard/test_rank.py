"""A rank is given only where the comparison is fair, and every refusal says why."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from robustdup.leaderboard import load, position
from robustdup.leaderboard.images import dataset_by_name, reference
from robustdup.leaderboard.rank import place_among
from robustdup.records import Accuracy, Diagnostic

AA = "robustbench:AutoAttack"


@pytest.fixture
def ranked(make_record, make_table, points):
    """Rank n samples of which `robust` survive: every keyword of the record builder may be changed."""

    def rank(n=200, right=180, robust=114, *, table=None, samples=True, **changes):
        clean, broken = points(n, right, robust)
        rows = {key: changes.pop(key) for key in ("hashes", "labels", "index") if key in changes}
        shared = {key: changes[key] for key in ("attacks", "eps", "undecided") if key in changes}
        made = make_table(clean, broken, **shared, **rows) if samples else None
        return position(make_record(clean, broken, **changes), made, table)

    return rank


def expected(value, eps="8/255"):
    """Independent count: 1 + the AutoAttack numbers at this eps above the value."""
    board = load().board("cifar10", "Linf")
    return 1 + sum(e.autoattack_acc > value for e in board if e.eps == eps and e.autoattack_acc is not None)


def test_the_place_is_an_interval_below_the_whole_test_set(ranked):
    result = ranked()
    assert result.comparable
    assert result.reasons == []
    assert result.autoattack.place == expected(57.0)
    # Wilson's interval of 114 / 200 with the correction for 10,000: 50.2% to 63.6%.
    assert (result.autoattack.best, result.autoattack.worst) == (expected(63.6), expected(50.2))
    assert result.autoattack.best < result.autoattack.place < result.autoattack.worst
    assert result.autoattack.n_entries == 93
    assert result.images.status == "match"
    assert "checked on 200 of 200 samples" in result.sentence()
    assert f"{expected(63.6)} to {expected(50.2)} of 94" in result.sentence()
    assert any("6 published entries at another eps" in note for note in result.notes)


def test_the_whole_test_set_gives_one_place(ranked):
    result = ranked(10_000, 8969, 5953)
    assert result.autoattack.best == result.autoattack.worst == expected(59.53)
    assert "checked on 500 of 10000 samples, the others unchecked" in result.images.text
    assert (result.images.n_checked, result.images.n_samples) == (500, 10_000)


def test_external_evaluations_count_only_in_robustbench_order(ranked):
    # Between Kang2021Stable's 71.28 by AutoAttack and its 64.20 under the external attack.
    result = ranked(10_000, 9000, 6500)
    above = [e for e in load().board("cifar10", "Linf") if e.autoattack_acc > 65.0 and e.eps == "8/255"]
    own = [e for e in load().board("cifar10", "Linf") if (e.external_acc or e.autoattack_acc) > 65.0]
    assert "Kang2021Stable" in {e.model_id for e in above} - {e.model_id for e in own}
    assert result.autoattack.place == len(above) + 1
    assert result.robustbench.place == len(own) + 1
    assert result.autoattack.place > result.robustbench.place
    assert result.robustbench.n_entries == 99


def test_places_at_the_edges_and_ties():
    entries = [("a", 60.0), ("b", 50.0), ("c", 50.0), ("d", 0.0)]

    def place(value, low, high):
        found = place_among(entries, Accuracy(value=value, low=low, high=high), exact=False)
        return found.place, found.best, found.worst, found.next_better, found.next_worse

    assert place(0.7, 0.6, 0.8) == (1, 1, 1, None, "a")
    assert place(0.5, 0.5, 0.5) == (2, 2, 2, "a", "b")
    assert place(0.0, 0.0, 0.55) == (4, 2, 4, "c", "d")
    assert place_among([], Accuracy(value=0.5, low=0, high=1), exact=False).place == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eps": "4/255"}, "eps is 4/255, the cifar10 Linf leaderboard has 8/255"),
        ({"eps": "0.031"}, "0.031 is not 8/255"),
        ({"norm": "L1", "eps": "12"}, r"no L1 leaderboard for cifar10 \(it has L2, Linf\)"),
        ({"undecided": [3], "robust": 114}, "1 of 200 samples are undecided"),
        ({"status": "failed"}, "not complete"),
        ({"n_not_attacked": 7}, "7 of 200 samples were not attacked"),
        ({"model": {"randomized": True}}, "randomised"),
        (
            {"model": {"attack_model": "other.py:make", "attack_model_fingerprint": "0" * 64}},
            "another model was attacked",
        ),
        ({"model": {"mode": "as-is"}}, "not in eval mode"),
    ],
)
def test_unfair_comparisons_give_a_reason_and_no_place(ranked, changes, reason):
    result = ranked(**changes)
    assert not result.comparable
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError("; ".join(result.reasons))
    assert result.autoattack is result.robustbench is result.at_most is None
    assert result.sentence().startswith("No RobustBench rank: ")


def test_attacking_a_copy_of_the_judged_model_is_fair(ranked):
    assert ranked(model={"attack_model": "copy.py:make", "attack_model_fingerprint": "f" * 64}).comparable


@pytest.mark.parametrize(
    ("asked", "attacks"),
    [
        ("pgd", ["pgd"]),
        ("pgd(steps=40,restarts=2)", ["pgd"]),
        ("torchattacks:AutoAttack", ["torchattacks:AutoAttack"]),
        (AA, ["robustbench:APGD-CE", "robustbench:APGD-T"]),
        (AA, ["pgd"]),
        ("autoattack", []),
    ],
)
def test_a_weaker_attack_gives_only_a_bound(ranked, asked, attacks):
    result = ranked(asked=asked, attacks=attacks, robust=114)
    assert not result.comparable
    assert result.autoattack is None
    assert result.at_most is not None
    assert "at best place" in result.sentence()
    assert "no rank" in result.sentence()
    if attacks:
        assert f"at best place {result.at_most.best} of 94" in result.sentence()
        assert result.at_most.best == expected(63.6)


@pytest.mark.parametrize("asked", [AA, "autoattack"])
def test_autoattack_by_its_parts_or_as_a_whole(ranked, asked):
    assert ranked(asked=asked).comparable
    assert ranked(asked=asked, attacks=["apgd-ce", "apgd-t", "fab-t", "square"]).comparable
    assert ranked(asked=asked, attacks=[asked]).comparable


def test_more_than_autoattack_is_neither_ranked_nor_a_bound(ranked):
    plus = [*("robustbench:" + name for name in ("APGD-CE", "APGD-DLR", "FAB", "Square", "APGD-T", "FAB-T"))]
    for asked, attacks in ((f"{AA}-plus", plus), (f"{AA},pgd", [*plus[:1], *plus[3:], "pgd"])):
        result = ranked(asked=asked, attacks=attacks)
        assert not result.comparable
        assert result.at_most is result.autoattack is None


def test_changed_settings_are_not_the_standard(ranked, make_record, points):
    clean, broken = points(200, 180, 114)
    made = make_record(clean, broken)
    for options, text in (({"n_iter": 10}, "n_iter=10"), ({"n_target_classes": 3}, "n_target_classes=3")):
        attacks = [made.attacks[0].model_copy(update={"options": options}), *made.attacks[1:]]
        result = position(made.model_copy(update={"attacks": attacks}))
        assert not result.comparable
        assert text in result.reasons[0]
        assert result.at_most is not None
    same = [made.attacks[0].model_copy(update={"options": {"n_iter": 100, "seed": 3}}), *made.attacks[1:]]
    assert position(made.model_copy(update={"attacks": same})).comparable
    assert "another loss" in position(made.model_copy(update={"config": {"attacks": AA, "loss": "margin"}})).reasons[0]


def test_other_pixels_are_not_the_leaderboards(ranked, make_record):
    known = [digest.ljust(64, "0") for digest in reference().hashes[:200]]
    hashes = ["a" * 64] * 30 + known[30:]
    result = ranked(hashes=hashes)
    assert not result.comparable
    assert "30 of 200 checked samples have other pixels" in result.reasons[0]
    assert (result.images.n_differ, result.images.status, result.autoattack) == (30, "differ", None)
    reversed_order = ranked(hashes=known[::-1], labels=None)
    assert "the leaderboard's in another order" in reversed_order.reasons[0]


def test_other_labels_are_not_the_leaderboards(ranked):
    labels = [int(label) for label in reference().labels[:200]]
    labels[5] = (labels[5] + 1) % 10
    assert "1 of 200 checked samples carry another label" in ranked(labels=labels).reasons[0]


def test_the_pixels_say_which_dataset_it_is(ranked):
    result = ranked(data="some/folder")
    assert result.dataset == "cifar10"
    assert result.comparable
    foreign = ranked(data="some/folder", hashes=["b" * 64] * 200)
    assert foreign.dataset is None
    assert "'some/folder' has no RobustBench leaderboard" in foreign.reasons[0]


def test_datasets_without_shipped_hashes_go_by_name(ranked, make_record, points):
    clean, broken = points(200, 180, 60)
    hashes = ["c" * 64] * 200
    result = ranked(data="uoft-cs/cifar100", hashes=hashes, robust=60)
    assert result.comparable
    assert result.images.text.startswith("images not checked")
    made = make_record(clean, broken, data="uoft-cs/cifar100")
    train = made.model_copy(update={"data": made.data.model_copy(update={"split": "train"})})
    assert "the split is 'train'" in position(train).reasons[0]
    small = made.model_copy(update={"data": made.data.model_copy(update={"image_shape": [3, 64, 64]})})
    assert "shape [3, 64, 64]" in position(small).reasons[0]
    imagenet = ranked(data="ILSVRC/imagenet-1k", eps="4/255", hashes=hashes, robust=60)
    assert imagenet.comparable
    assert "its own list of 5,000" in imagenet.images.text


def test_a_subset_beyond_the_known_hashes_is_unchecked(ranked):
    result = ranked(index=np.arange(5000, 5200))
    assert result.comparable
    assert result.images.status == "unchecked"
    assert "images not checked" in result.sentence()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("uoft-cs/cifar10", "cifar10"), ("a/CIFAR-10", "cifar10"), ("x/cifar10-jpeg/", "cifar10"),
        ("uoft-cs/cifar100", "cifar100"), ("a/cifar_100", "cifar100"), ("ILSVRC/imagenet-1k", "imagenet"),
        ("a/imagenet", "imagenet"), ("a/cifar10.1", None), ("a/cifar10-c", None), ("a/CIFAR-10-C", None),
        ("a/tiny-imagenet", None), ("a/imagenet-a", None), ("a/imagenet100", None), ("builtin:digits", None),
    ],
)  # fmt: skip
def test_names_of_datasets(spec, name):
    assert dataset_by_name(spec) == name


def test_a_zoo_model_is_compared_with_its_published_number(ranked):
    result = ranked(10_000, 8969, 5953, model={"spec": "robustbench:Carmon2019Unlabeled"})
    assert (result.published.autoattack, result.published.clean) == (0.5953, 0.8969)
    assert abs(result.published.robust_difference) < 1e-12
    assert result.published.robust_inside
    assert result.published.clean_inside
    assert result.autoattack.n_entries == 92  # its own entry is not a competitor
    assert result.autoattack.place == expected(59.53)
    off = ranked(10_000, 8969, 5800, model={"spec": "robustbench:Carmon2019Unlabeled"})
    assert round(off.published.robust_difference, 6) == -0.0153
    assert not off.published.robust_inside
    assert ranked(model={"spec": "robustbench:NoSuchModel"}).published is None


def test_a_published_number_at_another_radius_is_not_compared(ranked):
    zhang = ranked(model={"spec": "robustbench:Zhang2019Theoretically"}).published
    assert zhang.robust_difference is None
    assert zhang.note == "published at eps 0.031, measured at 8/255"
    same = ranked(eps="0.031", model={"spec": "robustbench:Zhang2019Theoretically"})
    assert not same.comparable
    assert round(same.published.robust_difference, 6) == round(0.57 - 0.5308, 6)


def test_a_part_of_the_test_set_gets_the_interval_of_the_whole(ranked):
    whole, part = ranked(n=200), ranked(n=200, n_total=500)
    assert whole.autoattack == part.autoattack


def test_serious_diagnostics_are_noted(ranked):
    sign = Diagnostic(code="zero", severity="serious", message="gradients are zero", advice="look")
    assert any("gradients are zero" in note for note in ranked(diagnostics=[sign]).notes)


@pytest.mark.timing
def test_ten_thousand_points_are_quick(make_record, make_table, points, within):
    clean, broken = points(10_000, 8969, 5953, stage=3)
    made, rows = make_record(clean, broken), make_table(clean, broken)
    with within(1):
        result = position(made, rows)
    assert result.comparable


def real_images(name):
    place = os.environ.get("ROBUSTDUP_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(place) / name / "test.parquet"
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    from PIL import Image

    rows = pq.read_table(path).slice(0, 200).to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    return [hashlib.sha256(b"32x32x3" + image.tobytes()).hexdigest() for image in pixels], [r["label"] for r in rows]


def test_real_images_match_and_their_jpeg_copy_does_not(ranked):
    hashes, labels = real_images("cifar10-lossless")
    exact = ranked(hashes=hashes, labels=labels, data="x/cifar10-lossless")
    assert exact.comparable
    assert exact.images.n_checked == 200
    hashes, labels = real_images("cifar10-jpeg")
    copy = ranked(hashes=hashes, labels=labels, data="x/cifar10-jpeg")
    assert not copy.comparable
    assert copy.images.n_differ > 190
    assert "JPEG" in copy.sentence()
