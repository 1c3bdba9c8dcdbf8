"""Update rules against steps worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import SampleRng, ThreatModel, UserError
from robustdup.plugins import Registry
from robustdup.training import register
from robustdup.training.inner import prepare_inner
from robustdup.training.objectives import find_objective
from robustdup.training.updates import Awp, Free, Plain, UpdateTask, make_update
from tests.networks import resnet

LINF = ThreatModel("Linf", "0.1")


class Score(nn.Module):
    """w . images + b for each sample, w of two dimensions."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(1, 12, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(1, generator=generator, dtype=torch.float64))

    def forward(self, images):
        return (images.flatten(1) @ self.weight.T + self.bias)[:, 0]


def images_of(count=5, seed=1):
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch(model, optimizer, images, loss, **hooks):
    """The loss of a sample is loss(images (n, ...)); its mean is minimised, as the loop does."""

    def loss_of(shift):
        moved = images if shift is None else (images + shift).clamp(0, 1)
        each = loss(moved)
        return each.mean(), {"correct": (each.detach() > 0).float()}

    return UpdateTask(model, optimizer, loss_of, images, **hooks)


def test_plain_is_one_gradient_step():
    model, images = Score(), images_of()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    order = []
    batch = make_batch(
        model, optimizer, images, lambda moved: model(moved) ** 2 / 2,
        reduce=lambda p: order.append("reduce"), clip=lambda p: order.append("clip"), stepped=lambda: order.append("step"),
    )  # fmt: skip
    loss, metrics = Plain().step(batch)
    score = images.flatten(1) @ weight.T + bias
    torch.testing.assert_close(loss, (score**2 / 2).mean())
    torch.testing.assert_close(model.weight.detach(), weight - 0.5 * (score * images.flatten(1)).mean(dim=0))
    torch.testing.assert_close(model.bias.detach(), bias - 0.5 * score.mean(dim=0))
    assert order == ["reduce", "clip", "step"]
    assert not loss.requires_grad
    assert metrics["correct"].shape == (5,)


def test_awp_is_the_closed_form_on_a_quadratic():
    """Loss (w . x + b)^2 / 2: the gradient is taken at w + gamma |w| g / |g|, and the step is made from w."""
    model, images = Score(), images_of()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.01)
    rows = images.flatten(1)

    def gradient(at):
        score = rows @ at.T + bias
        return (score * rows).mean(dim=0, keepdim=True), (score**2 / 2).mean(), score.mean(dim=0)

    first, _, _ = gradient(weight)
    moved = weight + 0.05 * weight.norm() * first / first.norm()  # the bias, of one dimension, stays
    second, expected, slope = gradient(moved)
    seen = []
    batch = make_batch(
        model, optimizer, images, lambda given: model(given) ** 2 / 2,
        reduce=lambda p: seen.append(model.weight.detach().clone()),
        stepped=lambda: seen.append(model.weight.detach().clone()),
    )  # fmt: skip
    loss, _ = Awp(gamma=0.05).step(batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(seen[0], weight, rtol=0, atol=0)
    torch.testing.assert_close(seen[1], moved)
    torch.testing.assert_close(model.weight.detach(), weight - 0.5 * (second + 0.01 * weight))
    torch.testing.assert_close(model.bias.detach(), bias - 0.5 * (slope + 0.01 * bias))
    assert torch.equal(seen[2], model.weight.detach())  # averages see the final weights
    assert len(seen) == 3


def test_awp_raises_the_loss_and_puts_weights_back_to_the_bit():
    torch.manual_seed(0)
    model = resnet(4).train()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = make_batch(model, optimizer, images, lambda moved: F.cross_entropy(model(moved), labels, reduction="none"))
    plain, _ = Plain().step(batch)
    worse, _ = Awp(gamma=0.01).step(batch)
    assert worse > 1.02 * plain
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_awp_updates_running_statistics_once_and_attacks_once():
    torch.manual_seed(0)
    registry = Registry()
    register(registry)
    model, images, labels = resnet(4).train(), torch.rand(8, 3, 32, 32), torch.arange(8)
    inner = prepare_inner("pgd(steps=2)", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(model, images)
    rng = SampleRng(0, torch.arange(8))
    attack, seen = inner.batch(rng), []
    spec, options = find_objective("pgd_at", registry)

    def loss_of(shift):
        seen.append(attack(images, labels))
        loss, metrics = spec.function(model, images, labels, attack=attack, rng=rng, **options)
        return loss.mean(), metrics

    norm = model.body[1]
    assert int(norm.num_batches_tracked) == 0
    Awp().step(UpdateTask(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_of, images))
    assert int(norm.num_batches_tracked) == 1
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert inner.count.forward == 16
    assert norm.track_running_stats


def test_awp_waits_for_its_warm_up_and_remembers_it():
    def weights_after(rule, steps):
        model, images = Score(), images_of()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            rule.step(make_batch(model, optimizer, images, lambda moved: model(moved) ** 2))
        return model.weight.detach()

    assert torch.equal(weights_after(Awp(gamma=0.1, warmup=2), 2), weights_after(Plain(), 2))
    assert not torch.equal(weights_after(Awp(gamma=0.1, warmup=2), 3), weights_after(Plain(), 3))
    old, new = Awp(gamma=0.1, warmup=2), Awp(gamma=0.1, warmup=2)
    weights_after(old, 2)
    new.load_state_dict(old.state_dict())
    assert torch.equal(weights_after(new, 1), weights_after(Awp(gamma=0.1), 1))


def test_awp_puts_weights_back_after_an_error():
    model, images = Score(), images_of()
    before, calls = model.weight.detach().clone(), []

    def loss(moved):
        calls.append(model.weight.detach().clone())
        if len(calls) == 2:
            raise RuntimeError("on purpose")
        return model(moved) ** 2

    with pytest.raises(RuntimeError, match="on purpose"):
        Awp().step(make_batch(model, torch.optim.SGD(model.parameters(), lr=0.1), images, loss))
    assert not torch.equal(calls[1], before)
    assert torch.equal(model.weight.detach(), before)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_free_is_replays_of_manual_steps(norm):
    threat = ThreatModel(norm, "0.1")
    model, manual = Score(), Score()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9) for net in (model, manual)]
    rule, steps = Free(threat, replays=3), []
    shift = torch.zeros(5, 3, 2, 2, dtype=torch.float64)
    for seed in range(2):
        images = images_of(seed=seed)
        losses = []
        for _ in range(3):  # the algorithm of the paper, with autograd for the gradient by the images
            leaf = shift.clone().requires_grad_()
            optimizers[1].zero_grad()
            loss = (manual((images + leaf).clamp(0, 1)) ** 2).mean()
            loss.backward()
            losses.append(loss.detach())
            optimizers[1].step()
            if norm == "Linf":
                shift = (shift + 0.1 * leaf.grad.sign()).clamp(-0.1, 0.1)
            else:
                length = leaf.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                shift = shift + 0.1 * leaf.grad / length
                shift = shift * (0.1 / shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
        batch = make_batch(
            model, optimizers[0], images, lambda moved: model(moved) ** 2, stepped=lambda: steps.append(1)
        )
        found, metrics = rule.step(batch)
        torch.testing.assert_close(found, torch.stack(losses).mean())
        assert metrics["correct"].tolist() == [1.0] * 5
    torch.testing.assert_close(model.weight, manual.weight)
    torch.testing.assert_close(rule.shift, shift)
    assert (len(steps), rule.steps) == (6, 3)


def test_free_carries_its_perturbation_over_batches_of_any_size_and_restarts():
    def run(rule, sizes, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        for seed, size in enumerate(sizes):
            rule.step(make_batch(model, optimizer, images_of(size, seed), lambda moved: model(moved) ** 2))
        return model.weight.detach()

    rule = Free(LINF, replays=2)
    run(rule, [4, 2], Score())
    assert rule.shift.shape == (4, 3, 2, 2)
    kept = rule.shift[2:].clone()
    run(rule, [2], Score())
    assert torch.equal(rule.shift[2:], kept)  # a smaller batch leaves the other places alone
    run(rule, [6], Score())
    assert rule.shift.shape == (6, 3, 2, 2)
    again = Free(LINF, replays=2)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(run(again, [6], Score()), run(rule, [6], Score()))
    assert not torch.equal(run(Free(LINF, replays=2), [6], Score()), run(again, [6], Score()))
    empty = Free(LINF)
    empty.load_state_dict(Free(LINF).state_dict())
    assert empty.shift is None


def test_two_halves_that_are_summed_equal_the_whole():
    """What `reduce` is for: gradients of two processes, AWP's ascent among them, add up to those of one."""
    images = images_of(6)
    whole = Score()
    Awp(gamma=0.1).step(
        make_batch(whole, torch.optim.SGD(whole.parameters(), lr=0.2), images, lambda moved: whole(moved) ** 2)
    )
    half = Score()

    def add_other_half(parameters):
        """Stand in for the other process, which is at the same weights."""
        others = torch.autograd.grad((half(images[3:]) ** 2).sum() / 6, list(half.parameters()))
        for parameter, other in zip(parameters, others, strict=True):
            parameter.grad += other

    def loss_of(shift):
        each = half(images[:3]) ** 2
        return each.sum() / 6, {"correct": each.detach()}

    optimizer = torch.optim.SGD(half.parameters(), lr=0.2)
    Awp(gamma=0.1).step(UpdateTask(half, optimizer, loss_of, images[:3], reduce=add_other_half))
    torch.testing.assert_close(half.weight, whole.weight)


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    register(registry)
    return registry


def test_an_objective_brings_its_rule(registry):
    spec, options = find_objective("free(replays=5)", registry)
    rule = make_update("plain", spec, options, LINF)
    assert isinstance(rule, Free)
    assert rule.steps == 5
    assert make_update("free(replays=2)", spec, options, LINF).steps == 2
    spec, options = find_objective("trades", registry)
    assert isinstance(make_update("plain", spec, options, LINF), Plain)
    awp = make_update("awp(gamma=0.01,warmup=7)", spec, options, LINF)
    assert (awp.gamma, awp.warmup, awp.steps) == (0.01, 7, 1)


@pytest.mark.parametrize(
    ("update", "objective", "message"),
    [
        ("awl", "trades", "Unknown update rule 'awl'. Did you mean 'awp'?"),
        ("awp(gama=1)", "trades", "Unknown option of update rule 'awp': 'gama'. Did you mean 'gamma'?"),
        ("awp(gamma=0)", "trades", "gamma must be above 0"),
        ("free", "trades", "'free' goes with the objective 'free' alone, not with 'trades'"),
        ("awp", "free", "'free' brings its own update rule and does not go with 'awp'"),
        ("plain", "free(replays=0)", "replays must be at least 1, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(registry, update, objective, message):
    spec, options = find_objective(objective, registry)
    with pytest.raises(UserError) as caught:
        make_update(update, spec, options, LINF)
    assert message in str(caught.value)
