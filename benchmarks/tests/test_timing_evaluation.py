"""The bench of evaluations: what is counted, how ratios are made, and what becomes of contenders that fail or take long."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from benchmarks import contender as process
from benchmarks.baselines import BASELINES
from benchmarks.measured import Measurement, TimingResult, ratio, spread, summarise
from benchmarks.options import TimingConfig
from benchmarks.timing_evaluation import Contender, command, in_fresh_process, parse_contenders, run_timing, swept
from robustdup import jobs
from robustdup.config import build, validate
from robustdup.errors import RunError, UserError
from robustdup.plugins import Named, Registry, load_plugins

PLUGIN = """
    import torch
    from robustdup import UserError

    def idle(model, images, labels, threat, *, batch_size, seed):
        return images.clone()

    def ascent(model, images, labels, threat, *, batch_size, seed):
        for part, truth in zip(images.split(batch_size or 3), labels.split(batch_size or 3)):
            with torch.no_grad():
                model(part)
        part = images.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(part), labels)
        loss.backward()
        assert all(weight.grad is None for weight in model.parameters())
        return threat.project(images.detach(), images.detach() + threat.radius * part.grad.sign())

    def beyond(model, images, labels, threat, *, batch_size, seed):
        return images + 2 * threat.radius

    def wrong(model, images, labels, threat, *, batch_size, seed):
        if len(images):
            raise UserError("it has no wheels")
        return images

    def number(model, images, labels, threat, *, batch_size, seed):
        return 3

    def register(registry):
        from benchmarks.baselines import BASELINES
        from robustdup.plugins import Named

        for function in (idle, ascent, beyond, wrong, number):
            name = "lab-" + function.__name__
            BASELINES[name] = Named(name, function, f"The {function.__name__} one")
"""


@pytest.fixture(autouse=True)
def _same_baselines():
    with mock.patch.dict(BASELINES):
        yield


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "lab.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


def config(**changes):
    return validate(TimingConfig, {"n": 6, "threads": 1, **changes})


def measured(name="a", repeat=0, seconds=1.0, status="done", **more):
    return Measurement(contender=name, repeat=repeat, batch_size=None, n=4, status=status, seconds=seconds, **more)


def here(name, plugin="", **changes):
    """Make a measurement in this process and return its events."""
    events = []
    made = config(plugin=[plugin] if plugin else [], **changes)
    order = {"config": made.model_dump(mode="json"), "contender": name, "batch_size": None, "n": made.n, "threads": 1}
    process.measure(json.loads(json.dumps(order)), events.append)
    return events


def test_rows_are_counted_forward_and_backward():
    model = process.Counted(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)).eval()
    with torch.no_grad():
        model(torch.rand(5, 1, 2, 2))
    assert (model.forward_rows, model.backward_rows) == (5, 0)
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    logits = model(images)
    for column in range(2):  # one forward pass, two backward, as attacks on every class do
        torch.autograd.grad(logits[:, column].sum(), images, retain_graph=True)
    assert (model.forward_rows, model.backward_rows) == (8, 6)
    model(images)  # a pass from which no gradient comes back
    assert (model.forward_rows, model.backward_rows) == (11, 6)


def test_a_baseline_is_counted_frozen_and_judged(plugin):
    started, done = here("lab-ascent", plugin)
    assert started == {"event": "started"}
    assert done["event"] == "done"
    assert (done["forward_passes"], done["backward_passes"], done["counted_by"]) == (6 + 6, 6, "benchmark")
    assert done["robust_accuracy"] < done["clean_accuracy"]  # a step of 0.15 breaks digits
    assert done["violations"] == 0
    assert done["seconds"] > 0
    assert {"torch", "cpu", "threads", "device_name"} <= done["environment"].keys()


def test_nothing_is_believed_projections_are_judged(plugin):
    idle, beyond = here("lab-idle", plugin)[-1], here("lab-beyond", plugin)[-1]
    assert idle["robust_accuracy"] == idle["clean_accuracy"] == 1.0
    assert idle["violations"] == 0
    assert beyond["violations"] == 6


def test_what_fails_says_why(plugin):
    assert here("lab-wrong", plugin)[-1]["reason"] == "it has no wheels"
    failed = here("lab-number", plugin)[-1]
    assert failed["event"] == "failed"
    assert "it returned a int" in failed["reason"]
    lost = here("lab-idle", plugin, model="builtin:digits-robus")
    assert lost == [{"event": "not loaded", "reason": lost[0]["reason"], "user": True}]
    assert "builtin:digits-robust" in lost[0]["reason"]
    assert "one eps" in here("lab-idle", plugin, eps="0.1,0.2")[-1]["reason"]


def test_ours_runs_as_eval_does_and_brings_its_own_counts():
    done = here("pgd(steps=4)", n=20)[-1]
    assert done["counted_by"] == "robustdup"
    evaluation = config(n=20).evaluation(attacks="pgd(steps=4)", diagnostics=False)
    record = jobs.run_evaluation(evaluation, registry=load_plugins()).record
    assert done["robust_accuracy"] == record.robust_accuracy.value < done["clean_accuracy"]
    assert done["backward_passes"] == record.passes.attacks_backward > 0
    assert done["forward_passes"] == 20 + record.passes.attacks_forward + record.passes.referee


@pytest.mark.parametrize(("threads", "spreads"), [(1, False), (2, True)])
def test_ours_may_share_several_cores_between_processes_and_one_core_may_not(monkeypatch, threads, spreads):
    asked = []

    def run(evaluation, *, data, registry, spread=False):
        asked.append((evaluation.attacks, evaluation.threads, spread))
        return real(evaluation, data=data, registry=registry)  # the same without workers

    real = jobs.run_evaluation
    monkeypatch.setattr(jobs, "run_evaluation", run)
    process.run_ours(process.load(config(threads=threads), 6, threads), "fgsm", lambda: None)
    assert asked == [("noise(draws=1)", None if spreads else 1, False), ("fgsm", None if spreads else 1, spreads)]


def mark_goes_back() -> bool:
    """Say whether this system lets a process set its high-water mark of memory back: Linux does, some containers do not."""
    cpu = torch.device("cpu")
    held = torch.ones(256 * 2**18)
    high = process.peak(cpu)
    del held
    process.reset_peak(cpu)
    return process.peak(cpu) < high - 128 * 2**20


def test_memory_is_what_the_call_took_on_top():
    if not mark_goes_back():
        pytest.skip("this system does not let a process set its high-water mark of memory back")
    cpu = torch.device("cpu")
    seen = []
    for _ in range(5):  # a system that is short of memory may take pages away meanwhile
        result, cost = process.timed(lambda: len(torch.ones(64 * 2**18)), cpu, lambda: None)
        assert result == 64 * 2**18
        seen.append(cost["memory_bytes"])
    assert any(60 * 2**20 < memory < 90 * 2**20 for memory in seen), seen
    _, again = process.timed(lambda: None, cpu, lambda: None)  # what was freed before does not count
    assert again["memory_bytes"] < 20 * 2**20


@pytest.mark.parametrize(("threads", "least", "most"), [(1, 0.0, 0.2), (2, 0.4, float("inf"))])
def test_one_thread_is_timed_by_its_own_cpu(threads, least, most):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, cost = process.timed(lambda: time.sleep(0.4), torch.device("cpu"), lambda: None)
    finally:
        torch.set_num_threads(before)
    assert least <= cost["seconds"] <= most


def test_ratios_pair_the_same_repeats():
    theirs = [measured("a", 0, 2.0), measured("a", 1, 9.0), measured("a", 2, 8.0), measured("a", 3, 5.0)]
    ours = [measured("b", 0, 1.0), measured("b", 1, 3.0), measured("b", 2, 2.0)]
    found = ratio(theirs, ours)
    assert (found.median, found.low, found.high, found.pairs, found.to) == (3.0, 2.0, 4.0, 3, "b")
    assert not found.lower_bound
    assert ratio(theirs, [measured("b", 7)]) is None
    assert spread([4.0, 1.0, 2.0, 3.0]).model_dump() == {"median": 2.5, "low": 1.0, "high": 4.0}


def test_a_stopped_contender_gives_a_lower_bound():
    theirs = [measured("a", 0, 90.0), measured("a", 1, 100.0, "timeout", reason="stopped after 100 s")]
    ours = [measured("b", 0, 10.0), measured("b", 1, 20.0)]
    found = ratio(theirs, ours)
    assert (found.low, found.lower_bound, found.pairs) == (5.0, True, 1)
    row = summarise([*theirs, *ours], {"a": "an a", "b": ""}, ["b"])[0]
    assert (row.status, row.seconds.low, row.reason, row.about) == ("timeout", 100.0, "stopped after 100 s", "an a")
    failed = summarise([measured("a", 0, None, "failed", reason="why"), *ours], {"a": "", "b": ""}, ["b"])
    assert (failed[0].reason, failed[0].seconds, failed[0].ratios) == ("why", None, [])
    assert failed[1].seconds.median == 15.0


def test_passes_a_point_and_changing_accuracy_are_said():
    one = measured(forward_passes=40, backward_passes=20, robust_accuracy=0.5, memory_bytes=3)
    two = measured(repeat=1, forward_passes=44, backward_passes=20, robust_accuracy=0.25, memory_bytes=5)
    row = summarise([one, two], {"a": ""}, [])[0]
    assert (row.passes_a_point, row.robust_accuracy, row.memory_bytes, row.repeats) == (15, 0.5, 4, 2)
    assert "differed between repeats" in row.notes[0]


def test_contenders_are_read():
    registry = load_plugins()
    BASELINES["lab"] = Named("lab", print, "A lab")
    read = parse_contenders(config(contenders="pgd(steps=3,loss=ce), lab,lab@64,lab@best"), registry, [])
    assert read == [
        Contender("pgd(steps=3, loss=ce)", "pgd(steps=3, loss=ce)", True, about=registry.attacks["pgd"].description),
        Contender("lab", "lab", False, about="A lab"),
        Contender("lab@64", "lab", False, 64, about="A lab"),
        Contender("lab@best", "lab", False, best=True, about="A lab"),
    ]
    for text, message in (
        ("lub", "Unknown contender 'lub'. Did you mean 'lab'?"),
        ("lab,lab", "named twice"),
        ("lab(steps=3)", "takes no options"),
        ("lab@few", "lab@64"),
        ("pgd@64", "is for baselines"),
        ("pgd(stepz=3)", "Did you mean 'steps'?"),
    ):
        with pytest.raises(UserError) as error:
            parse_contenders(config(contenders=text), registry, [])
        assert message in str(error.value)


def test_without_names_what_is_there_is_taken():
    registry, notes = Registry(), []
    BASELINES.clear()
    BASELINES["pyautoattack"] = Named("pyautoattack", print)
    names = [each.name for each in parse_contenders(config(), registry, notes)]
    assert names == ["pyautoattack", "pyautoattack@best"]
    assert "autoattack is not registered here and was left out." in notes


def test_the_sweep_takes_the_quickest_size_that_can_be_told_apart():
    asked = []

    def measure(config, contender, n, threads, repeat):
        asked.append((contender.batch_size, n))
        seconds = {32: 5.0, 64: 2.0, 128: 3.0}[contender.batch_size]
        return measured(contender.name, repeat, seconds, "failed" if contender.batch_size == 64 else "done")

    sweep, notes = [], []
    best = Contender("x@best", "x", False, best=True)
    made = config(n=1000, sweep_n=100)
    found = swept(made, best, [32, 64, 128, 256], 1, measure, sweep, notes, lambda _: None)
    assert asked == [(32, 100), (64, 100), (128, 100)]
    assert found.batch_size == 128  # 64 failed
    assert len(sweep) == 3
    assert "256 are the same as 128" in notes[0]


def test_contenders_take_turns_and_one_that_was_stopped_is_not_repeated(plugin, tmp_path):
    order = []

    def measure(config, contender, n, threads, repeat):
        order.append((repeat, contender.name))
        slow = contender.name == "lab-wrong"
        return measured(contender.name, repeat, 9.0 if slow else 1.0 + repeat, "timeout" if slow else "done")

    made = config(contenders="pgd,lab-idle,lab-wrong", plugin=[plugin], out=str(tmp_path / "bench.json"))
    result = run_timing(made, measure=measure)
    both = ["pgd", "lab-idle"]
    assert order == [
        *((0, name) for name in [*both, "lab-wrong"]),
        *((1, name) for name in reversed(both)),
        *((2, name) for name in both),
    ]
    assert [each.status for each in result.contenders] == ["done", "done", "timeout"]
    assert [each.ratios[0].median for each in result.contenders[1:]] == [1.0, 9.0]
    assert result.contenders[0].ratios == []
    kept = TimingResult.model_validate_json((tmp_path / "bench.json").read_text())
    assert kept.measurements == result.measurements


def test_the_command_says_how_to_run_it_again():
    made = config(norm="L2", contenders="pgd(steps=3),fgsm", timeout=20)
    words = command(made).split()
    assert words[:4] == ["python", "-m", "benchmarks.timing", "eval"]
    assert build(TimingConfig, overrides=[word.strip("'") for word in words[4:]]) == made


def child(text):
    """Stand in for the contender's process with a few lines of Python, which start without torch."""
    return sys.executable, "-c", "import os, subprocess, sys, time\n" + textwrap.dedent(text)


def gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended; nobody has asked for it yet
            return True
        time.sleep(0.05)
    return False


SLEEPER = """
    below = subprocess.Popen(["sleep", "60"])
    open({path!r}, "w").write(f"{{os.getpid()}} {{below.pid}}")
    print('{{"event": "started"}}', flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    path = tmp_path / "pids"
    started = time.perf_counter()
    found = in_fresh_process(
        config(timeout=0.5), Contender("x", "x", False), 6, 1, 0, child(SLEEPER.format(path=str(path)))
    )
    assert (found.status, found.seconds, found.reason) == ("timeout", 0.5, "stopped after 0.5 s")
    assert time.perf_counter() - started < 20
    pids = [int(word) for word in path.read_text().split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
def test_an_interrupt_ends_the_child(tmp_path):
    path = tmp_path / "pids"

    def interrupt():
        while not path.exists() or not path.read_text().strip():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)

    def raised(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raised)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            in_fresh_process(config(), Contender("x", "x", False), 6, 1, 0, child(SLEEPER.format(path=str(path))))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert all(gone(int(word)) for word in path.read_text().split())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sys.exit('no room')", "its process ended with exit code 1: no room"),
        ('print(\'{"event": "started"}\', flush=True); os.kill(os.getpid(), 9)', "its process ended with SIGKILL"),
        ('print(\'{"event": "failed", "reason": "E: why", "place": "a.py:3"}\')', "E: why (a.py:3)"),
    ],
)
def test_a_process_that_dies_is_a_failed_row(text, reason):
    found = in_fresh_process(config(), Contender("x", "x", False), 6, 1, 0, child(text))
    assert (found.status, found.reason, found.seconds) == ("failed", reason, None)


def test_model_and_data_that_do_not_load_stop_the_bench():
    for user, kind in (("true", UserError), ("false", RunError)):
        text = f"""print('{{"event": "not loaded", "reason": "no such model", "user": {user}}}')"""
        with pytest.raises(kind, match="no such model"):
            in_fresh_process(config(), Contender("x", "x", False), 6, 1, 0, child(text))


def test_sizes_and_radius():
    assert config(batch_sizes="64, 32,64").sizes == [32, 64]
    with pytest.raises(UserError, match="batch_sizes"):
        assert config(batch_sizes="32,many").sizes
    assert (config().eps, config(data="x/y").eps, config(norm="L2", data="x/y").eps) == ("0.15", "8/255", "0.5")


@pytest.mark.parametrize("name", ["pyautoattack", "torchattacks-autoattack"])
@pytest.mark.slow
def test_published_ensembles_break_what_ours_breaks(name):
    if name not in BASELINES:
        pytest.skip("its plugin is not installed")
    theirs, ours = here(name, n=4)[-1], here("autoattack", n=4)[-1]
    assert theirs["event"] == ours["event"] == "done"
    assert theirs["robust_accuracy"] >= ours["robust_accuracy"] < 1
    assert theirs["violations"] == 0


def test_memory_of_processes_that_the_call_starts_is_seen(tmp_path):
    allocate = [sys.executable, "-c", f"data = bytearray(600_000_000); open({str(tmp_path / 'there')!r}, 'w'); input()"]
    with subprocess.Popen(allocate, stdin=subprocess.PIPE) as before:  # what was there before is not the call's
        until = time.monotonic() + 60
        while not (tmp_path / "there").exists() and time.monotonic() < until:
            time.sleep(0.05)
        try:
            held = memory_of_a_child()
        finally:
            before.kill()
    assert 50_000_000 <= max(children for _, children in held) < 500_000_000


def memory_of_a_child():
    with process.memory_held() as held:
        child = subprocess.Popen([sys.executable, "-c", "data = bytearray(50_000_000); input()"], stdin=subprocess.PIPE)
        try:
            until = time.monotonic() + 20
            while max(children for _, children in held) < 50_000_000 and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            child.kill()
            child.communicate()
    return held
