from __future__ import annotations

import re
import signal

import pytest
import torch

from robustdup.attacks.passes import Passes
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.cascade import CleanSamples, run_cascade
from robustdup.evaluation.context import Context
from robustdup.evaluation.referee import judge_images
from robustdup.plugins import AttackSpec
from robustdup.records import Outcome
from robustdup.threat import ThreatModel

THREAT = ThreatModel("Linf", "0.1")


def step(model, images, labels, threat, *, rng, size: float = 0.1):
    return (images + torch.where(labels == 1, -size, size).view(-1, 1, 1, 1)).clamp(0, 1)


def stage(function=step, name="step", take=1.0, batching="batch", **options) -> PlannedStage:
    spec = AttackSpec(name=name, function=function, norms=("Linf",), batching=batching)
    return PlannedStage(spec, options, options, take)


def setting(model, points, batch_size=8, micro_batch=4):
    images, labels = points
    original = Passes(model, micro_batch)
    clean = judge_images(original, images, labels)
    context = Context(original, model, torch.device("cpu"), batch_size, micro_batch, draws=1, seed=0)
    return CleanSamples(images, labels, torch.arange(len(labels)), clean), context


def test_survivors_only_and_worst_case_is_kept(linear, points):
    samples, context = setting(linear, points)
    result = run_cascade([stage(size=0.05), stage(size=0.1), stage(size=0.02)], samples, THREAT, context)
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    assert torch.equal(result.stages[0].outcome == Outcome.BROKEN, gap < 0.05)
    assert torch.equal(result.stages[1].outcome == Outcome.BROKEN, (gap < 0.1) & (gap >= 0.05))
    assert torch.equal(result.stages[1].outcome == Outcome.NOT_ATTACKED, gap < 0.05)
    assert torch.equal(result.broken, gap < 0.1)
    # Survivors keep their nearest miss: the second stage's, not the weaker third's.
    survivors = ~result.broken
    assert torch.allclose((result.adv_images - points[0]).abs().amax(dim=(1, 2, 3))[survivors], torch.tensor(0.1))


def test_images_of_finished_calls_leave_the_memory(linear, points):
    samples, context = setting(linear, points)
    result = run_cascade([stage(size=0.05), stage(size=0.1)], samples, THREAT, context)
    calls = [call for s in result.stages for call in s.calls]
    assert len(calls) > 5
    assert all(call.verdict.adv_images.untyped_storage().nbytes() == 0 for call in calls)


def test_individual_runs_each_attack_on_all_points(linear, points):
    samples, context = setting(linear, points)
    result = run_cascade([stage(size=0.05), stage(size=0.1)], samples, THREAT, context, individual=True)
    assert [len(s.calls) for s in result.stages] == [5, 5]
    assert all((s.outcome != Outcome.NOT_ATTACKED).all() for s in result.stages)


def test_take_chooses_the_nearest_survivors(linear, points):
    samples, context = setting(linear, points)
    result = run_cascade([stage(size=0.0), stage(size=0.1, take=0.25)], samples, THREAT, context)
    attacked = result.stages[1].outcome != Outcome.NOT_ATTACKED
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    assert int(attacked.sum()) == 10
    assert gap[attacked].max() < gap[~attacked].min()


def test_points_that_are_misclassified_clean_are_not_attacked(linear, points):
    images, labels = points
    samples, context = setting(linear, (images, 1 - labels))
    result = run_cascade([stage()], samples, THREAT, context)
    assert result.stages[0].calls == []
    assert not result.broken.any()


def test_whole_attacks_see_all_points_in_one_call(linear, points):
    sizes = []

    def whole(model, images, labels, threat, *, rng):
        sizes.append(len(images))
        return images

    samples, context = setting(linear, points)
    run_cascade([stage(whole, batching="whole")], samples, THREAT, context)
    assert sizes == [40]


def test_pool_attacks_are_given_padded_micro_batches(linear, points):
    def pool(model, images, labels, threat, *, rng):
        model(images[:3])
        return images

    samples, context = setting(linear, points, batch_size=10, micro_batch=4)
    result = run_cascade([stage(pool, batching="pool")], samples, THREAT, context)
    assert [call.attack_passes.forward for call in result.stages[0].calls] == [3, 3, 3, 3]
    assert [call.attack_passes.padding for call in result.stages[0].calls] == [1, 1, 1, 1]


def test_an_attack_that_raises_half_way_leaves_its_points_undecided_and_the_run_goes_on(linear, points):
    def raises(model, images, labels, threat, *, rng):
        if 20 in rng.index.tolist():
            raise ValueError("boom")
        return step(model, images, labels, threat, rng=rng)

    samples, context = setting(linear, points)
    result = run_cascade([stage(raises, name="raises"), stage(size=0.05)], samples, THREAT, context)
    undecided = result.stages[0].outcome == Outcome.UNDECIDED
    assert undecided.nonzero()[:, 0].tolist() == list(range(16, 24))
    (error,) = [call.error for call in result.stages[0].calls if call.error]
    assert re.fullmatch(r"ValueError: boom \(test_cascade\.py:\d+\)", error)
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    # The second attack breaks what it can of them: those are decided.
    assert torch.equal(result.undecided, undecided & (gap >= 0.05))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(lambda x: x[:1], "returned shape"), (lambda x: None, "returned a NoneType"), (lambda x: x.long(), "torch.int64")],
)
def test_what_is_not_a_batch_of_images_is_a_failure(linear, points, wrong, text):
    samples, context = setting(linear, points)
    result = run_cascade([stage(lambda model, images, labels, threat, *, rng: wrong(images))], samples, THREAT, context)
    assert text in result.stages[0].calls[0].error
    assert result.undecided.all()


def test_an_attack_that_ruins_its_copy_harms_neither_the_judge_nor_the_next_attack(linear, points):
    def corrupt(model, images, labels, threat, *, rng):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.model.train()
        labels.zero_()
        images += 1
        return images - 1

    samples, context = setting(linear, points)
    result = run_cascade([stage(corrupt, name="corrupt"), stage(size=0.1)], samples, THREAT, context)
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    assert not (result.stages[0].outcome == Outcome.BROKEN).any()
    assert torch.equal(result.broken, gap < 0.1)
    assert linear.scale.item() == 10.0
    assert not linear.training
    assert "changed the weights" in result.stages[0].calls[0].notes[0]
    assert torch.equal(samples.images, points[0])


def test_memory_that_runs_out_halves_the_call_and_loses_no_point(linear, points):
    def greedy(model, images, labels, threat, *, rng):
        if len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(model, images, labels, threat, rng=rng)

    samples, context = setting(linear, points)
    result = run_cascade([stage(greedy, name="greedy")], samples, THREAT, context)
    assert torch.equal(result.broken, (points[0][:, 0, 0, 0] - 0.5).abs() < 0.1)
    assert result.stages[0].calls[0].notes[0] == "Out of memory with 8 samples in a call of greedy; went on with 4."


def test_a_run_that_was_cut_off_continues_to_the_same_result_and_runs_no_call_twice(linear, points, tmp_path):
    calls = []

    def counted(model, images, labels, threat, *, rng):
        calls.append(rng.index.tolist())
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        noise = rng.uniform(images.shape[1:], low=-0.1, high=0.1)
        return (step(model, images, labels, threat, rng=rng, size=0.05) + noise * 0.1).clamp(0, 1)

    stages = [stage(counted, name="counted"), stage(size=0.1)]
    samples, context = setting(linear, points)
    with pytest.raises(KeyboardInterrupt):
        run_cascade(stages, samples, THREAT, context, folder=tmp_path)
    resumed = run_cascade(stages, samples, THREAT, context, folder=tmp_path)
    assert len(calls) == 4 + 2
    assert calls[3] == calls[4]
    whole = run_cascade(stages, samples, THREAT, context)
    assert torch.equal(resumed.adv_images, whole.adv_images)
    assert torch.equal(resumed.broken, whole.broken)
    assert [s.outcome.tolist() for s in resumed.stages] == [s.outcome.tolist() for s in whole.stages]


def test_a_damaged_state_file_is_run_again(linear, points, tmp_path):
    samples, context = setting(linear, points)
    first = run_cascade([stage()], samples, THREAT, context, folder=tmp_path)
    file = sorted(tmp_path.rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:100])
    again = run_cascade([stage()], samples, THREAT, context, folder=tmp_path)
    assert torch.equal(first.adv_images, again.adv_images)


def test_passes_agree_with_what_the_model_saw(linear, points):
    def looks(model, images, labels, threat, *, rng):
        point = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
        return (images + 0.1 * grad.sign() * torch.where(labels == 1, 1, -1).view(-1, 1, 1, 1)).detach()

    seen = []

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear

        def forward(self, images):
            seen.append(len(images))
            return self.inner(images)

    samples, context = setting(Counting(), points)
    seen.clear()
    before = context.original.count.copy()
    result = run_cascade([stage(looks), stage(looks, batching="pool")], samples, THREAT, context)
    spent = [call.attack_passes for s in result.stages for call in s.calls]
    original = context.original.count - before
    assert sum(seen) == sum(c.forward + c.padding for c in spent) + original.forward + original.padding
    assert sum(c.forward for c in spent) == sum(c.backward for c in spent) == 40 + int((~result.broken).sum())


def test_a_call_that_failed_runs_again_and_what_follows_it_does_not_reuse_calls_of_other_points(
    linear, points, tmp_path
):
    failing = [True]

    def flaky(model, images, labels, threat, *, rng):
        if failing[0] and 20 in rng.index.tolist():
            raise ValueError("boom")
        return step(model, images, labels, threat, rng=rng, size=0.05)

    def go():
        samples, context = setting(linear, points)
        stages = [stage(flaky, name="flaky"), stage(size=0.1, name="second")]
        return run_cascade(stages, samples, THREAT, context, folder=tmp_path)

    first = go()
    assert (first.stages[0].outcome == Outcome.UNDECIDED).sum() == 8
    failing[0] = False
    second = go()
    gap = (points[0][:, 0, 0, 0] - 0.5).abs()
    assert torch.equal(second.stages[0].outcome == Outcome.BROKEN, gap < 0.05)
    assert torch.equal(second.stages[1].outcome == Outcome.NOT_ATTACKED, gap < 0.05)
    assert torch.equal(second.broken, gap < 0.1)
    # Its calls hold other points than at first, and each says so.
    assert (
        torch.cat([call.positions for call in second.stages[1].calls]).tolist()
        == (gap >= 0.05).nonzero()[:, 0].tolist()
    )
    for call in second.stages[1].calls:
        assert torch.equal(call.verdict.is_adv, (gap < 0.1)[call.positions])


def test_an_attack_that_comes_twice_draws_anew(linear, points):
    drawn = []

    def draws(model, images, labels, threat, *, rng):
        drawn.append(rng.uniform((1,))[:, 0])
        return images

    samples, context = setting(linear, points, batch_size=40)
    run_cascade([stage(draws), stage(draws)], samples, THREAT, context)
    assert len(drawn) == 2
    assert not (drawn[0] == drawn[1]).any()
