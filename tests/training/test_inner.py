"""The inner attack: reaches known optima, stays in the ball, and touches nothing."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import RunError, SampleRng, ThreatModel, UserError
from robustdup.plugins import AttackSpec, Registry, load_plugins
from robustdup.training.inner import prepare_inner
from robustdup.training.pgd import Execution, project_delta, training_pgd
from tests.lanes import each_once
from tests.networks import resnet
from tests.raising import raises

NORMS = (("Linf", "8/255"), ("L2", "0.5"), ("L1", "4"))


@pytest.fixture(scope="module")
def registry():
    return load_plugins()


def small_resnet(seed=0):
    torch.manual_seed(seed)
    model = resnet(4).train()
    for _ in range(3):  # statistics and affine weights that are not those of a new layer
        model(torch.rand(16, 3, 32, 32))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch(count=8, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator), SampleRng(0, torch.arange(count))


def attach(text, registry, threat=("Linf", "8/255"), model=None, **options):
    model = small_resnet() if model is None else model
    inner = prepare_inner(text, registry, ThreatModel(*threat), **options)
    inner.attach(model, batch()[0])
    return model, inner


class Linear(nn.Module):
    """Two classes, whose logits differ by w . images."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        score = (images.flatten(1) * self.weight).sum(dim=1)
        return torch.stack([-score / 2, score / 2], dim=1)


@pytest.mark.parametrize(
    ("norm", "eps", "text", "tolerance"),
    [
        ("Linf", "8/255", "pgd(steps=10)", 1e-5),
        ("L2", "0.5", "pgd(steps=10,step_size=0.5)", 1e-3),
        ("L2", "0.5", "pgd(steps=10)", 0.05),
        ("L1", "4", "pgd(steps=20)", 0.05),
    ],
)
def test_pgd_reaches_the_optimum_of_a_linear_model(registry, norm, eps, text, tolerance):
    weight = torch.randn(48, generator=torch.Generator().manual_seed(1))
    model, threat = Linear(weight), ThreatModel(norm, eps)
    images, labels = torch.full((6, 3, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    inner = prepare_inner(text, registry, threat)
    inner.attach(model, images)
    adv_images = inner.batch(SampleRng(0, torch.arange(6)))(images, labels)
    gained = ((adv_images - images).flatten(1) * weight).sum(dim=1).detach()
    if norm == "Linf":
        best = threat.radius * weight.abs().sum()
    elif norm == "L2":
        best = threat.radius * weight.norm()
    else:  # the box leaves room for 0.5 a pixel: eps = 4 fills the eight largest
        best = 0.5 * weight.abs().topk(8).values.sum()
    torch.testing.assert_close(gained, best.detach().expand(6), rtol=tolerance, atol=0)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
@pytest.mark.parametrize("start", ["true", "false"])
def test_pgd_stays_in_ball_and_box(registry, norm, eps, start):
    model, inner = attach(f"pgd(steps=3,random_start={start})", registry, (norm, eps))
    images, labels, rng = batch()
    images = images.round()  # at the edge of the box
    adv_images = inner.batch(rng)(images, labels)
    assert not inner.threat.violations(images, adv_images).any.any()
    assert adv_images.shape == images.shape
    assert not adv_images.requires_grad
    model.eval()
    assert F.cross_entropy(model(adv_images), labels) > F.cross_entropy(model(images), labels)


def test_pgd_takes_the_steps_that_are_asked_for(registry):
    images, labels, rng = batch()
    _, inner = attach("pgd(steps=3,step_size=1/255,random_start=false)", registry)
    moved = (inner.batch(rng)(images, labels) - images).abs() * 255
    assert float(moved.max()) == pytest.approx(3, abs=1e-3)
    assert (inner.count.forward, inner.count.backward) == (24, 24)


def test_another_loss_is_maximised(registry):
    images, labels, rng = batch()
    model, inner = attach("pgd(steps=2,random_start=false)", registry)
    seen = []

    def loss(logits, rows):
        seen.append(rows)
        return logits[:, 3]

    adv_images = inner.batch(rng)(images, labels, loss)
    model.eval()
    assert (model(adv_images)[:, 3] > model(images)[:, 3]).all()
    assert seen == [slice(0, 8)] * 2


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_project_delta_is_the_nearest_point(norm):
    threat = ThreatModel(norm, "0.5")
    delta = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    delta[0] *= 1e-3
    inside = project_delta(delta, threat)
    torch.testing.assert_close(inside[0], delta[0])
    # A box so wide that only the ball counts: the exact projection of the threat model, moved to the middle.
    wide = 100 * delta.abs().max()
    scaled = ThreatModel(norm, str(0.5 / (2 * float(wide)))).project(
        torch.full_like(delta, 0.5), 0.5 + delta / (2 * float(wide))
    )
    torch.testing.assert_close(inside, (scaled - 0.5) * 2 * float(wide), rtol=1e-3, atol=2e-3)


def test_results_are_kept_for_the_batch(registry):
    images, labels, rng = batch()
    _, inner = attach("pgd(steps=2)", registry)
    attack = inner.batch(rng)
    first = attack(images, labels)
    assert attack(images, labels) is first
    assert attack(images, labels, lambda logits, rows: logits[:, 0]) is first
    assert attack.logits(images) is attack.logits(images)
    assert inner.count.forward == 2 * 8 + 8
    other = attack(images, labels, lambda logits, rows: -logits[:, 0], key="other")
    assert not torch.equal(other, first)
    assert not torch.equal(attack(images.clone(), labels + 0, lambda logits, rows: logits[:, 5]), first)
    assert torch.equal(inner.batch(rng)(images, labels), first)


def everything(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
    )


def same(one, two):
    return one[1:] == two[1:] and all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def generators():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


TOOLKITS = (
    "torchattacks:PGD(steps=3)",
    "art:ProjectedGradientDescent(max_iter=3)",
    "foolbox:LinfProjectedGradientDescentAttack(steps=3)",
)


@each_once(text=["pgd(steps=2)", "apgd-ce(steps=3)", "fgsm", *TOOLKITS], bn=["eval", "train"])
def test_nothing_is_touched(registry, text, bn):
    known = text.split("(")[0]
    if known not in registry.attacks or not registry.attacks[known].available:
        pytest.skip(f"{known} is not installed")
    model, inner = attach(text, registry, bn=bn)
    model.head.weight.requires_grad_(False)
    model.body[1].eval()
    images, labels, rng = batch()
    before, states, kept = everything(model), generators(), images.clone()
    adv_images = inner.batch(rng)(images, labels)
    assert same(everything(model), before)
    assert generators() == states
    assert torch.equal(images, kept)
    assert not inner.threat.violations(images, adv_images).any.any()
    assert not adv_images.requires_grad
    assert inner.count.backward > 0
    model.eval()
    assert F.cross_entropy(model(adv_images), labels) > F.cross_entropy(model(images), labels)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_everything_is_put_back_after_an_error(registry, bn):
    model, inner = attach("pgd(steps=2)", registry, bn=bn)
    images, labels, rng = batch()
    before = everything(model)

    def loss(logits, rows):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        inner.batch(rng)(images, labels, loss)
    assert same(everything(model), before)


def test_train_mode_uses_the_statistics_of_the_batch(registry):
    model, inner = attach("pgd(steps=1)", registry, bn="train")
    images, _, rng = batch()
    model.train()
    expected = model(images).detach()  # all layers are BatchNorm or without modes
    torch.testing.assert_close(inner.batch(rng).logits(images), expected)
    assert inner.folded == 0


@pytest.mark.parametrize("text", ["pgd(steps=3)", "pgd(steps=3,random_start=false)"])
def test_a_sample_gets_the_same_image_in_any_company(registry, text):
    images, labels, _ = batch(16)
    index = torch.arange(100, 116)
    _, inner = attach(text, registry, micro_batch=8)
    whole = inner.batch(SampleRng(0, index))(images, labels)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    moved = inner.batch(SampleRng(0, index[order]))(images[order], labels[order])
    assert torch.equal(moved, whole[order])
    part = inner.batch(SampleRng(0, index[:11]))(images[:11], labels[:11])  # a micro-batch of 3 besides one of 8
    torch.testing.assert_close(part, whole[:11], rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_summed_loss(registry):
    model, inner = attach("pgd", registry, micro_batch=4)
    images, labels, rng = batch(10)
    found = inner.batch(rng).gradient(images, labels)
    model.eval()
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def bad_attack(model, images, labels, threat, *, rng, far: bool = False):
    return images + 10 if far else images[:1]


def test_what_a_registered_attack_returns_is_projected_or_refused():
    registry = Registry()
    registry.add_attack(AttackSpec("bad", bad_attack, ("Linf",)))
    images, labels, rng = batch()
    _, inner = attach("bad(far=true)", registry)
    adv_images = inner.batch(rng)(images, labels)
    assert torch.equal(adv_images, (images + inner.threat.radius).clamp(max=1))
    _, inner = attach("bad", registry)
    with raises("bad-shape", RunError, "(1, 3, 32, 32)", "(8, 3, 32, 32)"):
        inner.batch(rng)(images, labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgd(step=3)", "Unknown option of the inner attack 'pgd': 'step'. Did you mean 'steps'?"),
        ("pgd(steps=0)", "steps must be at least 1, got 0"),
        ("pgd(step_size=2/0)", "is not a number"),
        ("pdg", "Did you mean 'pgd'?"),
        ("fab", "'fab' looks for the nearest adversarial image, at any distance"),
        ("autoattack", "'autoattack' is an ensemble; the inner attack is a single one"),
        ("fgsm,pgd", "Give one inner attack"),
        ("apgd-ce(step=3)", "Did you mean 'steps'?"),
    ],
)
def test_mistakes_are_refused_before_training(registry, text, message):
    with pytest.raises(UserError, match=".*") as caught:
        prepare_inner(text, registry, ThreatModel("Linf", "8/255"))
    assert message in str(caught.value)


def test_another_norm_and_another_mode_are_refused(registry):
    with raises("bad-norm", UserError, "cosine-pgd", "Linf or L2", "L1, eps = 12"):
        prepare_inner("cosine-pgd", registry, ThreatModel("L1", "12"))
    with raises("unknown-value", UserError, "inner_bn", "'evil'", "'eval'"):
        prepare_inner("pgd", registry, ThreatModel("Linf", "8/255"), bn="evil")


def test_an_attack_without_a_bound_is_refused():
    registry = Registry()
    registry.add_attack(AttackSpec("wild", bad_attack, ("Linf",), kind="unbounded"))
    with raises("bad-attack", UserError, "'wild'", "Linf, eps = 8/255"):
        prepare_inner("wild", registry, ThreatModel("Linf", "8/255"))


def test_a_detached_inner_attack_says_so(registry):
    images, labels, rng = batch()
    with pytest.raises(RunError, match="not attached"):
        prepare_inner("pgd", registry, ThreatModel("Linf", "8/255")).batch(rng)(images, labels)


def test_pgd_needs_no_graph_of_weights(registry):
    """The function itself, on a frozen model: input gradients only, nothing left on the weights."""
    model = Linear(torch.randn(48)).requires_grad_(False)
    images = torch.rand(4, 3, 4, 4)
    labels = torch.ones(4, dtype=torch.int64)
    with torch.no_grad():  # it turns gradients on for itself
        found = training_pgd(
            model, images, labels, ThreatModel("Linf", "0.1"), rng=SampleRng(0, torch.arange(4)), execution=Execution(3)
        )
    assert model.weight.grad is None
    expected = (images - 0.1 * model.weight.sign().view(3, 4, 4)).clamp(0, 1)
    torch.testing.assert_close(found, expected)
