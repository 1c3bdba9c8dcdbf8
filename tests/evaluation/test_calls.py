"""Calls of native attacks: a prepared copy is attacked, the original judges, and nothing depends on the call's size."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

from robustdup.attacks.losses import ce
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.errors import AttackWarning
from robustdup.evaluation import cascade
from robustdup.evaluation.calls import Call, PlannedStage, call_here, dropped, load_call, save_call
from robustdup.evaluation.cascade import CallSize, CleanSamples, run_cascade
from robustdup.evaluation.context import Context
from robustdup.evaluation.referee import judge, judge_images
from robustdup.models.attack_copy.prepare import Prepared
from robustdup.plugins import AttackSpec
from robustdup.records import Outcome
from robustdup.threat import ThreatModel

THREAT = ThreatModel("Linf", "0.1")


def push(model, images, labels, threat, *, rng, size: float = 0.1):
    """Move all pixels towards the other class, and drop what is fooled: 1 look at the start, 1 at the end."""
    point, active = images.clone(), torch.arange(len(images))
    for _ in range(2):
        with torch.no_grad():
            logits = model(point[active])
        active = active[logits.argmax(1) == labels[active]]
        point[active] += torch.where(labels[active] == 1, -size, size).view(-1, 1, 1, 1)
    return point.clamp(0, 1)


def planned(function, *, kind="bounded", when="always", source="native", batching="pool", cost=None, **options):
    spec = AttackSpec("push", function, ("Linf",), kind=kind, batching=batching, source=source, cost=cost)
    return PlannedStage(spec, options, options, when=when)


def setting(model, points, **changes):
    images, labels = points
    original = Passes(model, 4)
    clean = judge_images(original, images, labels)
    context = Context(original, model, torch.device("cpu"), batch_size=8, micro_batch=4, draws=1, seed=0)
    for name, value in changes.items():
        setattr(context, name, value)
    return CleanSamples(images, labels, torch.arange(len(labels)), clean), context


def prepared(model: nn.Module) -> Prepared:
    return Prepared(model, folded=0, channels_last=False, compiled="off", precision="fp32", error=0.0, notes=())


def test_native_attacks_get_the_prepared_copy_and_others_a_fresh_one_each(linear, points):
    seen = []

    def looks(model, images, labels, threat, *, rng):
        seen.append(model.model)
        return images

    ready = copy.deepcopy(linear)
    samples, context = setting(linear, points, attack_copy=prepared(ready))
    stages = [planned(looks), planned(looks, source="mine"), planned(looks, batching="batch")]
    run_cascade(stages, samples, THREAT, context)
    native, others = seen[:5], seen[5:]
    assert all(model is ready for model in native)
    assert len({id(model) for model in others}) == 10
    assert not {id(ready), id(linear)} & {id(model) for model in others}


def test_a_point_that_only_the_prepared_copy_gives_up_is_attacked_again_on_the_original(linear, points):
    """The copy's boundary lies a little off: without a second go its points would leave too early and survive."""
    off = copy.deepcopy(linear)
    off.scale.requires_grad_(False)
    shifted = nn.Sequential(off, Shift(2e-3))
    samples, context = setting(linear, points, attack_copy=prepared(shifted), usual_margin=2.0)

    def creep(model, images, labels, threat, *, rng):
        """Small steps that stop at the first success, as AutoAttack's do."""
        point, active = images.clone(), torch.arange(len(images))
        for _ in range(200):
            with torch.no_grad():
                active = active[model(point[active]).argmax(1) == labels[active]]
            towards = torch.where(labels[active] == 1, -0.0005, 0.0005).view(-1, 1, 1, 1)
            point[active] = threat.project(images[active], point[active] + towards)
        return point

    result = run_cascade([planned(creep)], samples, THREAT, context)
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    assert torch.equal(result.broken, gap < 0.1)
    notes = [note for call in result.stages[0].calls for note in call.notes]
    assert any("attacked again on the original model" in note for note in notes)
    context.stand_in = True  # an attack on another model may well be fooled alone: that is no rounding
    alone = run_cascade([planned(creep)], samples, THREAT, context)
    assert int(alone.broken.sum()) < int(result.broken.sum())


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits):
        return logits + torch.tensor([self.by, -self.by])


def test_what_an_attack_warns_of_is_kept_and_other_warnings_are_not(linear, points):
    def warns(model, images, labels, threat, *, rng):
        warnings.warn("push: three classes are too few", AttackWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)
        return images

    samples, context = setting(linear, points)
    result = run_cascade([planned(warns)], samples, THREAT, context)
    assert {note for call in result.stages[0].calls for note in call.notes} == {"push: three classes are too few"}


def test_looks_say_how_many_points_were_broken_after_how_many_passes(linear, points):
    samples, context = setting(linear, points, batch_size=40)
    result = run_cascade([planned(push, size=0.05)], samples, THREAT, context)
    (call,) = result.stages[0].calls
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    # Two looks of one pass: the second finds what the first push of 0.05 broke; the push after it is seen by the referee.
    first, second = int((gap < 0.05).sum()), int(((gap >= 0.05) & (gap < 0.1)).sum())
    assert call.broken_after == [(2, first + second)]


def test_looks_count_forward_and_backward_passes_and_say_nothing_where_rows_come_back(linear, points):
    images, labels = points
    verdict = judge(Passes(linear, 4), images, images, labels, THREAT)
    model = Passes(linear, 4)
    for rows in (40, 30, 30):
        input_gradient(model, images[:rows], lambda logits, part: ce(logits, labels[part]))
    assert dropped(model, verdict) == [(2, 10)]
    model(images[:35])
    assert dropped(model, verdict) == []


def test_results_do_not_depend_on_the_size_of_calls_and_mixed_sizes_are_resumed(linear, points, tmp_path):
    def noisy(model, images, labels, threat, *, rng):
        return threat.project(images, images + rng.uniform(images.shape[1:], low=-0.1, high=0.1))

    samples, context = setting(linear, points, batch_size=40)
    whole = run_cascade([planned(noisy), planned(push)], samples, THREAT, context)
    for size in (3, 7):
        context.batch_size = size
        parts = run_cascade([planned(noisy), planned(push)], samples, THREAT, context, folder=tmp_path)
        assert torch.equal(parts.adv_images, whole.adv_images)
        files = sorted(tmp_path.rglob("*.safetensors"))
        for file in files[1::3]:
            file.unlink()  # the next round has other sizes around the calls that are left
    made = []
    again = run_cascade(
        [planned(noisy), planned(push)], samples, THREAT, context, folder=tmp_path,
        caller=lambda works, tick: call_here([planned(noisy), planned(push)], context)(
            (made.append(w) or w for w in works), tick
        ),
    )  # fmt: skip
    assert torch.equal(again.adv_images, whole.adv_images)
    assert 0 < sum(len(work.positions) for work in made) < 40
    rows = torch.cat([call.positions for call in again.stages[0].calls])
    assert rows.tolist() == list(range(40))


def test_calls_may_come_from_elsewhere(linear, points):
    samples, context = setting(linear, points)
    stages = [planned(push, size=0.05), planned(push)]
    numbers = []

    def elsewhere(works, tick):
        for call, work in ((call_here(stages, context)(iter([work]), tick), work) for work in works):
            numbers.append(work.number)
            yield from call

    one = run_cascade(stages, samples, THREAT, context, caller=elsewhere)
    assert torch.equal(one.adv_images, run_cascade(stages, samples, THREAT, context).adv_images)
    assert [number for number, _ in itertools.groupby(numbers)] == [0, 1]


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 32), (60.0, 8), (480.0, 4)])
def test_the_next_call_is_as_large_as_a_minute_allows(linear, points, seconds, expected):
    _, context = setting(linear, points, batch_size_given=False)
    size = CallSize(planned(push), context, pixels=16, n=4000)
    assert size.now == 8
    size.learn(Call(torch.arange(8), None, seconds, Count(), Count()))
    assert size.now == expected


def test_call_sizes_are_bounded_by_cost_memory_and_workers(linear, points):
    _, context = setting(linear, points, batch_size_given=False, seconds=(0.001, 0.004))
    expensive = planned(push, cost=(10_000, 10_000))
    assert CallSize(expensive, context, pixels=16, n=4000).now == 7  # 300 s over 40 s a point
    assert CallSize(planned(push), context, pixels=cascade.CALL_MEMORY // 5, n=4000).now == 5
    grown = CallSize(planned(push), context, pixels=16, n=4000)
    grown.now = 500
    grown.learn(Call(torch.arange(8), None, 1e-6, Count(), Count()))  # as quick as can be
    assert grown.now == cascade.LARGEST_CALL["cpu"]
    context.workers = 4
    assert CallSize(planned(push), context, pixels=16, n=20).now == 5
    context.batch_size_given = True
    assert CallSize(expensive, context, pixels=16, n=20).now == 8


def test_stages_for_masked_models_run_only_on_signs_and_the_result_says_which(linear, points):
    samples, context = setting(linear, points)
    weak, strong = planned(push, size=0.02), planned(push, when="masked")
    honest = run_cascade([weak, strong], samples, THREAT, context)
    assert len(honest.stages) == 1
    assert honest.masking is not None
    assert honest.masking.reasons == ()
    assert honest.masking.passes.backward > 0

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear

        def forward(self, images):
            return self.inner((images * 255).round() / 255)

    samples, context = setting(Rounded(), points)
    masked = run_cascade([weak, strong], samples, THREAT, context)
    assert len(masked.stages) == 2
    assert masked.masking is not None
    assert "the gradient is zero for 100%" in masked.masking.reasons[0]
    assert int((masked.stages[1].outcome == Outcome.BROKEN).sum()) > 0


def test_the_nearest_adversarial_image_is_remembered_inside_the_ball_and_out(linear, points):
    def to_boundary(model, images, labels, threat, *, rng):
        gap = (images[:, :1, :1, :1] - 0.5).abs() + 1e-3
        return images + torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1) * gap

    samples, context = setting(linear, points)
    stages = [planned(push), planned(to_boundary, kind="minimum-norm")]
    gap = (points[0][:, 0, 0, 0] - 0.5).abs().double()
    result = run_cascade(stages, samples, THREAT, context, min_distance=True)
    assert ((result.nearest - gap > -1e-6) & (result.nearest - gap < 1.01e-3)).all()
    survivors_only = run_cascade(stages, samples, THREAT, context)
    assert (survivors_only.nearest[gap < 0.05] > 0.09).all()  # broken by the first: nobody looked for the nearest


def test_a_call_is_saved_whole_and_a_failed_one_is_not_taken(linear, points, tmp_path):
    samples, context = setting(linear, points, batch_size=40)
    (call,) = run_cascade([planned(push, size=0.05)], samples, THREAT, context).stages[0].calls
    save_call(tmp_path / "0.safetensors", call)
    loaded = load_call(tmp_path / "0.safetensors")
    assert loaded is not None
    assert loaded.broken_after == call.broken_after
    assert torch.equal(loaded.positions, call.positions)
    call.error = "boom"
    save_call(tmp_path / "1.safetensors", call)
    assert load_call(tmp_path / "1.safetensors") is None
