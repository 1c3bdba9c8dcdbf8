"""The projection onto a hyperplane inside the box: against the published code, a linear programme, and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import linprog

from robustdup.attacks import hyperplane
from robustdup.attacks.hyperplane import hyperplane_step, largest_first
from robustdup.projections import COLUMNS, fold_sum, row_length, row_sum

PUBLISHED = {"Linf": projection_linf, "L2": projection_l2, "L1": projection_l1}
DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
NORMS = list(PUBLISHED)
LAST_ROUNDING = 2.0**-23  # of a move in [0, 1], and of its bound


def problem(rows, pixels, seed, *, at_bounds=False, reach=0.5):
    """Random points, normals and values; `reach` is the largest value as a share of what the whole box can gain."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(rows, pixels, generator=generator)
    if at_bounds:
        points = (points * 3 - 1).clamp(0, 1)
    normal = torch.randn(rows, pixels, generator=generator) * 10 ** torch.empty(rows, 1).uniform_(
        -2, 2, generator=generator
    )
    share = torch.empty(rows).uniform_(-reach, reach, generator=generator)
    room = torch.where((normal < 0) == (share < 0)[:, None], points, 1 - points)  # room to lower |value|
    gain = (normal.double().abs() * room.double()).sum(dim=1)
    return points, normal, (share.double() * gain).float()


def published(points, normal, value, norm):
    points, normal = points.double(), normal.double()
    return PUBLISHED[norm](points, normal, (points * normal).sum(dim=1) - value.double())


def relative_rounding(pixels):
    """How far float32 may move |value|, as a share of it: products, sums of halves, the last sum and a difference, 2^-24 each."""
    return (3 + math.ceil(math.log2(max(pixels / COLUMNS, 1)))) * 2.0**-24


def check_feasible(points, normal, value, step, atol=1e-5):
    """The step ends in the box, and on the hyperplane to what single precision allows."""
    moved = points + step
    assert float(moved.min()) >= -1e-6
    assert float(moved.max()) <= 1 + 1e-6
    left = value.double() + (normal.double() * step.double()).sum(dim=1)
    scale = (normal.double().abs() * step.double().abs()).sum(dim=1) + 1e-12
    assert float((left.abs() / scale).max()) < atol


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), pixels=st.sampled_from([1, 2, 3, 7, 48, 64, 300]), seed=st.integers(0, 10**6),
    at_bounds=st.booleans(), reach=st.sampled_from([0.02, 0.5, 1.5]),
)  # fmt: skip
def test_it_equals_the_published_projection(norm, rows, pixels, seed, at_bounds, reach):
    points, normal, value = problem(rows, pixels, seed, at_bounds=at_bounds, reach=reach)
    """No pixel moves less as |value| grows: rounding that changes |value| by a share leaves the step between two published ones.

    The multiplier itself has no such bound where few pixels are left to share a small difference of large sums.
    """
    step = hyperplane_step(points, normal, value, norm).double()
    share = relative_rounding(pixels)
    less, more = (published(points, normal, value.double() * factor, norm) for factor in (1 - share, 1 + share))
    assert float((less.abs() - step.abs()).max()) < LAST_ROUNDING
    assert float((step.abs() - more.abs()).max()) < LAST_ROUNDING
    assert float((step * more).min()) > -LAST_ROUNDING


def test_few_pixels_inside_the_box_share_a_small_difference_of_large_sums():
    """The case that a fixed tolerance refused once: 99.9% of what the box can gain, two of 48 pixels are left."""
    points, normal, value = problem(9, 48, 774911, reach=1.5)
    step, exact = hyperplane_step(points, normal, value, "L2"), published(points, normal, value, "L2")
    assert 1e-5 < float((step - exact).abs().max()) < 2e-5
    in_double = hyperplane_step(points.double(), normal.double(), value.double(), "L2")
    assert torch.allclose(in_double, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_box_does_not_matter_the_distance_is_value_over_dual_norm(norm):
    points = torch.full((20, 50), 0.5)
    _, normal, value = problem(20, 50, 3, reach=0.01)
    step = hyperplane_step(points, normal, value, norm)
    assert torch.allclose(row_length(step, norm), value.double().abs() / row_length(normal, DUAL[norm]), rtol=1e-5)
    check_feasible(points, normal, value, step)


@pytest.mark.parametrize("norm", NORMS)
def test_the_hyperplane_is_met_inside_the_box(norm):
    points, normal, value = problem(50, 700, 5, at_bounds=True, reach=0.9)
    step = hyperplane_step(points, normal, value, norm)
    assert float(step.abs().max()) > 0.1
    check_feasible(points, normal, value, step)


@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_no_shorter_step_exists_says_a_linear_programme(norm):
    points, normal, value = problem(12, 8, 7, at_bounds=True, reach=0.8)
    step = hyperplane_step(points, normal, value, norm)
    for x, w, v, found in zip(points, normal, value, step, strict=True):
        x, w = x.double().numpy(), w.double().numpy()
        eye, n = np.eye(8), 8
        if norm == "Linf":  # minimise t with |δ_i| <= t
            cost, signs = np.r_[np.zeros(n), 1], np.vstack([np.c_[eye, -np.ones(n)], np.c_[-eye, -np.ones(n)]])
            bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
        else:  # minimise Σ u_i with |δ_i| <= u_i
            cost, signs = np.r_[np.zeros(n), np.ones(n)], np.vstack([np.c_[eye, -eye], np.c_[-eye, -eye]])
            bounds = [*zip(-x, 1 - x, strict=True), *[(0, None)] * n]
        equal = np.r_[w, np.zeros(len(cost) - n)][None]
        best = linprog(cost, signs, np.zeros(2 * n), equal, [-float(v)], bounds)
        assert best.success
        assert float(row_length(found[None], norm)) == pytest.approx(best.fun, rel=1e-5, abs=1e-6)


def test_in_l2_the_step_satisfies_the_conditions_of_an_optimum():
    """x + δ is x - λ w clipped to the box, with one λ a row."""
    points, normal, value = problem(30, 40, 9, at_bounds=True, reach=0.7)
    step = hyperplane_step(points, normal, value, "L2")
    check_feasible(points, normal, value, step)
    for x, w, delta in zip(points, normal, step, strict=True):
        free = ((x + delta) > 1e-6) & ((x + delta) < 1 - 1e-6)
        heaviest = (w.abs() * free).argmax()
        rate = -delta[heaviest] / w[heaviest]
        assert torch.allclose((x - rate * w).clamp(0, 1), x + delta, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_degenerate_rows(norm):
    points = torch.tensor([[0.2, 0.7, 1.0, 0.0]]).repeat(6, 1)
    normal = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 3.0, -4.0], [1.0, -2.0, 3.0, -4.0], [0.0, -1.0, 0.0, 0.0],
         [1.0, 1.0, 1.0, 1.0], [1e-9, 1e-9, 1e-9, 1e-9]]
    )  # fmt: skip
    value = torch.tensor([1.0, 100.0, 0.0, -0.1, -50.0, 1.0])
    step = hyperplane_step(points, normal, value, norm)
    expected = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [-0.2, 0.3, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, -0.1, 0.0, 0.0],
         [0.8, 0.3, 0.0, 1.0], [-0.2, -0.7, -1.0, 0.0] if norm == "Linf" else [0.0] * 4]
    )  # fmt: skip
    assert torch.allclose(step, expected, atol=1e-6)
    assert torch.allclose(published(points, normal, value, norm).float(), expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_that_is_not_a_number_harms_no_other(norm):
    points, normal, value = problem(6, 40, 11)
    alone = hyperplane_step(points[1:], normal[1:], value[1:], norm)
    normal[0], value[0] = torch.nan, torch.nan
    assert torch.equal(hyperplane_step(points, normal, value, norm)[1:], alone)


@pytest.mark.parametrize("pixels", [5, 64, 1023])
@pytest.mark.parametrize("norm", NORMS)
def test_a_row_is_bit_equal_in_any_company(norm, pixels, monkeypatch):
    points, normal, value = problem(40, pixels, 13, at_bounds=True, reach=0.9)
    everyone = hyperplane_step(points, normal, value, norm)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, shuffled[:17], shuffled[3:4]):
        assert torch.equal(hyperplane_step(points[rows], normal[rows], value[rows], norm), everyone[rows])
    monkeypatch.setattr(hyperplane, "BLOCK", 3 * pixels)
    assert torch.equal(hyperplane_step(points, normal, value, norm), everyone)
    assert torch.equal(hyperplane_step(points, normal, value, norm, order=largest_first(normal)), everyone)


@pytest.mark.parametrize("pixels", [1, 7, 256, 257, 3072, 5001])
def test_fold_sum_adds_everything_to_the_same_bits(pixels):
    values = torch.rand(33, pixels, generator=torch.Generator().manual_seed(2)) - 0.3
    total = fold_sum(values)
    assert torch.allclose(total.double(), row_sum(values), rtol=0, atol=1e-7 * pixels)
    for rows in (slice(0, 1), slice(5, 22), torch.arange(32, -1, -1)):
        assert torch.equal(fold_sum(values[rows]), total[rows])
