"""Losses against their formulas in fp64, and their bits against company."""

import pytest
import torch

from robustdup import UserError
from robustdup.attacks.losses import LOSSES, ce, cw, dlr, find_loss, margin, misclassified, probability_cw
from tests.raising import raises

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -2.0], [0.0, 5.0, 4.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
LABELS = torch.tensor([0, 2, 3])


def test_values_by_hand():
    assert margin(LOGITS, LABELS).tolist() == [2.0, -1.0, -3.0]
    assert cw(LOGITS, LABELS).tolist() == [-2.0, 1.0, 3.0]
    assert dlr(LOGITS, LABELS).tolist() == pytest.approx([-2 / 3, 1 / 4, 3 / 2])
    probabilities = LOGITS.double().softmax(dim=1)
    assert ce(LOGITS, LABELS).tolist() == pytest.approx((-probabilities.log()[range(3), LABELS]).tolist(), rel=1e-6)
    best = [probabilities[0, 1], probabilities[1, 1], probabilities[2, 0]]
    expected = [float(b - probabilities[i, LABELS[i]]) for i, b in enumerate(best)]
    assert probability_cw(LOGITS, LABELS).tolist() == pytest.approx(expected, rel=1e-5)


def test_dlr_does_not_change_with_shift_and_scale():
    assert torch.allclose(dlr(LOGITS * 7 + 3, LABELS), dlr(LOGITS, LABELS))


def test_dlr_needs_three_classes():
    with raises("too-few-classes", UserError, "3", "2"):
        dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_has_the_same_bits_in_any_company_gradients_too(name):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(64, 100, generator=generator), torch.randint(100, (64,), generator=generator)

    def both(rows):
        part = logits[rows].clone().requires_grad_(True)
        value = LOSSES[name](part, labels[rows])
        return value.detach(), torch.autograd.grad(value.sum(), part)[0]

    whole = both(torch.arange(64))
    for rows in (torch.tensor([5]), torch.tensor([63, 0, 31]), torch.arange(64).flip(0)):
        assert all(torch.equal(got, all_rows[rows]) for got, all_rows in zip(both(rows), whole, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_all_losses_rise_as_the_true_logit_falls(name):
    logits = LOGITS.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(LOSSES[name](logits, LABELS).sum(), logits)
    assert bool((grad[range(3), LABELS] < 0).all())


def test_fooled_is_what_the_referee_says():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    assert misclassified(logits, torch.zeros(5, dtype=torch.int64)).tolist() == [False, True, False, True, True]


def test_a_function_is_a_loss_and_an_unknown_name_is_not():
    assert find_loss(cw) is find_loss("margin") is cw
    assert find_loss("ce") is ce
    with raises("unknown-loss", UserError, "'margin'"):
        find_loss("margn")
