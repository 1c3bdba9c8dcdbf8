"""Objectives against formulas worked out by hand on a linear softmax model, and what a batch keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import SampleRng, ThreatModel, UserError
from robustdup.plugins import ObjectiveSpec, Registry
from robustdup.training import register
from robustdup.training.inner import prepare_inner
from robustdup.training.objectives import check_mixed, check_model, find_objective
from robustdup.training.objectives.adversarial import divergence, mart_loss, trades
from robustdup.training.objectives.morel import Embedding, multi_positive_contrast
from tests.networks import resnet
from tests.raising import raises

EPS = 0.1
NAMES = ["standard", "pgd_at", "trades", "mart", "free", "n_fgsm", "fgsm_pgi", "ibp", "crown_ibp", "morel"]


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    register(registry)
    return registry


class Softmax(nn.Module):
    """Logits W images, with the images themselves as features."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3, bias=False, dtype=torch.float64)
        weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.head.weight.data.copy_(weight)

    def features(self, images):
        return images.flatten(1)

    def forward(self, images):
        return self.head(self.features(images))


def setting(smoothing=0.0, count=6, norm="Linf", attack="pgd(steps=3)"):
    generator = torch.Generator().manual_seed(0)
    images = 0.2 + 0.6 * torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    model, rng = Softmax(), SampleRng(0, torch.arange(count))
    inner = prepare_inner(attack, Registry(), ThreatModel(norm, str(EPS)), smoothing=smoothing)
    inner.attach(model, images)
    return model, images, labels, rng, inner.batch(rng)


def evaluate(registry, text, model, images, labels, rng, attack, **more):
    spec, options = find_objective(text, registry)
    return spec.function(model, images, labels, attack=attack, rng=rng, **options, **more)


def log_probabilities(model, image):
    logits = (model.head.weight @ image.flatten()).tolist()
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_standard_and_pgd_at_are_cross_entropies(registry, smoothing):
    model, images, labels, rng, attack = setting(smoothing)
    for text in ("standard", "free(replays=3)", "pgd_at"):
        loss, metrics = evaluate(registry, text, model, images, labels, rng, attack)
        for row, image in enumerate(attack(images, labels) if text == "pgd_at" else images):
            answer, label = log_probabilities(model, image), int(labels[row])
            expected = -(1 - smoothing) * answer[label] - smoothing * sum(answer) / 3
            assert loss[row].item() == pytest.approx(expected)
            assert bool(metrics["correct"][row]) == (max(answer) == answer[label])
    assert not torch.equal(attack(images, labels), images)


def test_trades_is_cross_entropy_and_divergence(registry):
    model, images, labels, rng, attack = setting(0.2)
    loss, metrics = evaluate(registry, "trades(beta=2.5)", model, images, labels, rng, attack)
    adv_images = attack(images, labels)  # kept: the very images that the loss was computed on
    for row in range(len(images)):
        clean, adv = log_probabilities(model, images[row]), log_probabilities(model, adv_images[row])
        drift = sum(math.exp(p) * (p - q) for p, q in zip(clean, adv, strict=True))
        expected = -0.8 * clean[int(labels[row])] - 0.2 * sum(clean) / 3 + 2.5 * drift
        assert loss[row].item() == pytest.approx(expected)
        assert bool(metrics["correct_clean"][row]) == (max(clean) == clean[int(labels[row])])


def test_trades_attacks_the_divergence(registry):
    """Its images drift further from the clean answer than those that raise the cross-entropy."""
    model, images, labels, rng, attack = setting(count=32, attack="pgd(steps=10,random_start=false)")
    evaluate(registry, "trades", model, images, labels, rng, attack)
    ours = attack(images, labels)
    theirs = attack.inner.batch(rng)(images, labels)
    drift = [divergence(model(images).softmax(dim=1), model(adv)).mean() for adv in (ours, theirs)]
    assert drift[0] > 1.1 * drift[1]


def test_mart_is_boosted_cross_entropy_and_weighted_divergence(registry):
    model, images, labels, rng, attack = setting()
    loss, _ = evaluate(registry, "mart(beta=4)", model, images, labels, rng, attack)
    adv_images = attack(images, labels)
    for row, label in enumerate(labels.tolist()):
        clean, adv = log_probabilities(model, images[row]), log_probabilities(model, adv_images[row])
        wrong = max(math.exp(value) for k, value in enumerate(adv) if k != label)
        drift = sum(math.exp(p) * (p - q) for p, q in zip(clean, adv, strict=True))
        expected = -adv[label] - math.log(1.0001 - wrong) + 4 * drift * (1 - math.exp(clean[label]))
        assert loss[row].item() == pytest.approx(expected)


def test_mart_stays_finite_where_a_wrong_class_is_certain():
    logits = torch.tensor([[0.0, 200.0, 0.0]])
    assert float(mart_loss(logits, logits, torch.tensor([0]), 5.0)) == pytest.approx(200 - math.log(1e-4), rel=1e-3)


@pytest.mark.parametrize("k", [0.0, 2.0])
def test_n_fgsm_is_noise_and_one_step_without_projection(registry, k):
    model, images, labels, rng, attack = setting()
    images = images * 0 + 0.5  # far from the box: nothing is clipped
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    loss, _ = evaluate(registry, f"n_fgsm(k={k})", model, images, labels, rng, attack)
    noisy, moved = seen
    noise, step = noisy - images, moved - noisy
    assert float(noise.abs().max()) <= k * EPS
    if k:
        assert float(noise.abs().max()) > 0.9 * k * EPS
        assert float((moved - images).abs().max()) > 2 * EPS  # outside of the ball
    leaf = noisy.clone().requires_grad_()
    F.cross_entropy(model(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(step, EPS * leaf.grad.sign())
    torch.testing.assert_close(loss, F.cross_entropy(model(moved), labels, reduction="none"))
    again, _ = evaluate(registry, f"n_fgsm(k={k})", model, images, labels, rng, attack)
    assert torch.equal(again, loss)
    assert (attack.inner.count.forward, attack.inner.count.backward) == (6, 6)  # the second call cost nothing


def test_n_fgsm_in_l2_steps_by_eps(registry):
    model, images, labels, rng, attack = setting(norm="L2")
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    evaluate(registry, "n_fgsm", model, images, labels, rng, attack)
    length = (seen[0] - images).flatten(1).norm(dim=1)
    assert (length <= 2 * EPS + 1e-9).all()
    torch.testing.assert_close((seen[1] - seen[0]).flatten(1).norm(dim=1), torch.full((6,), EPS, dtype=torch.float64))


def test_contrast_is_what_the_formula_says():
    generator = torch.Generator().manual_seed(0)
    embedded, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 0, 0, 1, 2])
    unit = F.normalize(embedded, dim=1)
    found = multi_positive_contrast(embedded, labels, 0.5)
    for i in range(3):
        total = sum(math.exp(float(unit[i] @ unit[j]) / 0.5) for j in range(5) if j != i)
        terms = [float(unit[i] @ unit[j]) / 0.5 - math.log(total) for j in range(3) if j != i]
        assert float(found[i]) == pytest.approx(-sum(terms) / 2, rel=1e-4)
    assert found[3:].tolist() == [0.0, 0.0]


def test_the_embedding_attends_within_classes_only():
    torch.manual_seed(0)
    module, labels = Embedding(6, 8, 2), torch.tensor([0, 1, 0, 1, 2])
    features = torch.randn(5, 6)
    _, attended = module(features, labels)
    other = features.clone()
    other[1] += 1  # of class 1
    changed = (module(other, labels)[1] - attended).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [False, True, False, True, False]
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(module(features[rows], labels[rows])[1], attended[rows])


@pytest.mark.parametrize("accuracy", ["mart", "trades"])
def test_morel_joins_both_objectives(registry, accuracy):
    model, images, labels, rng, attack = setting()
    spec, options = find_objective(f"morel(accuracy={accuracy},preference=0.3,alpha=0.01,width=8)", registry)
    torch.manual_seed(0)
    module = spec.module(model, images[:2], **options).double()
    loss, metrics = evaluate(
        registry, f"morel(accuracy={accuracy},preference=0.3,alpha=0.01,width=8)", model, images, labels, rng, attack,
        module=module,
    )  # fmt: skip
    base, _ = evaluate(registry, f"{accuracy}(beta=6)", model, images, labels, rng, attack)
    adv_images = attack(images, labels)
    one, attended = module(images.flatten(1), labels)
    two, _ = module(adv_images.flatten(1), labels)
    apart = 1 - (one * two).sum(dim=1) / one.norm(dim=1) / two.norm(dim=1)
    features = apart + 0.01 * multi_positive_contrast(attended, labels, 0.1)
    torch.testing.assert_close(
        loss, (0.3 + 2e-5) * features + (0.7 + 2e-5) * base, check_dtype=False, rtol=1e-5, atol=0
    )
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if "bias" not in n)
    assert set(metrics) == {"correct", "correct_clean", "apart"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fgsm_pgi"])  # which needs a memory: test_prior
def test_every_objective_gives_a_loss_and_correct_for_each_sample(registry, name):
    torch.manual_seed(0)
    model = resnet(4).train()
    images, labels, rng = torch.rand(8, 3, 32, 32), torch.arange(8), SampleRng(3, torch.arange(8))
    inner = prepare_inner("pgd(steps=2)", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(model, images)
    spec, options = find_objective(name, registry)
    more = {"module": spec.module(model, images[:2], **options)} if spec.module else {}
    attack = inner.batch(rng)
    loss, metrics = spec.function(model, images, labels, attack=attack, rng=rng, **options, **more)
    assert loss.shape == metrics["correct"].shape == (8,)
    assert set(metrics["correct"].tolist()) <= {0.0, 1.0}
    assert not any(values.requires_grad for values in metrics.values())
    loss.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert bool(inner.count.forward) == (name not in ("standard", "free", "ibp", "crown_ibp"))
    rows = inner.count.forward
    with torch.no_grad():
        again, _ = spec.function(model, images, labels, attack=attack, rng=rng, **options, **more)
    torch.testing.assert_close(again, loss)  # in train mode: the same images, the same statistics
    assert inner.count.forward == rows


def test_mistakes_name_what_is_right(registry):
    with raises("unknown-objective", UserError, "'trade'", "'trades'"):
        find_objective("trade", registry)
    with raises("unknown-option", UserError, "trades", "'bta'", "'beta'"):
        find_objective("trades(bta=1)", registry)
    with pytest.raises(UserError, match="must be a number such as 5.0, got 'high'"):
        find_objective("mart(beta=high)", registry)
    with pytest.raises(
        UserError, match="value of option 'accuracy' of objective 'morel': 'marts'. Did you mean 'mart'?"
    ):
        find_objective("morel(accuracy=marts)", registry)
    spec, _ = find_objective("morel", registry)
    with raises("bad-model", UserError, "'morel'", "features", "Sequential"):
        check_model(spec, nn.Sequential(nn.Flatten()))
    check_model(spec, Softmax())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trades(beta=-1)", "The objective's beta, the weight of its second term, must be 0 or more; got -1."),
        ("mart(beta=-0.5)", "The objective's beta, the weight of its second term, must be 0 or more; got -0.5."),
        ("n_fgsm(k=-1)", "n_fgsm: k, the noise in units of eps, must be 0 or more; got -1."),
        (
            "n_fgsm(step_size=0)",
            "step_size 0 is not a number above 0. Write a fraction such as '2/255' or a decimal such as 0.01.",
        ),
        ("morel(preference=1.5)", "morel: preference, the share of the features, lies between 0 and 1; got 1.5."),
        ("morel(temperature=0)", "temperature above 0; got alpha=1e-05, temperature=0."),
        ("morel(heads=3)", "morel: width must be a multiple of heads, both from 1; got width=128, heads=3."),
        ("morel(beta=-2)", "must be 0 or more; got -2."),
    ],
)
def test_values_that_cannot_be_are_refused_before_training(registry, text, message):
    with pytest.raises(UserError) as caught:
        find_objective(text, registry)
    assert str(caught.value).endswith(message)


def test_a_strangers_objective_comes_through_the_same_door():
    def mine(model, images, labels, *, attack, rng, power: float = 2.0):
        return F.cross_entropy(model(images), labels, reduction="none") ** power, {"correct": labels.float()}

    registry = Registry()

    def check(*, power):
        if power < 1:
            raise UserError("power must be 1 or more.")

    registry.add_objective("mine", mine, check=check)
    with pytest.raises(UserError, match="power must be 1 or more"):
        find_objective("mine(power=0.5)", registry)
    spec, options = find_objective("mine(power=3)", registry)
    assert isinstance(spec, ObjectiveSpec)
    assert (spec.update, spec.features, options) == ("", False, {"power": 3.0})


def test_running_statistics_of_trades_take_in_clean_and_adversarial_images_once_each():
    """The authors' code passes clean, adversarial, then clean images again: the difference that the recipes name."""
    norm = nn.BatchNorm2d(1, momentum=0.5)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(4, 2))
    clean, adv = torch.full((2, 1, 2, 2), 0.2), torch.full((2, 1, 2, 2), 0.6)
    trades(model, clean, torch.tensor([0, 1]), attack=Fixed(adv), rng=None)
    assert norm.running_mean.item() == pytest.approx(0.5 * (0.5 * 0.2) + 0.5 * 0.6)


class Fixed:
    """An inner attack that returns given images."""

    label_smoothing = 0.0

    def __init__(self, adv_images):
        self.adv_images = adv_images

    def __call__(self, images, labels, loss=None):
        return self.adv_images


@pytest.mark.parametrize("name", ["standard", "pgd_at", "trades(beta=2)", "n_fgsm", "free"])
def test_with_mixed_labels_the_cross_entropy_is_the_mean_of_both(registry, name):
    """Shares of 0.3 and 0.7 of two classes: CE is linear in them, and whole shares give what the classes give."""
    spec, options = find_objective(name, registry)
    assert spec.function.takes_mixed_labels
    model, labels = Softmax(), torch.tensor([0, 1])
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adv_images = (images + 0.05).clamp(0, 1)

    class Attack(Fixed):
        threat = ThreatModel("Linf", EPS)

        def once(self, key, make, *tensors):
            return self.adv_images

    def loss(shares):
        return spec.function(model, images, shares, attack=Attack(adv_images), rng=None, **options)[0]

    first, second = F.one_hot(labels, 3).double(), F.one_hot(labels + 1, 3).double()
    assert torch.allclose(loss(first), loss(labels))
    assert torch.allclose(loss(0.3 * first + 0.7 * second), 0.3 * loss(first) + 0.7 * loss(second))


def test_mixed_labels_go_with_objectives_that_take_them(registry):
    check_mixed(find_objective("trades", registry)[0], "pgd", "cutmix")
    check_mixed(find_objective("mart", registry)[0], "pgd", None)
    with raises("options-conflict", UserError, "mart"):
        check_mixed(find_objective("mart", registry)[0], "pgd", "cutmix")
    with raises("options-conflict", UserError, "apgd-ce"):
        check_mixed(find_objective("trades", registry)[0], "apgd-ce", "mixup")
