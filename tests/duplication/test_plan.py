"""Plans of duplication: counts exactly as asked, nothing lost and nothing twice, nested doses, stable hashes."""

from __future__ import annotations

import heapq
import os
import pathlib
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdup.config import DuplicationOptions
from robustdup.duplication.make import make_plan
from robustdup.duplication.plan import load_plan, save_plan
from robustdup.duplication.schemes import power
from robustdup.errors import UserError
from tests.raising import raises

QUICK = settings(max_examples=40, deadline=None)
LABELS = torch.arange(300) % 7


def options(**keys):
    return DuplicationOptions(**keys)


def plan_of(labels=LABELS, seed=0, **keys):
    more = {name: keys.pop(name) for name in ("scores", "class_names", "n_other", "other_labels") if name in keys}
    return make_plan(labels, options(**keys), seed=seed, **more)


def entries(plan, *, copies_only=False):
    pairs = list(zip(plan.source_index.tolist(), plan.copy.tolist(), strict=True))
    return {pair for pair in pairs if pair[1] or not copies_only}


def copies_per_sample(plan, n):
    return torch.bincount(plan.source_index[plan.copy > 0], minlength=n)


def half_up(value):
    return (2 * Fraction(value) + 1).__floor__() // 2


labels_of = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(torch.tensor)
doses = st.integers(0, 60).map(lambda percent: percent / 100)
chosen_schemes = st.sampled_from(["uniform", "conflicting", "hardest", "easiest", "class_skewed"])


@QUICK
@given(labels_of, doses, st.integers(1, 5), st.integers(0, 10**9))
def test_uniform_gives_each_chosen_sample_all_its_copies(labels, fraction, copies, seed):
    plan = plan_of(labels, seed, scheme="uniform", fraction=fraction, copies=copies)
    counts = copies_per_sample(plan, len(labels))
    chosen = half_up(Fraction(repr(fraction)) * len(labels))
    assert sorted(counts.tolist()) == [0] * (len(labels) - chosen) + [copies] * chosen
    assert len(plan) == len(labels) + chosen * copies


@QUICK
@given(labels_of, st.integers(0, 90), st.integers(1, 20), st.integers(0, 10**9))
def test_the_dose_is_met_to_half_of_the_copies_of_one_sample(labels, percent, copies, seed):
    dose, n = Fraction(percent, 100), len(labels)
    wanted = dose * n / (1 - dose)
    if half_up(wanted / copies) > n:
        with pytest.raises(UserError, match=rf"asks for {half_up(wanted / copies)} samples, but there are {n}"):
            plan_of(labels, seed, scheme="uniform", dose=percent / 100, copies=copies)
        return
    plan = plan_of(labels, seed, scheme="uniform", dose=percent / 100, copies=copies)
    assert abs(int((plan.copy > 0).sum()) - wanted) <= Fraction(copies, 2)


@QUICK
@given(labels_of, st.integers(0, 40), st.integers(1, 3), chosen_schemes, st.sampled_from(["append", "replace"]))
def test_originals_come_once_and_copies_are_numbered_without_gaps(labels, percent, copies, scheme, mode):
    n = len(labels)
    keys = {"skew": 0.0} if scheme == "class_skewed" else {}
    try:
        plan = plan_of(
            labels, scheme=scheme, dose=percent / 100, copies=copies, mode=mode, scores=torch.arange(n).float(),
            class_names=[f"c{k}" for k in range(5)], **keys,
        )  # fmt: skip
    except UserError:
        return
    assert len(entries(plan)) == len(plan)
    originals = plan.source_index[plan.copy == 0]
    assert originals.tolist() == sorted(set(originals.tolist()))
    assert torch.equal(plan.copy[: len(originals)], torch.zeros(len(originals), dtype=torch.int64))
    counts = copies_per_sample(plan, n)
    for row in counts.nonzero().flatten().tolist():
        own = sorted(plan.copy[plan.source_index == row].tolist())
        assert own == list(range(int(counts[row]) + 1))  # with the original: copied samples never leave
    assert (len(plan) == n) if mode == "replace" else (len(originals) == n)
    assert set(labels[originals].tolist()) == set(labels.tolist())


@QUICK
@given(labels_of, st.integers(0, 10**9), st.integers(0, 45), st.integers(0, 45), st.integers(1, 3), st.data())
def test_a_higher_dose_contains_the_lower_one(labels, seed, one, two, copies, data):
    scheme = data.draw(st.sampled_from(["uniform", "conflicting", "hardest", "class_skewed", "power_law", "single"]))
    keys = {} if scheme in ("power_law", "single") else {"copies": copies}
    if scheme == "class_skewed":
        keys |= {"skew": data.draw(st.sampled_from([0.0, 0.25, 0.5]))}
    mode = data.draw(st.sampled_from(["append", "replace"]))
    low, high = sorted((one, two))
    try:
        plans = [
            plan_of(labels, seed, scheme=scheme, dose=d / 100, mode=mode, scores=torch.arange(len(labels)) % 5.0, **keys)
            for d in (low, high)
        ]  # fmt: skip
    except UserError:
        return
    lower, higher = (entries(plan, copies_only=True) for plan in plans)
    assert lower <= higher
    if plans[0].labels is not None:
        wrong = [
            dict(zip(zip(p.source_index.tolist(), p.copy.tolist(), strict=True), p.labels.tolist(), strict=True))
            for p in plans
        ]
        assert all(wrong[1][entry] == wrong[0][entry] for entry in lower)
    if mode == "replace" and scheme in ("uniform", "power_law", "conflicting"):
        stayed = [entries(plan) - entries(plan, copies_only=True) for plan in plans]
        assert stayed[1] <= stayed[0]


def webster(weights, seats):
    """Apportion seats one by one to the largest weight / (2 seats + 1); None where two classes tie."""
    found = [0] * len(weights)
    for _ in range(seats):
        keys = [w / (2 * s + 1) for w, s in zip(weights, found, strict=True)]
        best = max(keys)
        if keys.count(best) > 1:
            return None
        found[keys.index(best)] += 1
    return found


@QUICK
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 20), st.integers(0, 100), st.integers(1, 4))
def test_skewed_classes_are_apportioned_as_by_hand(sizes, skew, percent, copies):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    n, share, s = len(labels), Fraction(percent, 100), Fraction(skew, 20)
    shares = [(1 - s) * Fraction(size, n) + s * (k == 1) for k, size in enumerate(sizes)]
    chosen = half_up(share * n)
    if any(half_up(x * chosen) > size for x, size in zip(shares, sizes, strict=True)):
        with pytest.raises(UserError, match="samples of class '1', which has"):
            plan_of(labels, scheme="class_skewed", classes="1", skew=skew / 20, fraction=percent / 100, copies=copies)
        return
    plan = plan_of(labels, scheme="class_skewed", classes="1", skew=skew / 20, fraction=percent / 100, copies=copies)
    found = torch.bincount(labels[plan.source_index[plan.copy == 1]], minlength=len(sizes)).tolist()
    assert sum(found) == chosen
    expected = webster(shares, chosen)
    if expected is not None and all(e <= size for e, size in zip(expected, sizes, strict=True)):
        assert found == expected


def test_all_skew_copies_the_named_classes_alone():
    plan = plan_of(scheme="class_skewed", classes=["b", "e"], dose=0.1, class_names=list("abcdefg"))
    assert set(LABELS[plan.source_index[plan.copy > 0]].tolist()) == {1, 4}
    again = plan_of(scheme="class_skewed", classes="1,4", dose=0.1)
    assert again.hash == plan.hash
    drawn = [plan_of(scheme="class_skewed", dose=0.05, seed=seed) for seed in range(20)]
    named = [set(LABELS[plan.source_index[plan.copy > 0]].tolist()) for plan in drawn]
    assert {len(classes) for classes in named} == {1}
    assert len(set.union(*named)) > 3  # the class depends on the seed


@pytest.mark.parametrize(("exponent", "percent"), [(1, 30), (1, 80), (0, 25), (2, 50), (3, 60)])
def test_power_law_shares_all_copies_as_by_hand(exponent, percent):
    n, total = 50, half_up(Fraction(percent, 100 - percent) * 50)
    heap = [(Fraction((rank + 1) ** exponent), rank, 0) for rank in range(n)]
    heapq.heapify(heap)
    expected = [0] * n
    for _ in range(total):
        _, rank, seats = heapq.heappop(heap)
        expected[rank] += 1
        heapq.heappush(heap, (Fraction((2 * seats + 3) * (rank + 1) ** exponent), rank, seats + 1))
    plan = plan_of(LABELS[:n], scheme="power_law", dose=percent / 100, exponent=exponent)
    counts = copies_per_sample(plan, n).tolist()
    assert sum(counts) == total
    assert sorted(counts, reverse=True) == sorted(expected, reverse=True)


@pytest.mark.parametrize("exponent", [0, 1, 2, 0.5, 1.5, 0.25, 1.0009765625, 7.9990234375])
def test_power_is_the_power(exponent):
    base = torch.arange(1, 2000, dtype=torch.float64)
    assert torch.allclose(power(base, exponent), base**exponent, rtol=1e-13, atol=0)


def test_single_whole_set_and_the_published_numbers():
    plan = plan_of(scheme="single", copies=50, row=7)
    assert copies_per_sample(plan, 300).tolist() == [50 if row == 7 else 0 for row in range(300)]
    whole = plan_of(scheme="whole_set", copies=10)
    assert copies_per_sample(whole, 300).tolist() == [10] * 300
    assert plan_of(scheme="whole_set", paper_p=100).hash == whole.hash
    assert plan_of(scheme="whole_set", dose=10 / 11).hash == whole.hash
    assert plan_of(scheme="uniform", fraction=1, copies=10).hash == whole.hash
    assert plan_of(scheme="whole_set", paper_p=9).hash == plan_of().hash
    adversarial = plan_of(scheme="uniform", paper_r=0.3)
    assert adversarial.hash == plan_of(scheme="uniform", fraction=0.3).hash
    assert adversarial.readings().percent_of_source == 30
    assert adversarial.dose == pytest.approx(0.3 / 1.3)


@QUICK
@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.sampled_from(["hardest", "easiest"]))
def test_hardest_and_easiest_take_the_ends_of_the_scores(values, scheme):
    scores = torch.tensor(values).float()
    plan = plan_of(torch.zeros(len(values), dtype=torch.int64), scheme=scheme, fraction=0.25, scores=scores)
    chosen = scores[plan.source_index[plan.copy > 0]]
    ordered = scores.sort(descending=scheme == "easiest").values
    assert chosen.sort(descending=scheme == "easiest").values.tolist() == ordered[: len(chosen)].tolist()


def test_conflicting_copies_have_every_wrong_label_and_never_the_right_one():
    plan = plan_of(scheme="conflicting", fraction=1, copies=30)
    copies = plan.copy > 0
    right = LABELS[plan.source_index]
    assert torch.equal(plan.labels[~copies], right[~copies])
    assert bool((plan.labels[copies] != right[copies]).all())
    shift = (plan.labels[copies] - right[copies]) % 7
    counts = torch.bincount(shift, minlength=7)[1:].double()
    assert float((counts / counts.sum() - 1 / 6).abs().max()) < 0.02  # 9,000 draws: five standard errors
    assert torch.equal(plan.entry_labels(LABELS), plan.labels)


def test_leaked_samples_are_numbered_behind_the_source():
    other = torch.arange(50) % 3
    plan = plan_of(scheme="leak", fraction=0.4, copies=2, n_other=50, other_labels=other)
    leaked = plan.source_index[plan.copy > 0]
    assert torch.bincount(leaked - 300).sort().values[-20:].tolist() == [2] * 20
    assert len(leaked) == 40
    assert torch.equal(plan.source_index[plan.copy == 0], torch.arange(300))
    assert torch.equal(plan.entry_labels(LABELS, other)[plan.copy > 0], other[leaked - 300])
    assert plan.readings().unique == 320
    swapped = plan_of(scheme="leak", dose=0.1, n_other=50, mode="replace")
    assert len(swapped) == 300
    assert int((swapped.source_index >= 300).sum()) == 30


def test_controls_hold_no_copies_and_what_the_plan_holds():
    keys = {"scheme": "class_skewed", "classes": "2", "skew": 0.5, "dose": 0.25, "copies": 4}
    plan, prior = plan_of(**keys), plan_of(**keys, control="class_prior")
    assert prior.dose == 0
    share = torch.bincount(LABELS[plan.source_index]).double() / len(plan)
    found = torch.bincount(LABELS[prior.source_index]).double() / len(prior)
    assert float((share - found).abs().max()) <= 1 / len(prior)
    assert len(prior) == int((torch.bincount(LABELS) / share).min())  # no larger set has these shares
    fewer, swapped = plan_of(**keys, control="fewer_unique"), plan_of(**keys, mode="replace")
    assert fewer.dose == 0
    matched = plan_of(**keys, mode="replace", control="fewer_unique")
    assert torch.equal(matched.source_index, swapped.source_index[swapped.copy == 0])
    assert plan_of(scheme="conflicting", dose=0.2, near="flip", control="fewer_unique").labels is None


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize(("dose", "left"), [(0.3, 700), (0.5, 500)])
def test_fewer_unique_is_what_stays_at_equal_size_whatever_the_mode(mode, dose, left):
    """30% copies of 1,000 entries leave 700 images; appended to 1,000 images they would be 429."""
    labels = torch.arange(1000) % 4
    fewer = plan_of(labels, scheme="uniform", dose=dose, mode=mode, control="fewer_unique")
    swapped = plan_of(labels, scheme="uniform", dose=dose, mode="replace")
    assert len(fewer) == left == swapped.readings().unique
    assert torch.equal(fewer.source_index, swapped.source_index[swapped.copy == 0])
    assert fewer.options["mode"] == "replace"


def test_matched_has_the_class_shares_of_the_plan_and_as_many_distinct_samples():
    keys = {"scheme": "class_skewed", "classes": ["0", "1"], "dose": 0.5, "copies": 2, "mode": "replace"}
    labels = torch.arange(1000) % 4
    plan, control = plan_of(labels, **keys), plan_of(labels, **keys, control="matched")
    assert control.dose == 0
    assert len(control) == plan.readings().unique == 500
    shares = [torch.bincount(labels[one.source_index], minlength=4).double() / len(one) for one in (plan, control)]
    assert float((shares[0] - shares[1]).abs().max()) < 1 / 500
    assert torch.isin(control.source_index, torch.arange(1000)).all()
    uniform = plan_of(labels, scheme="uniform", dose=0.5, copies=2, mode="replace", control="matched")
    assert len(uniform) == 500


def test_an_exponent_between_the_steps_is_rounded_and_said():
    with pytest.warns(UserWarning, match=r"exponent = 1.2 is used as 1.200195312, in steps of 1/1024"):
        plan = plan_of(scheme="power_law", dose=0.5, exponent=1.2)
    assert plan.options["exponent"] == 1229 / 1024
    assert plan.hash == plan_of(scheme="power_law", dose=0.5, exponent=1229 / 1024).hash


@QUICK
@given(labels_of, doses, st.integers(1, 4), st.sampled_from(["append", "replace"]), st.integers(0, 99))
def test_weights_give_the_mean_loss_over_the_entries(labels, dose, copies, mode, seed):
    try:
        plan = plan_of(labels, seed, scheme="uniform", dose=dose, copies=copies, mode=mode)
    except UserError:
        return
    losses = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights, kept = plan.weights(), plan.entries_per_sample() > 0
    assert weights[kept].mean().item() == pytest.approx(1, rel=1e-5)
    assert float(weights[~kept].abs().sum()) == 0
    weighted = (weights * losses).sum() / kept.sum()
    assert weighted.item() == pytest.approx(losses[plan.source_index].mean().item(), rel=1e-5)


def test_readings_in_closed_form():
    readings = plan_of(torch.zeros(100, dtype=torch.int64), scheme="uniform", fraction=0.1, copies=4).readings()
    assert readings.entries == 140
    assert readings.dose == pytest.approx(40 / 140)
    assert readings.percent_of_source == 40
    assert readings.size_factor == 1.4
    assert readings.extra_passes == pytest.approx(0.4)
    assert (readings.copied_samples, readings.max_multiplicity, readings.mean_multiplicity_of_copied) == (10, 5, 5)
    assert readings.effective_sample_size == pytest.approx(140**2 / (90 + 10 * 25))
    swapped = plan_of(torch.zeros(100, dtype=torch.int64), scheme="uniform", dose=0.3, mode="replace").readings()
    assert (swapped.entries, swapped.unique, swapped.dropped, swapped.extra_passes) == (100, 70, 30, 0)


GOLDEN = {
    "none": ({}, "b8d1cedad90d5fab9eb51ddd70319233d80e4577a858d1c6975c9d562439fb0c"),
    "uniform": (
        {"scheme": "uniform", "dose": 0.25, "copies": 3},
        "22836b7ac03477d074d3ff72ea5624ca4fe12e218663d744b2544f800cc376a1",
    ),
    "replace": (
        {"scheme": "uniform", "dose": 0.25, "mode": "replace"},
        "59b910e07d8c249d6273a49d2ce1e05aec9c5f60907d0bd78a3a3acd459b485c",
    ),
    "skewed": (
        {"scheme": "class_skewed", "fraction": 0.2, "skew": 0.5},
        "79bda9a036833466bfe8dd80d9d691eef69b1cc0b29dfe03339cd332540ad472",
    ),
    "power_law": (
        {"scheme": "power_law", "dose": 0.5, "exponent": 1.25},
        "4fe2f9ca0f1d9fe3c00cd26fd04e717cdffad14ade62991bdb9e249038df6650",
    ),
    "conflicting": (
        {"scheme": "conflicting", "fraction": 0.1},
        "21e122b8439433330afdab389e3978f756d3a46133b63cfb1153e55f3909b1fa",
    ),
    "near": (
        {"scheme": "uniform", "dose": 0.1, "near": "flip,shift(pixels=2)"},
        "10432c01c810214b1bb53b810029d0807f83944bfc8479d144317ff73333a008",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_hashes_never_change(name):
    keys, expected = GOLDEN[name]
    plan = plan_of(seed=5, **keys)
    assert plan.hash == expected
    assert plan_of(seed=6, **keys).hash != expected or name == "none"


def test_hash_depends_on_what_matters_only():
    plan = plan_of(scheme="uniform", dose=0.2)
    assert plan_of(torch.zeros(300, dtype=torch.int64), scheme="uniform", dose=0.2).hash == plan.hash
    assert plan_of(scheme="uniform", dose=0.2, near="flip").hash != plan.hash
    assert plan_of(scheme="conflicting", dose=0.2).hash != plan.hash
    torch.manual_seed(3)
    assert plan_of(scheme="uniform", dose=0.2).hash == plan.hash


def test_a_seed_in_the_options_wins():
    fixed = make_plan(LABELS, options(scheme="uniform", dose=0.2, seed=4), seed=1)
    assert fixed.hash == make_plan(LABELS, options(scheme="uniform", dose=0.2), seed=4).hash
    assert fixed.seed == 4


@pytest.mark.parametrize("keys", [keys for keys, _ in GOLDEN.values()])
def test_a_plan_comes_back_from_its_file(tmp_path, keys):
    plan = plan_of(seed=5, **keys)
    save_plan(plan, tmp_path / "my.plan")
    back = load_plan(tmp_path / "my.plan")
    assert back.hash == plan.hash
    assert torch.equal(back.source_index, plan.source_index)
    assert (back.near, back.options, back.seed, back.mode) == (plan.near, plan.options, plan.seed, plan.mode)
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path).hash == plan.hash


def test_a_damaged_plan_is_refused(tmp_path):
    with raises("missing-file", UserError, "plan.safetensors"):
        load_plan(tmp_path)
    save_plan(plan_of(scheme="uniform", dose=0.2), tmp_path)
    content = bytearray((tmp_path / "plan.safetensors").read_bytes())
    content[-4] ^= 1
    (tmp_path / "plan.safetensors").write_bytes(content)
    with raises("changed-file", UserError, "hash"):
        load_plan(tmp_path)
    (tmp_path / "plan.safetensors").write_bytes(content[:40])
    with raises("bad-file", UserError):
        load_plan(tmp_path)


@pytest.mark.timing
def test_a_plan_of_half_a_million_entries_is_quick_and_small(within):
    code = """
import pathlib, time, torch
torch.set_num_threads(1)
from robustdup.duplication.make import make_plan
from robustdup.config import DuplicationOptions
def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])
labels, options = torch.arange(50000) % 10, DuplicationOptions(scheme="whole_set", copies=10)
make_plan(labels[:100], options, seed=0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
start = time.perf_counter()
plan = make_plan(labels, options, seed=0)
seconds, extra = time.perf_counter() - start, peak() - before
assert len(plan) == 550_000 and extra < 12e6, extra
print(seconds)
"""
    status = pathlib.Path("/proc/self/status")
    if not (os.access("/proc/self/clear_refs", os.W_OK) and "VmHWM" in status.read_text()):
        pytest.skip("memory is read from Linux's /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (1 if within.timed else 120)
