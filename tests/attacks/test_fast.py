"""`fast` against AutoAttack itself on the same points, its passes counted by a model of the test's, and who escalates."""

import pytest
import torch
from torch import nn

from benchmarks.masked import masked
from benchmarks.zoo_opaque import Whole
from robustdup import Passes, SampleRng, ThreatModel, UserError, evaluate
from robustdup.attacks.cosine_pgd import (
    cosine_pgd,
    cosine_pgd_cost,
    cosine_pgd_t,
    cosine_pgd_t_cost,
    tempered_probability_cw,
)  # fmt: skip
from robustdup.attacks.losses import cw, misclassified, probability_cw
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.errors import AttackWarning
from robustdup.models.load import ModelOptions, load_builtin
from tests.lanes import each_once
from tests.raising import raises

EPS = {"Linf": "0.15", "L2": "0.6"}
AUTOATTACK_PASSES = 9767  # of a survivor, forward and backward, Linf and L2


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def points(n, first=0):
    """Return the built-in robust digits classifier, images and labels."""
    rows = digits("digits", DataOptions(split="test"))
    return load_builtin("digits-robust", ModelOptions()).eval(), *rows.fetch(range(first, first + n))


class FirstClasses(nn.Module):
    """The classifier of the first `classes` digits alone."""

    def __init__(self, model, classes):
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, images):
        return self.model(images)[:, : self.classes]


ROWS = {"forward": 0, "backward": 0}  # not in the model: what an attack changes there is put back


class Counting(nn.Module):
    """Counts the rows that go through it, forward and backward, in ROWS."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        ROWS.update(forward=0, backward=0)

    def forward(self, images):
        logits = self.model(images)
        ROWS["forward"] += len(images)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient):
        ROWS["backward"] += len(gradient)

    def __deepcopy__(self, memo):
        return self  # so that what is done to copies counts here


def robust_count(record):
    return round(record.robust_accuracy.value * record.n)


@pytest.mark.parametrize(
    ("norm", "n", "share"),
    [
        ("Linf", 14, 20),  # of few samples what is looked at before the attacks weighs more
        *(pytest.param(norm, 60, 25, marks=pytest.mark.slow) for norm in ("Linf", "L2")),
    ],
)
def test_it_finds_what_autoattack_finds_within_a_point_in_a_25th_of_the_passes(norm, n, share):
    model, images, labels = points(n)
    counting = Counting(model)
    settings = {"norm": norm, "eps": EPS[norm]}
    record = evaluate(counting, images, labels, attacks="fast", micro_batch=1, fold=False, **settings).record
    passes = ROWS["forward"] + ROWS["backward"]
    reference = evaluate(model, images, labels, norm=norm, eps=EPS[norm], attacks="apgd-t(steps=50)").record
    survivors = robust_count(record)
    assert survivors > n / 6
    assert survivors - robust_count(reference) <= 1
    assert record.robust_accuracy.value < record.clean_accuracy.value - 0.2
    assert passes <= AUTOATTACK_PASSES / share * survivors
    assert passes > 100 * survivors
    assert record.escalation is not None
    assert not record.escalation.escalated


@pytest.mark.parametrize(
    ("wrap", "escalates", "blind"),
    [
        (None, False, False),
        (lambda model: masked("shattered", model), True, False),
        pytest.param(Whole, True, True, marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_where_gradients_mislead_and_only_there(wrap, escalates, blind):
    """On the first four classes: each target of a targeted attack is a run of its own."""
    model, images, labels = points(140, first=100)
    rows, model = (labels < 4).nonzero()[: 2 if blind else 12, 0], FirstClasses(model, 4)
    judged = wrap(model) if wrap else model
    record = evaluate(judged, images[rows], labels[rows], eps="0.15", attacks="fast").record
    assert record.escalation is not None
    assert record.escalation.escalated is escalates
    assert bool(record.escalation.reasons) is escalates
    names = [attack.name for attack in record.attacks]
    assert ("straight-through" in names) is escalates
    assert all((name in names) is blind for name in ("surrogate", "spsa", "boundary-walk", "apgd-t"))
    assert record.reliable is not blind or record.robust_accuracy.value == 0


def test_logits_a_thousand_times_larger_do_not_hide_what_breaks():
    model, images, labels = points(60)
    threat, rng = ThreatModel("Linf", "0.15"), SampleRng(0, torch.arange(60))
    wrong = []
    for judged in (model, masked("scaled", model)):
        adv_images = cosine_pgd(Passes(judged, 60), images, labels, threat, rng=rng, steps=10)
        wrong.append(misclassified(model(adv_images), labels))
    assert int(wrong[0].sum()) > 10
    assert abs(int(wrong[1].sum()) - int(wrong[0].sum())) <= 2


@each_once(norm=["Linf", "L2", "L1"], classes=[2, 3, 10])
def test_any_number_of_classes_in_every_norm(norm, classes):
    model, images, labels = points(120)
    rows = (labels < classes).nonzero()[:12, 0]
    judged = FirstClasses(model, classes)
    eps = {"Linf": 0.3, "L2": 1.8, "L1": 5}[norm]
    record = evaluate(judged, images[rows], labels[rows], norm=norm, eps=eps, attacks="fast").record
    assert record.n_undecided == 0
    assert record.robust_accuracy.value < record.clean_accuracy.value
    assert not any(attack.violations for attack in record.attacks)


def test_two_classes_are_attacked_on_the_margin_and_it_says_so():
    model, images, labels = points(60)
    rows = (labels < 2).nonzero()[:6, 0]
    threat, rng = ThreatModel("Linf", "0.3"), SampleRng(0, rows)
    with pytest.warns(AttackWarning, match="needs at least 4 classes, the model has 2"):
        adv_images = cosine_pgd_t(FirstClasses(model, 2), images[rows], labels[rows], threat, rng=rng)
    assert not threat.violations(images[rows], adv_images).any.any()


@each_once(attack=[cosine_pgd, cosine_pgd_t], norm=["Linf", "L2"])
def test_a_row_ends_the_same_to_the_bit_in_any_company(attack, norm):
    model, images, labels = points(24)
    threat, rng = ThreatModel(norm, EPS[norm]), SampleRng(3, torch.arange(24))

    def run(rows):
        return attack(Passes(model, 8), images[rows], labels[rows], threat, rng=rng[rows], steps=6, restarts=2)

    together = run(torch.arange(24))
    assert bool((together != images).any())
    order = torch.arange(24).flip(0).roll(5)
    assert torch.equal(run(order), together[order])
    assert torch.equal(run(torch.arange(7, 19)), together[7:19])
    assert torch.equal(run(torch.tensor([11])), together[11:12])


@pytest.mark.parametrize(
    ("attack", "cost", "options"),
    [(cosine_pgd, cosine_pgd_cost, {"steps": 5, "restarts": 2, "eot": 1}),
     (cosine_pgd, cosine_pgd_cost, {"steps": 4, "restarts": 1, "eot": 3}),
     (cosine_pgd_t, cosine_pgd_t_cost, {"steps": 5, "restarts": 2, "eot": 1, "targets": 3})],
)  # fmt: skip
def test_a_survivor_costs_what_is_stated_and_a_fooled_row_less(attack, cost, options):
    model, images, labels = points(10)
    counting = Counting(model)
    tiny = ThreatModel("Linf", "1e-6")
    attack(counting, images, labels, tiny, rng=SampleRng(0, torch.arange(10)), **options)
    # An average over draws needs no gradient where only loss and success are asked for.
    assert (ROWS["forward"], ROWS["backward"]) == tuple(10 * passes for passes in cost(options))
    counting = Counting(model)
    attack(counting, images, labels, ThreatModel("Linf", "1"), rng=SampleRng(0, torch.arange(10)), **options)
    if options["eot"] == 1:
        assert ROWS["backward"] < 0.8 * 10 * cost(options)[1]
    else:  # no draw says that a sample is lost for good
        assert ROWS["backward"] == 10 * cost(options)[1]


def test_survivors_return_their_iterate_of_smallest_margin():
    model, images, labels = points(40)
    threat, rng = ThreatModel("Linf", "0.05"), SampleRng(0, torch.arange(40))
    adv_images = cosine_pgd(model, images, labels, threat, rng=rng)
    gain = (cw(model(adv_images), labels) - cw(model(images), labels)).detach()
    assert float(gain.min()) > 0
    assert not threat.violations(images, adv_images).any.any()


def test_the_tempered_margin_is_the_probability_cw_where_the_model_is_not_sure():
    logits = torch.tensor([[3.0, 1.0, 0.0], [-2.0, 4.0, 0.0]])
    labels = torch.tensor([0, 0])
    assert torch.equal(tempered_probability_cw(logits, labels), probability_cw(logits, labels))
    sure = torch.tensor([[9000.0, 0.0, -100.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(tempered_probability_cw(sure, labels[:1]).sum(), sure)
    assert gradient[0, 0] < 0 < gradient[0, 1]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"eot": 0}])
@pytest.mark.parametrize("attack", [cosine_pgd, cosine_pgd_t])
def test_settings_that_cannot_work_are_refused(attack, wrong):
    model, images, labels = points(4)
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be at least 1, got 0"):
        attack(model, images, labels, ThreatModel("Linf", "0.1"), rng=SampleRng(0, torch.arange(4)), **wrong)


def test_no_targets_and_an_unknown_loss_are_refused():
    model, images, labels = points(4)
    threat, rng = ThreatModel("Linf", "0.1"), SampleRng(0, torch.arange(4))
    with raises("bad-option", UserError, "targets", "at least 1"):
        cosine_pgd_t(model, images, labels, threat, rng=rng, targets=0)
    with raises("unknown-loss", UserError, "probability-margin"):
        cosine_pgd(model, images, labels, threat, rng=rng, loss="probability-margn")
