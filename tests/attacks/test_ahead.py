"""What is computed side by side or ahead of need changes no bit, no pass and no look: only the number of calls."""

from functools import partial

import pytest
import torch
from torch import nn

from robustdup.attacks.ahead import room
from robustdup.attacks.apgd import apgd, apgd_ce
from robustdup.attacks.apgd_t import apgd_t
from robustdup.attacks.fab_t import fab_t
from robustdup.attacks.passes import Passes
from robustdup.attacks.square import square
from robustdup.attacks.square_windows import CHUNK, stretches, window_sides
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

EPS = {"Linf": "0.16", "L2": "1.0", "L1": "4"}  # some of the samples are broken, soon or late, and some are not
FEW = torch.tensor([3, 7, 8, 15, 20, 23, 41])
ATTACKS = {
    "apgd-t": partial(apgd_t, steps=12, targets=5),
    "apgd-t, two starts each": partial(apgd_t, steps=6, targets=3, restarts=2),
    "apgd-ce, four starts": partial(apgd_ce, steps=8, restarts=4),
    "fab-t": partial(fab_t, steps=8, targets=5),
    "fab-t, to the end": partial(fab_t, steps=5, targets=9, stop_within_eps=False),
    "fab-t, two starts": partial(fab_t, steps=4, targets=3, restarts=2),
    "square": partial(square, queries=150),
    "square, cross-entropy, two starts": partial(square, queries=70, loss="ce", restarts=2),
}


class Calls(nn.Module):
    """Counts calls; answers nothing but what is not a number for images whose first pixel has the value `bad`."""

    def __init__(self, model, bad=None):
        super().__init__()
        self.model, self.bad, self.calls = model, bad, 0

    def forward(self, images):
        self.calls += 1
        logits = self.model(images)
        if self.bad is None:
            return logits
        return torch.where((images[:, :1, 0, 0] > self.bad), torch.nan, logits)


@pytest.fixture(scope="module")
def robust():
    torch.set_num_threads(1)
    images, labels = digits("digits", DataOptions(split="test")).fetch(FEW.tolist())
    return load_builtin("digits-robust", ModelOptions()).eval().requires_grad_(False), images, labels


def both(attack, model, images, labels, threat, index, fill, smaller=()):
    """Return what an attack leaves asked one after the other, and asked ahead."""
    left = []
    for filled in (0, fill):
        counted = Calls(*model)
        passes = Passes(counted, 16, smaller, fill=filled)
        adv_images = attack(passes, images.clone(), labels, threat, rng=SampleRng(3, index))
        left.append((adv_images, passes.count, passes.looks, counted.calls))
    return left


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_images_passes_and_looks_are_those_of_one_after_the_other(robust, attack, norm, count):
    model, images, labels = robust
    rows = slice(0, count)
    threat = ThreatModel(norm, EPS[norm])
    one, other = both(ATTACKS[attack], (model,), images[rows], labels[rows], threat, FEW[rows], 16)
    assert torch.equal(one[0], other[0])
    assert (one[1].forward, one[1].backward) == (other[1].forward, other[1].backward)
    assert one[2] == other[2]
    assert other[3] <= one[3]
    if count == 1 and len(one[2]) > 24 and not attack.startswith("fab-t, two"):
        assert other[3] < 0.75 * one[3]


def test_l1_with_larger_radii_and_logits_that_are_no_numbers(robust):
    model, images, labels = robust
    attack = partial(apgd, loss="ce", steps=10, restarts=3, larger_eps=True)
    one, other = both(attack, (model,), images[:4], labels[:4], ThreatModel("L1", "3"), FEW[:4], 16)
    assert torch.equal(one[0], other[0])
    assert (vars(one[1]) | {"padding": 0}, one[2]) == (vars(other[1]) | {"padding": 0}, other[2])
    for name in ("apgd-t", "fab-t", "square"):
        threat = ThreatModel("Linf", "0.1")
        one, other = both(ATTACKS[name], (model, 0.08), images[:4], labels[:4], threat, FEW[:4], 16)
        assert torch.equal(one[0], other[0])
        assert one[2] == other[2]


def test_what_was_computed_in_vain_is_padding(robust):
    model, images, labels = robust
    rows, sizes = slice(1, 2), tuple(range(1, 16))
    one, other = both(
        ATTACKS["square"], (model,), images[rows], labels[rows], ThreatModel("Linf", "0.02"), FEW[rows], 8, sizes
    )
    assert one[1].padding == 0
    assert one[1].forward == other[1].forward == 151
    assert 0 < other[1].padding < 151
    assert other[3] == pytest.approx((151 + other[1].padding) / 8, abs=5)  # eight rows a call, but where stretches end


@pytest.mark.parametrize(
    ("fill", "draws", "rows", "times"), [(16, 1, 5, 3), (16, 1, 17, 1), (0, 1, 2, 1), (16, 3, 1, 1)]
)
def test_room(robust, fill, draws, rows, times):
    assert room(Passes(robust[0], 32, fill=fill, draws=draws), rows) == times
    assert room(robust[0], rows) == 1


def test_stretches_hold_one_side_and_lie_in_one_chunk():
    sides = window_sides("Linf", 300, 0.8, 32, 32, rescale=True)
    parts = list(stretches(sides))
    assert [query for first, last in parts for query in range(first, last)] == list(range(300))
    for first, last in parts:
        assert len(set(sides[first:last])) == 1
        assert first // CHUNK == (last - 1) // CHUNK
    assert len(parts) < 300 / CHUNK + len(set(sides)) + 1
