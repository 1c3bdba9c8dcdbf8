"""Proofs by cases: they reach the exact answer of small networks, and a tree that leaves a case out proves nothing."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from robustdup.certification import checker, proofs
from robustdup.certification.ascent import Ascent
from robustdup.certification.branching import prove_by_cases
from robustdup.certification.checker import Tree, proven_margin
from robustdup.certification.crown import margins
from robustdup.certification.graph import read_network
from robustdup.certification.matrices import checker_steps
from robustdup.certification.proofs import certify_samples
from robustdup.certification.region import region_of
from robustdup.threat import ThreatModel
from tests.certification.test_bounds import EPS, Plain, Residual, exact_margin, least_seen, network

LONG = 1e6  # seconds: never up


def small():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval().requires_grad_(False)
    model[1].weight.mul_(2)
    images = torch.rand(6, 2, 2, 2)
    return model, images, model(images).argmax(1)


@cache
def exact(radius):
    model, images, labels = small()
    return np.array([exact_margin(model, x, int(y), radius) for x, y in zip(images, labels, strict=True)])


@cache
def by_cases(eps="0.2"):
    return certify_samples(*small(), ThreatModel("Linf", eps), branch_seconds=LONG)


def test_small_networks_are_decided_exactly():
    """With CROWN alone some are open; case by case all are proven whose exact least margin is above zero, and no other."""
    least, found = exact(0.2), by_cases()
    plain = certify_samples(*small(), ThreatModel("Linf", "0.2"))
    assert (np.abs(least) > 1e-3).all()
    assert 0 < (least > 0).sum() < 6
    assert plain.certified.sum() < found.certified.sum()
    assert found.certified.tolist() == (least > 0).tolist()
    assert "branch-and-bound" in found.methods
    for row in found.trees:
        assert 0 < float(found.margins[row]) <= least[row]


@pytest.mark.parametrize(
    ("kind", "norm", "gain"),
    [
        (Residual, "Linf", 0.004),
        *((Plain, norm, 0.001) for norm in ("Linf", "L2")),
        *((Residual, norm, 0.014) for norm in ("L2", "L1")),
    ],
)
def test_no_image_in_the_ball_is_below_what_cases_prove(kind, norm, gain):
    """The last bias is moved so that the margin is 0 a little above the bounds: only cases prove it, by the checker too."""
    model, images, labels = network(kind, 1)
    threat = ThreatModel(norm, EPS[norm])
    seen = least_seen(model, images, labels, threat, tries=50)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    bias = last.bias.clone()
    for i in range(2):
        last.bias.copy_(bias)
        region, label = region_of(images[i : i + 1], threat), int(labels[i])
        least, slopes = margins(read_network(model, images), region, labels[i : i + 1])
        goal = float(least) + gain
        assert goal < float(seen[i])
        last.bias[label] -= goal
        operations = read_network(model, images)
        trees = prove_by_cases(operations, region, label, slopes, seconds=LONG, slack=4e-4)  # rounding takes 1e-4
        assert max(len(tree.splits) for tree in trees.values()) > 1
        hints = {number: slope[0].double().flatten().numpy() for number, slope in slopes.items()}
        without, proven = (
            proven_margin(
                checker_steps(operations), images[i].double().flatten().numpy(), label, norm=norm, radius=region.radius,
                slopes=hints, trees=cases,
            )
            for cases in (None, trees)
        )  # fmt: skip
        assert without <= 0 < proven <= float(seen[i]) - goal + 1e-6


def case():
    """Return what the checker says of a sample that only cases prove, by its trees; these, and the margin."""
    model, images, labels = small()
    found, steps = by_cases(), checker_steps(read_network(model, images))
    row, trees = max(found.trees.items(), key=lambda item: max(len(tree.splits) for tree in item[1].values()))
    radius = region_of(images, ThreatModel("Linf", "0.2")).radius

    def prove(trees):
        return proven_margin(
            steps, images[row].double().flatten().numpy(), int(labels[row]), norm="Linf", radius=radius,
            slopes=found.slopes[row], trees=trees,
        )  # fmt: skip

    return prove, trees, float(found.margins[row])


def test_a_tree_that_is_cut_or_made_up_proves_nothing():
    prove, trees, margin = case()
    assert prove(trees) == margin > 0
    assert prove(None) <= 0
    other, tree = next((other, tree) for other, tree in trees.items() if len(tree.splits) > 1)

    def changed(splits=tree.splits, weights=tree.weights):
        return prove({**trees, other: Tree(splits, weights)})

    assert changed(splits=tree.splits[:-1]) <= 0  # a case is left out
    assert changed(splits=np.concatenate([tree.splits, tree.splits[-1:]])) <= 0
    assert changed(weights=tree.weights[:-1]) <= 0
    for step, place in ((0, 0), (99, 0), (tree.splits[0][0], 10**6), (tree.splits[0][0], -1)):
        wrong = tree.splits.copy()
        wrong[0] = (step, place)
        assert changed(splits=wrong) <= 0
    assert changed(splits=np.zeros((0, 2), dtype=np.int64), weights=tree.weights[:0]) <= 0


@pytest.mark.parametrize("value", [1e9, -1e9, np.nan, np.inf, 1.0])
def test_any_weights_are_sound(value):
    prove, trees, _ = case()
    wrong = {other: Tree(tree.splits, np.full_like(tree.weights, value)) for other, tree in trees.items()}
    assert not prove(wrong) > exact(0.2).max()


@pytest.mark.parametrize("rule", [None, "sides"])
def test_a_wrong_rule_of_cases_would_be_seen(rule, monkeypatch):
    """Samples that can be broken, with trees of the right shape: a checker that errs in its cases would prove some."""
    model, images, labels = small()
    steps, splits, wrong = checker_steps(read_network(model, images)), np.array([(3, 0), (-1, -1), (-1, -1)]), 0
    if rule == "sides":  # one case twice
        paths = checker._paths
        monkeypatch.setattr(checker, "_paths", lambda *a: [path for path in paths(*a) if path[0][2] > 0] * 2)
    for unit in range(5):
        splits[0, 1] = unit
        for i in range(6):
            trees = {other: Tree(splits, np.ones(2)) for other in range(3) if other != labels[i]}
            image = images[i].double().flatten().numpy()
            proven = proven_margin(steps, image, int(labels[i]), norm="Linf", radius=0.2, trees=trees)
            wrong += proven > exact(0.2)[i] + 1e-9
    assert bool(wrong) == (rule is not None)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_case_that_leans_on_the_wrong_side_would_be_seen(flipped, monkeypatch):
    """Near an image no bound of a margin, here to a class that is not its own, may be above the margin at the image."""
    model, images, labels = small()
    steps, splits, wrong = checker_steps(read_network(model, images)), np.array([(3, 0), (-1, -1), (-1, -1)]), 0
    pull_back = checker._pull_back

    def flip(*given):
        return pull_back(*given[:6], *({n: -size for n, size in leaning.items()} for leaning in given[6:]))

    if flipped:
        monkeypatch.setattr(checker, "_pull_back", flip)
    for unit in range(5):
        splits[0, 1] = unit
        for i in range(6):
            label = (int(labels[i]) + 1) % 3
            logits = model(images[i : i + 1])[0]
            margin = float(logits[label] - max(logit for k, logit in enumerate(logits) if k != label))
            trees = {other: Tree(splits, np.ones(2)) for other in range(3) if other != label}
            image = images[i].double().flatten().numpy()
            wrong += proven_margin(steps, image, label, norm="Linf", radius=0.01, trees=trees) > margin + 1e-6
    assert bool(wrong) == flipped


def test_time_that_is_up_leaves_a_sample_open_and_large_networks_are_said(monkeypatch):
    model, images, labels = small()
    threat = ThreatModel("Linf", "0.2")
    found = certify_samples(model, images, labels, threat, branch_seconds=1e-9)
    assert not found.trees
    monkeypatch.setattr(proofs, "MOST_UNITS", 3)
    found = certify_samples(model, images, labels, threat, branch_seconds=LONG)
    assert not found.trees
    assert any("by cases" in note for note in found.notes)


def test_ascent_makes_the_steps_of_adam():
    torch.manual_seed(0)
    start, other = torch.randn(5), torch.randn(3)
    ours, theirs = [start.clone(), other.clone()], [start.clone().requires_grad_(), other.clone().requires_grad_()]
    ascent, adam = Ascent(ours, rate=0.1), torch.optim.Adam(theirs, lr=0.1, maximize=True)

    def values(tensors):
        return -((tensors[0] - 1) ** 2), (tensors[1].sin() * 3)

    for _ in range(20):
        ascent.step(torch.cat(values(ours)))
        adam.zero_grad()
        torch.cat(values(theirs)).sum().backward()
        adam.step()
    for mine, known in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, known, atol=1e-5)
