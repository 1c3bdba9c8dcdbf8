"""What a run knows besides its model: an attack that reaches what later calls go by changes none of them."""

from __future__ import annotations

import gc
from fractions import Fraction

import pytest
import torch

import robustdup
from robustdup.data.dataset import from_tensors
from robustdup.errors import RunError
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.cascade import CascadeResult, CleanSamples, StageResult
from robustdup.evaluation.clean import CleanAnswers
from robustdup.evaluation.context import Context, EngineOptions
from robustdup.evaluation.engine import evaluate_model
from robustdup.evaluation.held import Held
from robustdup.plugins import AttackSpec
from robustdup.records import Outcome
from robustdup.threat import ThreatModel
from tests.evaluation.test_guard import Net, points, step
from tests.raising import raises

# Of no other test: what is reached here is of this run alone.
EPS = ("0.0101", "0.0202", "0.0303")
ONE_NORM = tuple(("Linf", eps) for eps in EPS)
UNION = (("Linf", EPS[0]), ("L2", EPS[1]), ("L1", EPS[2]))
N = 20

OF_THE_RUN = {
    ThreatModel: lambda threat: threat.eps_text in EPS,
    CascadeResult: lambda result: result.threat.eps_text in EPS,
    StageResult: lambda stage: len(stage.outcome) == N,
    CleanSamples: lambda samples: len(samples.labels) == N,
    CleanAnswers: lambda clean: len(clean.answers.margin) == N,
    Context: lambda context: bool(context.held),
    PlannedStage: lambda stage: stage.spec.name in ("evil", "honest"),
}


def reached(kind):
    return [thing for thing in gc.get_objects() if type(thing) is kind and OF_THE_RUN[kind](thing)]


def lists_of(kind):
    """Return the lists that hold nothing else."""
    lists = [thing for thing in gc.get_objects() if type(thing) is list and thing]
    return [table for table in lists if all(type(item) is kind and OF_THE_RUN[kind](item) for item in table)]


def eps_of_all():
    for threat in reached(ThreatModel):
        object.__setattr__(threat, "eps", Fraction(1))


def numbers_of_all():
    for threat in reached(ThreatModel):
        threat.eps._numerator = threat.eps._denominator


def classes_of_all():
    class Free(ThreatModel):
        def violations(self, clean, adv_images):
            found = super().violations(clean, adv_images)
            return type(found)(found.not_finite & False, found.box & False, found.ball & False)

    for threat in reached(ThreatModel):
        object.__setattr__(threat, "__class__", Free)


def lists_of_threats():
    for table in lists_of(ThreatModel):
        table[:] = [ThreatModel(threat.norm, 1) for threat in table]


def threats_of_results():
    for result in reached(CascadeResult):
        result.threat = ThreatModel("Linf", 1)


def what_else_is_held():
    for context in reached(Context):
        context.held.clear()
        context.seed, context.draws = 7, 0
    for clean in reached(CleanAnswers):  # then much may differ by chance
        object.__setattr__(clean, "randomized", True)
    eps_of_all()


QUIET = [eps_of_all, numbers_of_all, classes_of_all, lists_of_threats, threats_of_results, what_else_is_held]


def outcomes_broken():
    for result in reached(CascadeResult):
        result.broken.fill_(True)


def outcomes_of_stages():
    for stage in reached(StageResult):
        stage.outcome.fill_(Outcome.BROKEN)


def clean_answers():
    for samples in reached(CleanSamples):
        samples.clean.correct_share.zero_()


def labels_of_later_calls():
    for samples in reached(CleanSamples):
        samples.labels.copy_(1 - samples.labels)


def images_of_later_calls():
    for samples in reached(CleanSamples):
        samples.images.copy_(1 - samples.images)


LOUD = [outcomes_broken, outcomes_of_stages, clean_answers, labels_of_later_calls, images_of_later_calls]


def stages(function):
    """The hostile attack, and after it an honest one that moves by 0.3, which breaks all where the ball allows it."""
    norms = ("Linf", "L2", "L1")
    both = [
        AttackSpec(name="evil", function=function, norms=norms),
        AttackSpec(name="honest", function=step, norms=norms),
    ]
    return [PlannedStage(spec, {"steps": 3} if spec.name == "honest" else {}, {}) for spec in both]


def attack_that(does):
    def evil(model, images, labels, threat, *, rng):
        does()
        return step(model, images, labels, threat, rng=rng)

    return evil


def run(does, threats=ONE_NORM, model=None):
    images, labels = points()
    own = [ThreatModel(norm, eps) for norm, eps in threats]
    return evaluate_model(
        model or Net(), from_tensors(images, labels, spec="python"), stages(attack_that(does)), own,
        EngineOptions(batch_size=10, diagnostics=False, individual=True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("does", "threats"), [*((does, ONE_NORM) for does in QUIET), (eps_of_all, UNION), (lists_of_threats, UNION)]
)
def test_threat_models_of_later_calls_are_those_of_the_start(does, threats):
    record = run(does, threats).record
    assert (record.robust_accuracy.value, record.model.randomized) == (1.0, False)
    assert [point.value for point in record.curve.values()] in ([], [1.0, 1.0, 1.0])
    assert [attack.n_broken for attack in record.attacks] == [0] * len(record.attacks)
    assert any("put back" in event for event in record.events)


@pytest.mark.parametrize("does", LOUD, ids=lambda does: does.__name__)
def test_samples_and_results_that_were_changed_end_the_run(does):
    with raises("model-changed", RunError, "An attack changed what the judge stands on, and it cannot be put back"):
        run(does)


def test_an_honest_run_breaks_all_where_the_ball_allows_it():
    assert run(lambda: None, (("Linf", EPS[0]), ("Linf", "0.3"))).record.robust_accuracy.value == 0.0


def test_later_stages_and_their_options_stay():
    def drop():
        for table in lists_of(PlannedStage):
            del table[1:]
        for stage in reached(PlannedStage):
            stage.options.clear()
            stage.call_options["steps"] = 0

    record = run(drop).record
    assert [(attack.name, attack.options) for attack in record.attacks] == [("evil", {}), ("honest", {"steps": 3})]


def test_an_object_that_is_judged_again_at_the_end_is_looked_at_where_it_is():
    """Larger images than what is compared at each call, changed and put back by the attack itself: the end shows it."""
    images, labels = points()
    large = images.repeat(1, 1, 60, 60)  # 20 of 240 x 240 values: more than MOST_VALUES
    kept = []

    def evil(model, images, labels, threat, *, rng):
        for samples in (samples for samples in reached(CleanSamples) if samples.images.shape == large.shape):
            if not kept:
                kept.append(samples.images.clone())
                samples.images.copy_(1 - samples.images)
            else:
                samples.images.copy_(kept[0])
        return images

    class Mean(torch.nn.Module):
        def forward(self, images):
            mean = images.mean(dim=(1, 2, 3)) - 0.5
            return torch.stack([-mean, mean], 1) * 10

    with raises("model-changed", RunError, "A second look at the final examples judges 10 of 20"):
        robustdup.evaluate(
            Mean(), large, labels, eps="0.01", attacks=[robustdup.register_attack("evil-late", norms=["Linf"])(evil)],
            batch_size=10, progress=False, diagnostics=False,
        )  # fmt: skip


def test_what_is_held_is_compared_by_its_values():
    threat = ThreatModel("L2", "0.5")
    held = Held([threat], {"steps": [1, 2]})
    assert held.put_back() == []
    threat.eps._numerator = 7
    assert held.put_back() == ["a number of the run"]
    assert threat.eps == Fraction(1, 2)
