"""What an objective that somebody wrote does wrong is told with its place, or is refused before it is trained on."""

import functools

import pytest
import torch
import torch.nn.functional as F

from robustdup.training.asking import ask_objective
from tests.raising import raises

IMAGES, LABELS = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])


def model(images):
    return images.flatten(1)[:, :3]


def losses(model, images, labels, *, attack, rng, scale=1.0):
    return scale * F.cross_entropy(model(images), labels, reduction="none"), {}


def attacks_the_model(model, images, labels, *, attack, rng):
    return attack(model, images, labels), {}


def ask(objective, attack=None):
    return ask_objective(objective, model, IMAGES, LABELS, attack=attack, rng=None)


def test_a_fitting_answer_is_handed_on_with_bound_options():
    loss, metrics = ask(functools.partial(losses, scale=2.0))
    assert torch.equal(loss, 2 * F.cross_entropy(model(IMAGES), LABELS, reduction="none"))
    assert metrics == {}


def test_an_error_names_the_objective_its_line_and_the_contract():
    line = attacks_the_model.__code__.co_firstlineno + 1
    with raises("bad-objective") as caught:
        ask(attacks_the_model, attack=lambda images, labels: images)
    for part in ("attacks_the_model", "TypeError", f"test_asking.py:{line}", "attack(images, labels)"):
        assert part in str(caught.value), part


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((torch.tensor(1.0), {}), "a loss of shape () for 4 samples"),  # the mean: each step would be a quarter
        ((torch.ones(4, 1), {}), "a loss of shape (4, 1)"),
        (torch.ones(4), "a Tensor in place of a pair"),
        ((1.0, {}), "a float as its loss"),
        ((torch.ones(4), None), "a NoneType as its metrics"),
        ((torch.ones(4), {"correct": 0.5}), "the metric 'correct' as a float"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answer, told):
    with raises("bad-objective") as caught:
        ask(lambda *_, **__: answer)
    assert told in str(caught.value)


def test_lack_of_memory_and_faults_of_robustdup_itself_stay_what_they_are():
    def hungry(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    def own(*_, **__):
        raise ValueError("a fault")

    own.__module__ = "robustdup.training.objectives.adversarial"
    with pytest.raises(torch.OutOfMemoryError):
        ask(hungry)
    with pytest.raises(ValueError, match=r"^a fault$"):
        ask(own)
