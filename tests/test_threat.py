"""Projection against other methods and other feasible points; exact radii; the text of errors."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robustdup import ThreatModel, UserError, projections
from robustdup.projections import row_length, row_sum
from robustdup.threat import parse_eps

NORMS = ["Linf", "L2", "L1"]
pixels = hnp.arrays(np.float64, (3, 6), elements=st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
wild = hnp.arrays(np.float64, (3, 6), elements=st.floats(-3, 4))
radii = st.floats(0.01, 1.0)
quick = settings(max_examples=60, deadline=None)


def images(array, dtype=torch.float64):
    return torch.from_numpy(array).to(dtype).view(3, 1, 2, 3)


@quick
@given(pixels, wild, radii, st.sampled_from(NORMS), st.sampled_from([torch.float32, torch.float64]))
def test_projection_lands_inside_ball_and_box(clean, adv, eps, norm, dtype):
    threat, clean, adv = ThreatModel(norm, eps), images(clean, dtype), images(adv, dtype)
    assert not threat.violations(clean, threat.project(clean, adv)).any.any()


@quick
@given(pixels, wild, radii, st.sampled_from(NORMS))
def test_projection_is_idempotent(clean, adv, eps, norm):
    threat, clean, adv = ThreatModel(norm, eps), images(clean), images(adv)
    once = threat.project(clean, adv)
    assert torch.allclose(threat.project(clean, once), once, atol=1e-9)


@quick
@given(pixels, wild, wild, radii, st.sampled_from(NORMS), st.floats(0, 1))
def test_no_feasible_point_is_nearer_than_the_projection(clean, adv, other, eps, norm, share):
    threat, clean, adv, other = ThreatModel(norm, eps), images(clean), images(adv), images(other)
    delta = other.clamp(0, 1) - clean  # shrunk into the ball it stays in the box, which is convex
    feasible = clean + share * delta * (eps / threat.distance(clean, clean + delta).clamp(min=eps)).view(-1, 1, 1, 1)
    projected = threat.project(clean, adv)
    nearest, distance = row_length(projected - adv, "L2"), row_length(feasible - adv, "L2")
    assert bool((nearest <= distance + 1e-9).all())
    middle = (projected + 1e-3 * (feasible - projected)) - adv  # a step towards it does not come nearer either
    assert bool((nearest <= row_length(middle, "L2") + 1e-9).all())


@quick
@given(pixels, wild, radii, st.sampled_from(["L2", "L1"]))
def test_projection_equals_bisection_on_the_dual(clean, adv, eps, norm):
    threat, clean, adv = ThreatModel(norm, eps), images(clean), images(adv)
    projected = threat.project(clean, adv).flatten(1).numpy()
    for row, (x, y) in enumerate(zip(clean.flatten(1).numpy(), adv.flatten(1).numpy(), strict=True)):
        np.testing.assert_allclose(projected[row], bisection(x, y, eps, norm), atol=1e-8)


def bisection(x, y, eps, norm):
    """min |z - y| over |z - x| <= eps and z in the box: the multiplier of the ball is found by halving."""

    def at(t):
        delta = y - x
        moved = np.sign(delta) * np.maximum(np.abs(delta) - t, 0) if norm == "L1" else delta / (1 + t)
        return np.clip(x + moved, 0, 1)

    def length(z):
        return np.abs(z - x).sum() if norm == "L1" else np.linalg.norm(z - x)

    if length(at(0.0)) <= eps:
        return at(0.0)
    low, high = 0.0, 1e6
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if length(at(middle)) > eps else (low, middle)
    return at(high)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_of_a_row_has_the_same_bits_in_any_company(norm):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(40, 3, 5, 5, generator=generator)
    adv = clean + torch.randn(40, 3, 5, 5, generator=generator)
    threat = ThreatModel(norm, "0.5")
    whole = threat.project(clean, adv)
    for rows in (torch.tensor([7]), torch.tensor([39, 2, 11]), torch.randperm(40, generator=generator)):
        assert torch.equal(threat.project(clean[rows], adv[rows]), whole[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_are_not_moved(norm):
    clean = torch.full((2, 3, 4, 4), 0.5)
    adv = clean + 0.001
    assert torch.equal(ThreatModel(norm, "0.9").project(clean, adv), adv)


@pytest.mark.parametrize("norm", NORMS)
def test_pixels_that_are_not_finite_count_as_unchanged(norm):
    clean = torch.full((1, 1, 2, 2), 0.5)
    adv = torch.tensor([[[[float("nan"), float("inf")], [-float("inf"), 0.6]]]])
    assert ThreatModel(norm, "0.5").project(clean, adv).flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.6])


@pytest.mark.parametrize("norm", NORMS)
def test_violations_begin_just_beyond_the_tolerance(norm):
    threat = ThreatModel(norm, "1/4")
    clean = torch.zeros(1, 1, 1, 4, dtype=torch.float64)

    def at(distance):
        adv = clean.clone()
        adv[0, 0, 0, 2] = distance
        return bool(threat.violations(clean, adv).ball)

    tolerance = 1e-6 if norm == "Linf" else 1e-5 * 0.25
    assert threat.tolerance == pytest.approx(tolerance)
    assert not at(0.25)
    assert not at(0.25 + 0.999 * tolerance)
    assert at(0.25 + 1.001 * tolerance)


def test_violations_say_what_is_wrong():
    clean = torch.full((4, 1, 1, 2), 0.5)
    adv = clean.clone()
    adv[0, 0, 0, 0] = float("nan")
    adv[1, 0, 0, 0] = 1.0 + 1e-6
    adv[2, 0, 0, 0] = 0.9
    found = ThreatModel("Linf", "0.1").violations(clean, adv)
    assert found.not_finite.tolist() == [True, False, False, False]
    assert found.box.tolist() == [False, True, False, False]
    assert found.ball.tolist() == [False, True, True, False]
    assert found.any.tolist() == [True, True, True, False]


def test_distances_by_hand():
    clean, adv = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.3, 0.4]]]])
    measured = [float(ThreatModel(norm, 1).distance(clean, adv)) for norm in NORMS]
    assert measured == pytest.approx([0.4, 0.5, 0.7])


def test_row_sums_do_not_depend_on_company():
    values = torch.rand(33, 3001, generator=torch.Generator().manual_seed(1))
    assert torch.equal(row_sum(values)[5:6], row_sum(values[5:6]))
    assert torch.allclose(row_sum(values), values.double().sum(dim=1))


def test_fractions_are_kept_exactly():
    threat = ThreatModel("linf", "8 / 255")
    assert (threat.norm, threat.eps, threat.eps_text) == ("Linf", Fraction(8, 255), "8/255")
    assert threat.radius == 8 / 255
    assert str(threat) == "Linf, eps = 8/255"
    assert threat.with_eps(threat.eps / 4).eps == Fraction(2, 255)
    assert ThreatModel("L2", 0.5).eps == Fraction(1, 2)
    assert ThreatModel("Linf", "0.031") != ThreatModel("Linf", "8/255")
    assert parse_eps("1e-3") == Fraction(1, 1000)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("Linf", 0, "eps must be above 0, got 0.*clean accuracy"),
        ("L2", "-1/2", "eps must be above 0, got -1/2"),
        ("Linf", 8, "larger than the whole range.*Did you mean '8/255'"),
        ("Linf", "8/", "eps '8/' is not a number.*'8/255'"),
        ("Linf", "1/0", "eps '1/0' is not a number"),
        ("Linf", "nan", "eps 'nan' is not a number"),
        ("Linf", float("inf"), "eps inf is not a number"),
        ("Lnf", "8/255", "Unknown norm 'Lnf'. Did you mean 'Linf'"),
    ],
)
def test_wrong_threats_are_explained(norm, eps, message):
    with pytest.raises(UserError, match=message):
        ThreatModel(norm, eps)


def test_l2_and_l1_may_be_larger_than_one():
    assert ThreatModel("L1", 12).radius == 12


@pytest.mark.parametrize("norm", NORMS)
def test_distances_hold_few_rows_at_once_and_are_those_of_all(norm, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    clean, adv = (torch.rand(7, 3, 4, 4, generator=generator) for _ in range(2))
    threat, held = ThreatModel(norm, "0.1"), []
    whole, lengths = threat.distance(clean, adv), row_length(adv - clean, norm)
    real = projections._row_length
    monkeypatch.setattr(projections, "_row_length", lambda part, norm: held.append(len(part)) or real(part, norm))
    monkeypatch.setattr(projections, "DOUBLES", 100)  # two images
    assert torch.equal(threat.distance(clean, adv), whole)
    assert torch.equal(row_length(adv - clean, norm), lengths)
    assert held == [2, 2, 2, 1] * 2
    assert threat.distance(clean[:0], adv[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("text", "value"), [("8./255.", Fraction(8, 255)), ("0.5/2", Fraction(1, 4)), ("1e-1", Fraction(1, 10))]
)
def test_fractions_of_decimals_are_read_and_shown_so_that_others_can_read_them(text, value):
    threat = ThreatModel("Linf", text)
    assert threat.eps == value
    assert Fraction(threat.eps_text) == value


# --- L0: how many values change, each one channel of one pixel ---


@quick
@given(pixels, wild, st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]))
def test_l0_projection_is_the_nearest_of_all_choices_of_values(clean, adv, eps, dtype):
    check_nearest_of_all_choices(ThreatModel("L0", eps), images(clean, dtype), images(adv, dtype), eps)


def check_nearest_of_all_choices(threat, clean, adv, eps):
    """Check a projection against every choice of eps pixels of images (N, C, H, W); with one channel, of values."""
    places = clean[0, 0].numel()
    projected = threat.project(clean, adv)
    assert not threat.violations(clean, projected).any.any()
    distance = row_length(projected - adv, "L2")
    for chosen in itertools.combinations(range(places), eps):
        mask = torch.zeros(places, dtype=torch.bool)
        mask[list(chosen)] = True
        candidate = torch.where(mask.view(clean.shape[2:]), adv.clamp(0, 1), clean)
        assert bool((distance <= row_length(candidate - adv, "L2") + 1e-6).all())
    assert torch.equal(threat.project(clean, projected), projected)


def test_l0_counts_values_that_differ_in_any_bit():
    clean = torch.full((3, 2, 2, 2), 0.5)
    adv = clean.clone()
    adv[1, :, 0, 0] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    adv[2] = 0.25
    threat = ThreatModel("L0", "2")
    assert threat.distance(clean, adv).tolist() == [0, 2, 8]
    assert threat.violations(clean, adv).ball.tolist() == [False, False, True]
    projected = threat.project(clean, adv)
    assert torch.equal(projected[:2], adv[:2])
    assert threat.distance(clean, projected).tolist() == [0, 2, 2]
    assert torch.equal(projected[2].flatten() != 0.5, torch.arange(8) < 2)  # of equal ones the first


def test_l0_projection_leaves_values_that_are_not_finite_and_clips_the_others():
    clean = torch.tensor([[[[0.0, 0.5, 1.0, 0.2]]]])
    adv = torch.tensor([[[[-9.0, float("nan"), 0.4, 7.0]]]])
    assert torch.allclose(ThreatModel("L0", 1).project(clean, adv), torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]]))
    assert torch.allclose(ThreatModel("L0", 3).project(clean, adv), torch.tensor([[[[0.0, 0.5, 0.4, 1.0]]]]))


@quick
@given(
    st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12),
    st.lists(st.floats(-1, 2, width=32), min_size=12, max_size=12),
    st.integers(1, 4),
)
def test_l0_pixels_projection_is_the_nearest_of_all_choices_of_pixels(clean, adv, eps):
    clean, adv = (torch.tensor(values).view(1, 3, 2, 2) for values in (clean, adv))
    check_nearest_of_all_choices(ThreatModel("L0-pixels", eps), clean, adv, eps)


def test_l0_pixels_counts_a_pixel_once_whatever_its_channels():
    clean = torch.full((1, 3, 2, 2), 0.5)
    adv = clean.clone()
    adv[0, :, 0, 1], adv[0, 2, 1, 0] = 1.0, 0.0
    assert ThreatModel("L0", 3).distance(clean, adv).tolist() == [4]
    assert ThreatModel("l0-PIXELS", 2).distance(clean, adv).tolist() == [2]
    assert ThreatModel("L0", 3).violations(clean, adv).ball.tolist() == [True]
    assert ThreatModel("L0-pixels", 2).violations(clean, adv).ball.tolist() == [False]
    nearest = ThreatModel("L0-pixels", 1).project(clean, adv)
    assert torch.equal(nearest[..., 0, 1], adv[..., 0, 1])
    assert torch.equal(nearest[..., 1, 0], clean[..., 1, 0])


@pytest.mark.parametrize("eps", ["3/2", "0.5", "8/255", 2.5])
def test_l0_takes_whole_numbers_only(eps):
    with pytest.raises(UserError, match="whole number") as error:
        ThreatModel("L0", eps)
    assert error.value.code == "bad-eps"
    with pytest.raises(UserError, match="a pixel with all of its channels is one") as error:
        ThreatModel("L0-pixels", eps)
    assert error.value.code == "bad-eps"
    assert ThreatModel("l0", "20").radius == ThreatModel("L0", 20.0).radius == ThreatModel("L0", "40/2").radius == 20


def test_l0_scales_to_whole_numbers():
    assert [ThreatModel("L0", 6).scaled(factor).eps for factor in (2, Fraction(1, 4), Fraction(1, 20))] == [12, 1, 1]
    assert ThreatModel("L2", 6).scaled(Fraction(1, 4)).eps == Fraction(3, 2)


@pytest.mark.parametrize(
    ("given", "text", "exact"),
    [
        (8 / 255, "8/255", Fraction(8, 255)),
        (np.float64(2 / 255), "2/255", Fraction(2, 255)),
        (0.2, "0.2", Fraction(1, 5)),  # 51/255, but nobody wrote that
        (0.031, "0.031", Fraction(31, 1000)),
        (0.5, "0.5", Fraction(1, 2)),
        (8 / 255 + 1e-12, str(8 / 255 + 1e-12), Fraction(str(8 / 255 + 1e-12))),
    ],
)
def test_the_float_of_a_fraction_of_255_is_that_fraction(given, text, exact):
    threat = ThreatModel("Linf", given)
    assert (threat.eps_text, threat.eps) == (text, exact)
