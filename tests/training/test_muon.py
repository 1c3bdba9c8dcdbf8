"""Muon: directions are orthogonal, weights keep their length, everything else is SGD."""

import pytest
import torch
from torch import nn

from robustdup.config import TrainConfig, build
from robustdup.errors import UserError
from robustdup.jobs.training import trainer_options
from robustdup.training.muon import Muon, orthogonalised
from robustdup.training.schedule import make_optimizer, set_rate
from tests.raising import raises


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix, iterations=5)
    values = torch.linalg.svdvals(found)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    inside = u.mT @ found @ vh.mT  # in the singular vectors of the original it is diagonal
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-4, rtol=0)


def test_zeros_stay_zeros():
    assert orthogonalised(torch.zeros(3, 5)).abs().max() == 0


def test_a_step_moves_matrices_by_a_share_of_their_length_and_vectors_as_sgd():
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator) * 5)
    vector, same = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    muon = Muon([{"params": [weight], "orthogonal": True}, {"params": [vector]}], lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD([same], lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=generator)
        vector.grad, same.grad = torch.full((4,), 2.0), torch.full((4,), 2.0)
        before = weight.detach() * (6**0.5 / weight.detach().norm())
        muon.step()
        sgd.step()
        moved = (weight.detach() - before).flatten(1)
        values = torch.linalg.svdvals(moved)
        assert (values > 0.05).all()
        assert (values < 0.13).all()
    assert torch.equal(vector, same)


def test_state_goes_on_from_where_it_was():
    def run(steps, state=None):
        weight = torch.nn.Parameter(torch.eye(3))
        muon = Muon([{"params": [weight], "orthogonal": True}], lr=0.1, momentum=0.9)
        if state is not None:
            weight.data.copy_(state[0])
            muon.load_state_dict(state[1])
        for step in steps:
            weight.grad = torch.arange(9.0).view(3, 3).sin() * (step + 1)
            muon.step()
        return weight.detach().clone(), muon.state_dict()

    whole = run(range(4))
    half = run(range(2))
    assert torch.equal(run(range(2, 4), half)[0], whole[0])


def test_the_configuration_gives_muon_to_layers_without_a_bias():
    config = build(
        TrainConfig, overrides=["data=given", "optimizer=muon", "lr=0.2", "muon_lr=0.04", "weight_decay=0.01"]
    )
    options = trainer_options(config, 1, "fp32")
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = make_optimizer(model, options)
    set_rate(optimizer, 0.1)
    groups = {
        tuple(p.shape): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert groups[4, 1, 3, 3] == (pytest.approx(0.02), 0)
    assert groups[2, 4] == (pytest.approx(0.1), 0.01)
    assert len([p for group in optimizer.param_groups for p in group["params"]]) == len(list(model.parameters()))
    with raises("bad-model", UserError, "muon", "Use sgd"):
        make_optimizer(nn.Linear(2, 2), options)


def test_several_matrices_at_once_are_each_as_alone():
    matrices = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(2))
    for several in (matrices, matrices.mT):
        alone = torch.stack([orthogonalised(matrix) for matrix in several])
        torch.testing.assert_close(orthogonalised(several), alone, rtol=1e-4, atol=1e-5)
