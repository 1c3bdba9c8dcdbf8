"""The generator against its published answers, and its values against company, order and chance."""

import pytest
import torch
from scipy import stats

from robustdup import SampleRng, UserError
from robustdup.rng import philox4x32
from tests.raising import raises

GOLDEN_BITS = [
    [3471920846, 2252507113, 2323402311],
    [2558657026, 3583175843, 3592200273],
    [3920125616, 3074610795, 1173559238],
]
GOLDEN_INTEGERS = [[330, 577], [994, 200], [447, 534]]
GOLDEN_CALL_SEED = 871538476
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # https://github.com/DEShawResearch/random123, tests/kat_vectors
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = philox4x32([torch.tensor([part]) for part in counter], key)
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def streams(*index, seed=0):
    return SampleRng(seed, torch.tensor(index, dtype=torch.int64))


def test_golden_values_stay():
    rng = streams(0, 7, 2**40)
    assert rng.bits((3,)).tolist() == GOLDEN_BITS
    assert rng.fold("start").integers(0, 1000, (2,), draw=5).tolist() == GOLDEN_INTEGERS
    assert rng.call_seed() == GOLDEN_CALL_SEED


def test_a_sample_draws_the_same_in_any_order_and_company():
    many = streams(*range(50)).fold("noise")
    few = streams(31, 4, 17).fold("noise")
    for draw in (lambda r: r.uniform((3, 5), draw=2), lambda r: r.integers(0, 10, (7,)), lambda r: r.normal((33,))):
        assert torch.equal(draw(many)[[31, 4, 17]], draw(few))
        assert torch.equal(draw(many[torch.tensor([31, 4, 17])]), draw(few))


def test_masks_slices_and_moves_keep_streams():
    rng = streams(*range(10))
    mask = torch.arange(10) % 3 == 0
    assert torch.equal(rng[mask].bits((4,)), rng.bits((4,))[mask])
    assert torch.equal(rng[2:5].bits((4,)), rng.bits((4,))[2:5])
    assert torch.equal(rng.to("cpu").bits(), rng.bits())
    assert len(rng[mask]) == 4


def test_a_shorter_draw_is_the_beginning_of_a_longer_one():
    assert torch.equal(streams(3).bits((5,)), streams(3).bits((9,))[:, :5])


def test_seeds_samples_purposes_and_draws_differ():
    base = streams(5).bits((8,))
    others = [
        streams(5, seed=1), streams(6), streams(5 + 2**32), streams(5).fold("a"), streams(5).fold("b"),
        streams(5).fold("a").fold("b"), streams(5).fold("b").fold("a"), streams(5).fold(1), streams(5).fold("1"),
    ]  # fmt: skip
    values = [base, streams(5).bits((8,), draw=1), *(other.bits((8,)) for other in others)]
    assert len({tuple(value[0].tolist()) for value in values}) == len(values)


def test_uniforms_are_uniform_and_uncorrelated():
    values = streams(*range(200), seed=3).uniform((500,), dtype=torch.float64)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    serial = torch.corrcoef(torch.stack([values[:, :-1].flatten(), values[:, 1:].flatten()]))[0, 1]
    across = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    next_draw = streams(*range(200), seed=3).uniform((500,), draw=1, dtype=torch.float64)
    draws = torch.corrcoef(torch.stack([values.flatten(), next_draw.flatten()]))[0, 1]
    assert max(abs(float(serial)), abs(float(across)), abs(float(draws))) < 4 / len(values.flatten()) ** 0.5


def test_normals_are_normal():
    values = streams(*range(100), seed=4).normal((500,), dtype=torch.float64)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3


def test_integers_and_signs_have_equal_chances():
    rng = streams(*range(100), seed=5)
    counts = torch.bincount(rng.integers(-3, 4, (700,)).flatten() + 3)
    assert len(counts) == 7
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    signs = rng.signs((700,))
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-3


def test_every_bit_is_fair():
    bits = streams(*range(200), seed=6).bits((500,))
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(32)])
    assert float((shares - 0.5).abs().max()) < 4.5 * 0.5 / bits.numel() ** 0.5


def test_low_and_high_bound_the_uniforms():
    values = streams(*range(20)).uniform((50,), low=-2.0, high=-1.0)
    assert -2 <= float(values.min()) < -1.9
    assert -1.1 < float(values.max()) <= -1


def test_call_seed_depends_on_the_set_of_samples_and_the_purpose():
    seeds = {streams(1, 2).call_seed(), streams(2, 1).call_seed(), streams(1).call_seed(),
             streams(1, 2).fold("x").call_seed(), streams(1, 2, seed=1).call_seed()}  # fmt: skip
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("index", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3)])
def test_an_index_of_another_shape_or_type_is_refused(index):
    with raises("bad-value", UserError, "1-d", "int64"):
        SampleRng(0, index)


@pytest.mark.parametrize(("low", "high"), [(3, 3), (5, 2), (0, 2**31 + 1)])
def test_an_empty_or_too_large_range_is_refused(low, high):
    with raises("bad-value", UserError, "1"):
        streams(1).integers(low, high)
