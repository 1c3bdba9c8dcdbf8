"""Progress: inside a call by its passes, on a terminal as bars, in a log as a line now and then."""

import pytest
import torch

import robustdup
from robustdup.evaluation import calls
from robustdup.evaluation.under_way import UnderWay, Watch
from robustdup.records import Progress, TrainProgress
from robustdup.report.live import Lines, LiveView
from robustdup.report.training import LiveTraining
from tests.networks import cnn

EVENT = Progress(
    eps_text="8/255", stage=1, n_stages=4, attack="apgd-t", done=128, total=512, survivors=301, n=512, forward_passes=0,
    seconds=0.0, under_way=256, share=0.45, passes=19400,
)  # fmt: skip


def evaluate(progress):
    torch.manual_seed(0)
    model, images = cnn(4).eval(), torch.rand(8, 3, 32, 32)
    labels = model(images).argmax(1)  # all right at first
    return robustdup.evaluate(
        model, images, labels, eps="0.01", attacks="pgd(steps=10)", diagnostics=False, progress=progress
    )


def test_events_come_inside_a_call_and_change_nothing(monkeypatch):
    quiet = evaluate(False)
    monkeypatch.setattr(calls, "TICK_SECONDS", 0.0)
    seen = []
    loud = evaluate(seen.append)
    inside = [event for event in seen if event.under_way]
    assert len(inside) >= 10
    shares = [event.share for event in inside]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.2
    assert 0.4 < shares[-1] <= 1
    assert (seen[0].done, seen[0].total) == (0, seen[-1].total)
    assert seen[-1].done == seen[-1].total == seen[-1].under_way + seen[-1].total
    assert loud.outcomes == quiet.outcomes
    assert torch.equal(loud.adv_images, quiet.adv_images)
    assert loud.record.attacks[0].forward_passes == quiet.record.attacks[0].forward_passes


def test_calls_of_several_workers_are_told_together():
    seen = []
    watch = Watch(seen.append)
    watch.tick(UnderWay(0, 10, 0.5, 100))  # before any stage: nothing to tell
    watch.begin(EVENT.model_copy(update={"under_way": 0, "share": 0.0, "passes": 0, "done": 0}))
    watch.tick(UnderWay(0, 30, 0.5, 100))
    watch.tick(UnderWay(30, 10, 0.1, 20))
    assert [(event.under_way, event.share, event.passes) for event in seen[1:]] == [(30, 0.5, 100), (40, 0.4, 120)]
    watch.end_call(0, EVENT.model_copy(update={"under_way": 0, "share": 0.0, "passes": 0, "done": 30}))
    watch.tick(UnderWay(0, 30, 0.9, 180))  # a note that came late
    watch.tick(UnderWay(30, 10, 0.6, 50))
    assert [(event.done, event.under_way, event.share, event.passes) for event in seen[3:]] == [
        (30, 10, 0.1, 20),
        (30, 10, 0.6, 50),
    ]


def test_what_a_progress_function_raises_is_no_failure_of_the_attack(monkeypatch):
    monkeypatch.setattr(calls, "TICK_SECONDS", 0.0)

    def broken(event):
        if event.under_way:
            raise ZeroDivisionError("of the function")

    with pytest.raises(ZeroDivisionError, match="of the function"):
        evaluate(broken)


def test_a_log_gets_a_line_now_and_then(capsys):
    now = [0.0]
    lines = Lines(every=30.0, clock=lambda: now[0])
    for seconds in (1, 29, 31, 45, 62, 200):
        now[0] = seconds
        lines.say(lambda: f"at {now[0]}")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[1] for line in err.splitlines()] == ["at 31", "at 62", "at 200"]


def test_a_line_says_how_far_the_call_under_way_is(capsys):
    with LiveView(enabled=False, lines=True) as view:
        view._lines = Lines(every=0.0)
        view.update(EVENT)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().endswith(
        "eps 8/255  2/4 apgd-t: 128/512 judged (256 more: 45%, 19.4k passes), 301 of 512 survive"
    )
    with LiveView(enabled=False) as view:
        view.update(EVENT)
    assert capsys.readouterr() == ("", "")


def test_the_bar_moves_inside_a_call():
    view = LiveView(enabled=False)
    view.update(EVENT)
    (task,) = view._bars.tasks
    assert task.completed == 128 + 0.45 * 256


def test_training_has_lines_in_a_log_too(capsys):
    view = LiveTraining(enabled=False, lines=True)
    view._lines = Lines(every=0.0)
    view.update(TrainProgress(step=30, n_steps=60, epoch=1.5, loss=0.25))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().endswith("step 30/60, epoch 1.50  loss 0.250")


def test_a_log_says_how_far_the_evaluation_of_a_checkpoint_is(capsys):
    with LiveTraining(enabled=False, lines=True) as view:
        view._lines = Lines(every=0.0)
        view.update(TrainProgress(message="reading 500 images"))
        view.update(TrainProgress(message="evaluating best with autoattack", evaluation=EVENT))
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(": reading 500 images")
    where = "eps 8/255  2/4 apgd-t: 128/512 judged (256 more: 45%, 19.4k passes), 301 of 512 survive"
    assert second.endswith(f"evaluating best with autoattack: {where}")


def test_bars_of_each_evaluation_follow_those_of_training(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with LiveTraining(enabled=True) as view:
        view.update(TrainProgress(step=60, n_steps=60, epoch=3.0))
        for name in ("best", "last"):
            view.update(TrainProgress(message=f"evaluating {name}"))
            view.update(TrainProgress(message=f"evaluating {name}", evaluation=EVENT))
    shown = capsys.readouterr().err
    assert shown.index("evaluating best") < shown.index("301 of 512 survive") < shown.index("evaluating last")
    assert shown.rindex("60/60") < shown.index("301 of 512 survive")
    assert shown.index("evaluating last") < shown.rindex("301 of 512 survive")
