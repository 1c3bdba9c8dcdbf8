"""Which number is believed: one whose attacks were seen to get through, and no other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from benchmarks.masked import masked
from benchmarks.zoo import wrapped
from robustdup import Passes, ThreatModel, evaluate
from robustdup.attacks.guided import Guided
from robustdup.attacks.see_through import SeeThrough, smooth_copy
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.evaluation.routes import Left, leads_somewhere
from robustdup.models.load import ModelOptions, load_builtin
from tests.raising import raises

QUICK = "apgd-ce(steps=10),apgd-dlr(steps=10)"


def correct_points(n=16):
    images, labels = digits("digits", DataOptions(split="test")).fetch(range(2 * n))
    model = load_builtin("digits-robust", ModelOptions()).eval()
    right = model(images).argmax(dim=1) == labels
    return model, images[right][:n], labels[right][:n]


class Staircase(nn.Module):
    """Logits rounded down to halves."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return (2 * self.model(images)).round() / 2


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class WrongWay(nn.Module):
    """True answers with the gradient turned round."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(Turned.apply(images))


def verdict(model, images, labels, attacks=QUICK):
    return evaluate(model, images, labels, eps="0.1", attacks=attacks, fold=False).record


def test_an_honest_model_is_believed():
    model, images, labels = correct_points()
    record = verdict(model, images, labels)
    assert record.reliable is True
    assert record.unreliable_reasons == []


@pytest.mark.parametrize("wrap", [Staircase, lambda model: masked("quantised", model), WrongWay])
def test_a_mask_that_nothing_sees_through_is_not_believed(wrap):
    model, images, labels = correct_points()
    record = verdict(wrap(model), images, labels)
    assert record.robust_accuracy.value > 0
    assert record.reliable is False
    assert record.unreliable_reasons


def test_a_scale_that_hides_one_loss_alone_is_seen_through_by_the_other():
    model, images, labels = correct_points()
    alone = verdict(masked("scaled", model), images, labels, attacks="apgd-ce(steps=10)")
    assert alone.reliable is False
    both = verdict(masked("scaled", model), images, labels)
    assert both.reliable is True
    assert any("apgd-dlr was seen to get through" in sign.message for sign in both.diagnostics)
    assert not any(sign.severity == "serious" for sign in both.diagnostics)


@pytest.mark.parametrize("attacks", [QUICK, "pgd(steps=10)", "pgd(steps=10),square(queries=20)"])
def test_attacks_that_do_not_escalate_are_asked_whether_the_loss_follows_its_gradient(attacks):
    model, images, labels = correct_points()
    record = verdict(masked("shattered", model), images, labels, attacks)
    assert "erratic_gradients" in [sign.code for sign in record.diagnostics if sign.severity == "serious"]
    assert record.reliable is False
    assert any("the loss does not follow its gradient" in reason for reason in record.unreliable_reasons)
    honest = verdict(model, images, labels, attacks)
    assert honest.reliable is True
    assert honest.diagnostics == []
    spent = [passes.diagnostics_backward for passes in (record.passes, honest.passes)]
    assert min(spent) > 0


class HalfDetached(nn.Module):
    """An honest network of whose pixels every second one passes no gradient on."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.followed = (torch.arange(64) % 2 == 0).view(8, 8)

    def forward(self, images):
        return self.model(torch.where(self.followed, images, images.detach()))


def test_a_gradient_that_lacks_half_of_the_pixels_is_no_way_through():
    model, images, labels = correct_points()
    record = verdict(HalfDetached(model), images, labels)
    assert "partial_gradients" in [sign.code for sign in record.diagnostics if sign.severity == "serious"]
    assert record.reliable is False
    options = {"eps": "0.15", "attacks": "fast", "fold": False}
    whole = evaluate(model, images[:6], labels[:6], **options).record
    seen_through = evaluate(HalfDetached(model), images[:6], labels[:6], **options).record
    assert seen_through.robust_accuracy.value == whole.robust_accuracy.value
    assert seen_through.reliable is True


@pytest.mark.parametrize(("wrap", "severity"), [(lambda model: model, "warning"), (Staircase, "serious")])
def test_black_box_success_after_a_weak_gradient_attack_is_no_masking(wrap, severity):
    model, images, labels = correct_points(12)
    attacks = "pgd(steps=1,step_size=0.02,random_start=false),square(queries=300)"
    record = evaluate(wrap(model), images, labels, eps="0.2", attacks=attacks, fold=False).record
    signs = {sign.code: sign for sign in record.diagnostics}
    assert signs["black_box_beats_white_box"].severity == severity
    assert record.reliable is (severity == "warning")


def test_without_diagnostics_nothing_is_said():
    model, images, labels = correct_points(4)
    record = evaluate(model, images, labels, eps="0.1", attacks="fgsm", diagnostics=False).record
    assert record.reliable is None


class Towards(nn.Module):
    """Two classes by the mean of the image: the second from `bound` on."""

    def __init__(self, bound):
        super().__init__()
        self.bound = bound

    def forward(self, images):
        score = images.mean(dim=(1, 2, 3)) - self.bound
        return torch.stack([-score, score], dim=1)


def test_under_a_stand_in_a_sample_leaves_when_the_judged_model_is_wrong():
    images, labels = torch.full((4, 1, 3, 3), 0.3), torch.zeros(4, dtype=torch.int64)
    easy, judged = Towards(0.32), Towards(0.395)  # the stand-in is wrong a fifth of the way
    attacks = "pgd(steps=10,step_size=0.01,random_start=False)"
    record = evaluate(judged, images, labels, eps="0.1", attacks=attacks, attack_model=easy).record
    assert record.robust_accuracy.value == 0


class Linear(nn.Module):
    """Two classes by the mean of the image; the slope of the backward pass is `slope` times the true one."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = slope

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3))
        score = 4 * (self.slope * mean + (mean - self.slope * mean).detach()) - 2
        return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize(("slope", "leads"), [(1.0, True), (0.01, True), (0.0, False), (-1.0, False), (3.0, False)])
def test_a_route_must_lead_where_its_gradient_points(slope, leads):
    images, labels = torch.full((4, 1, 3, 3), 0.3), torch.zeros(4, dtype=torch.int64)
    assert leads_somewhere(
        Passes(Linear()), Passes(Linear(slope)), Left(images, images, labels, torch.arange(4)), ThreatModel("Linf", "0.1"),
        seed=0,
    ) is leads  # fmt: skip
    others = Passes(Linear())
    others.model.forward = lambda images: Linear()(1 - images)  # answers otherwise
    assert not leads_somewhere(
        others, Passes(Linear(slope)), Left(images, images, labels, torch.arange(4)), ThreatModel("Linf", "0.1"), seed=0
    )


@pytest.mark.parametrize(
    ("name", "leads"),
    [
        ("bits", True),
        ("jpeg", True),
        ("quantised", True),
        ("shifted", True),
        ("staircase", True),
        ("hidden-decoy", False),
    ],
)
def test_what_sees_through_rounding_is_a_way_and_what_follows_a_decoy_is_none(name, leads):
    network, images, labels = correct_points(24)
    model = wrapped(name, network)
    left, threat = Left(images, images, labels, torch.arange(24)), ThreatModel("Linf", "0.15")
    routes = [SeeThrough(model), Guided(smooth_copy(model, images), model)]
    assert any(leads_somewhere(Passes(model), Passes(route), left, threat, seed=0) for route in routes) is leads


class Detached(nn.Module):
    """True answers without any gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.detach())


class Elsewhere(Detached):
    """Answers of another thread, where nothing that watches this one sees how they come about."""

    def forward(self, images):
        with ThreadPoolExecutor(1) as pool, torch.no_grad():
            return pool.submit(torch.no_grad()(self.model), images.detach()).result()


def test_without_a_gradient_the_attack_that_gets_through_decides():
    model, images, labels = correct_points(8)
    attacks = "apgd-ce(steps=5),straight-through(steps=20)"
    bare = verdict(model, images, labels, attacks="straight-through(steps=20)")
    record = verdict(Detached(model), images, labels, attacks=attacks)
    assert record.n_undecided == 0
    assert record.reliable is True
    assert abs(record.robust_accuracy.value - bare.robust_accuracy.value) <= 1 / 8
    assert any("are decided by straight-through, which" in event for event in record.events)
    signs = {sign.code: sign for sign in record.diagnostics}
    assert "apgd-ce could not run: no gradient" in signs["attack_failed"].message
    assert not any(sign.severity == "serious" for sign in record.diagnostics)


def test_without_a_gradient_and_without_a_way_through_there_is_a_bound():
    model, images, labels = correct_points(4)
    record = verdict(
        Elsewhere(model), images, labels, attacks="apgd-ce(steps=5),straight-through(steps=5),square(queries=20)"
    )
    assert record.n_undecided == 0
    assert record.reliable is False
    assert any("none was seen to get through" in event for event in record.events)


class Shut(nn.Module):
    """The same with a network that is no module inside."""

    def __init__(self, model):
        super().__init__()
        self.closed = [Elsewhere(model)]

    def forward(self, images):
        return self.closed[0](images)


def test_a_student_that_cannot_be_fitted_is_said_and_the_bound_is_kept(monkeypatch):
    monkeypatch.setattr("robustdup.attacks.surrogate.POOR", 1.1)
    model, images, labels = correct_points(6)
    record = verdict(Shut(model), images, labels, attacks="surrogate(fit_steps=1,steps=2,targets=0,queries=5)")
    assert any("the student gives the model's answer on" in event for event in record.events)
    assert record.robust_accuracy.value > 0
    assert record.reliable is False


def test_without_a_gradient_attacks_that_need_one_are_refused_at_once():
    model, images, labels = correct_points(4)
    for parameter in model.parameters():  # their gradients are none of the images
        parameter.requires_grad_(True)
    with raises("no-gradient", ValueError, "--attacks fast"):
        verdict(Detached(model), images, labels, attacks="apgd-ce(steps=5),square(queries=20)")


def test_in_a_union_too_the_attack_that_gets_through_decides():
    model, images, labels = correct_points(6)
    attacks = "apgd-ce(steps=5),straight-through(steps=20)"
    record = evaluate(
        Detached(model), images, labels, threat="Linf 0.1 + L2 0.5", attacks=attacks, fold=False, progress=False
    ).record
    assert record.n_undecided == 0
    assert record.reliable is True
    assert any("are decided by straight-through, which" in event for event in record.events)
