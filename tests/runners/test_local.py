"""Processes as workers: order, exactly once, deaths, errors with their text, and nothing left behind."""

import contextlib
import functools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import runner_work
import torch
from runner_work import alive, wait_for

from robustdup import RunError, Unavailable, UserError
from robustdup.runners import WorkerPlace, open_runner
from robustdup.runners.local import share
from robustdup.runners.worker import begin
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("cold_starts")
LINUX = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be pinned on Linux only")


def local(workers, setup, *arguments, devices=(), **options):
    setup = functools.partial(setup, *arguments) if arguments else setup
    return open_runner("local", workers, setup, devices=devices, **options)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_and_each_payload_is_done_once(workers, tmp_path):
    with local(workers, runner_work.log_squares, tmp_path / "log") as runner:
        assert runner.workers == workers
        assert list(runner.map(range(17))) == [number**2 for number in range(17)]
        assert list(runner.map([])) == []
        assert list(runner.map([30, 20])) == [900, 400]
    done = Counter(int(line) for line in (tmp_path / "log").read_text().split())
    assert done == Counter([*range(17), 20, 30])


def test_a_daemonic_process_starts_no_workers_and_is_told_so(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with raises("daemonic-process", UserError, "workers=1"):
        local(2, runner_work.tells)
    with local(1, runner_work.tells) as runner:
        assert list(runner.map(range(3))) == [0, 1, 4]


def test_notes_of_workers_come_here_and_those_that_cannot_be_read_are_none():
    notes, here = [], []

    def told(note):
        notes.append(note)
        here.append(threading.current_thread() is threading.main_thread())

    with local(2, runner_work.tells, seconds=60.0) as runner:
        assert list(runner.map(range(6), listener=told)) == [number**2 for number in range(6)]
        assert sorted(notes) == [number / 2 for number in range(6)]
        assert all(here)
        assert list(runner.map(range(3))) == [0, 1, 4]  # nobody listens
        assert list(runner.map([8], listener=told)) == [64]
    assert sorted(notes[6:]) == [4.0]  # what was told before this map is of another


def test_what_a_listener_raises_ends_the_map():
    def told(note):
        raise ZeroDivisionError("of the listener")

    with local(2, runner_work.tells) as runner, pytest.raises(ZeroDivisionError, match="listener"):
        list(runner.map(range(6), listener=told))


def test_one_worker_is_this_process_and_pickles_nothing():
    unpicklable = lambda place: lambda payload: (os.getpid(), payload)  # noqa: E731
    payload = object()
    with open_runner("local", 1, unpicklable, devices=("cuda:7",)) as runner:
        assert list(runner.map([payload])) == [(os.getpid(), payload)]
    with open_runner("local", None, lambda place: lambda _: place, devices=("mps",), threads=3) as runner:
        assert list(runner.map([0])) == [WorkerPlace(0, 1, "mps", 3)]


def test_setup_runs_once_in_each_worker(tmp_path):
    log = tmp_path / "log"
    with local(2, runner_work.log_setups, log) as runner:
        wait_for(lambda: list(runner.map([1])) == [1] and len(log.read_text().split()) == 4, 60)
        for _ in range(3):
            assert list(runner.map(range(10))) == [number**2 for number in range(10)]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(number for number, _ in lines) == ["0", "1"]
    assert len({pid for _, pid in lines} | {str(os.getpid())}) == 3


def test_payloads_are_taken_lazily():
    taken = []

    def payloads():
        for number in range(40):
            taken.append(number)
            yield number

    for workers, ahead in ((1, 1), (2, 4)):
        taken.clear()
        with local(workers, runner_work.squares) as runner:
            results = runner.map(payloads())
            assert taken == []
            for given, result in enumerate(results, start=1):
                assert result == (given - 1) ** 2
                assert len(taken) - given < ahead
        assert taken == list(range(40))


def test_places_share_devices_cores_and_threads():
    with local(3, runner_work.where, devices=["cuda:0", "cuda:1"]) as runner:
        seen = {}
        for place, *rest in runner.map(range(1000)):
            seen[place.number] = (place, *rest)
            if len(seen) == 3:
                break
    assert sorted(seen) == [0, 1, 2]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    for number, (place, pid, affinity, omp, mkl) in seen.items():
        mine = share(cores, number, 3)
        assert place == WorkerPlace(number, 3, ["cuda:0", "cuda:1", "cuda:0"][number], len(mine), [2, 1, 2][number])
        assert pid != os.getpid()
        assert omp == mkl == str(len(mine))
        assert affinity in (None, mine)


def test_workers_on_one_gpu_have_a_share_of_its_memory_each(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: taken.append(given))
    setup = pickle.dumps(runner_work.where)
    for device, sharing in (("cuda:0", 5), ("cuda", 2), ("cuda:1", 1), ("cpu", 4)):
        _, reply = begin(setup, WorkerPlace(0, 5, device, 1, sharing))
        assert not pickle.loads(reply).failed
    assert taken == [(0.19, "cuda:0"), (0.475, "cuda")]


def test_cores_are_shared_out_evenly():
    assert [share(range(8), i, 2) for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [share(range(7), i, 3) for i in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [share([4, 9], i, 5) for i in range(5)] == [[4], [9], [4], [9], [4]]


@LINUX
def test_more_threads_than_a_share_has_cores_are_not_pinned(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    everywhere = sorted(os.sched_getaffinity(0))
    with local(2, runner_work.where, threads=len(everywhere) + 1) as runner:
        for place, _, affinity, omp, _ in runner.map(range(4)):
            assert (place.threads, affinity, omp) == (len(everywhere) + 1, everywhere, str(len(everywhere) + 1))
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_torch_computes_with_the_threads_of_the_place():
    with local(2, runner_work.torch_threads, torch.Size([1]), threads=3) as runner:
        assert list(runner.map(range(2))) == [3, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_a_payload(workers):
    with local(workers, runner_work.refuse) as runner:
        assert list(runner.map(["good"])) == ["good"]
        with pytest.raises(UserError) as user:
            list(runner.map(["good", "user", "good"]))
        assert str(user.value) == "eps must be positive, got -1."
        assert (type(user.value), user.value.code) == (UserError, "bad-eps")
        with pytest.raises(Unavailable, match=r"^no such thing here$"):
            list(runner.map(["unavailable"]))
        with pytest.raises(RunError) as foreign:
            list(runner.map(["good", "value"]))
        assert re.fullmatch(
            r"Worker [01] failed on payload 1: ValueError: what a stranger's code says", str(foreign.value)
        )
        if workers == 2:
            assert "runner_work.py" in str(foreign.value.__cause__)
            assert "in work" in str(foreign.value.__cause__)
        else:
            assert isinstance(foreign.value.__cause__, ValueError)
        # A payload that raises is no reason to lose the workers.
        assert list(runner.map(["good", "good"])) == ["good", "good"]


def test_a_payload_that_exits_is_an_error():
    with local(2, runner_work.refuse) as runner, pytest.raises(RunError, match=r"failed on payload 0: SystemExit: 4$"):
        list(runner.map(["exit"]))


def test_the_caller_names_the_payloads():
    with (
        local(2, runner_work.refuse, describe=lambda kind: f"the call {kind!r}") as runner,
        pytest.raises(RunError, match=r"^Worker [01] failed on the call 'bad': ValueError"),
    ):
        list(runner.map(["bad"]))


WHAT_TO_DO = (
    "use one local worker (workers=1), to which nothing is sent, or name the model by a spec such as "
    "'path/to/model.py:make_model'."
)


def test_what_cannot_be_sent_is_a_mistake_of_the_user():
    with pytest.raises(UserError) as setup:
        local(2, lambda place: None)
    assert setup.value.code == "cannot-send"
    assert str(setup.value).startswith("Cannot send the setup to a worker (")
    assert str(setup.value).endswith(f"): {WHAT_TO_DO}")
    with local(2, runner_work.refuse) as runner:
        for payloads, start in (
            ([open(os.devnull)], "Cannot send payload 0 to a worker (TypeError: cannot pickle"),  # noqa: SIM115
            ([runner_work.Unloadable()], "Cannot load the payload in a worker (ValueError: invalid literal"),
            (["lambda"], "Cannot send the result back ("),
        ):
            with pytest.raises(UserError) as error:
                list(runner.map(payloads))
            assert error.value.code == "cannot-send"
            assert str(error.value).startswith(start)
            assert str(error.value).endswith(f"): {WHAT_TO_DO}")


@pytest.mark.parametrize(
    ("kind", "workers", "text"),
    [
        ("local", 0, "workers = 0: it must be at least 1."),
        ("local", -2, "workers = -2: it must be at least 1."),
        ("locl", 2, "Unknown runner 'locl'. Did you mean 'local'? Allowed: local, ray."),
    ],
)
def test_bad_arguments(kind, workers, text):
    with pytest.raises(UserError) as error:
        open_runner(kind, workers, runner_work.squares, devices=())
    assert str(error.value) == text
    with raises("bad-value", UserError, "threads = 0"):
        local(2, runner_work.squares, threads=0)
    with raises("bad-value", UserError, "retries = -1"):
        local(2, runner_work.squares, retries=-1)


def test_a_worker_that_is_killed_is_replaced_and_its_payload_done(tmp_path):
    with local(2, runner_work.dies_once, tmp_path) as runner:
        assert list(runner.map(range(9))) == [number**2 for number in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3-0", "5-0", "5-1"]


def test_another_worker_takes_over_where_the_replacement_is_not_ready(tmp_path):
    with local(2, runner_work.comes_back_late, tmp_path) as runner:
        setups = tmp_path / "setups"
        wait_for(lambda: list(runner.map([0])) == [0] and len(list(setups.glob("*"))) == 2, 60)
        assert list(runner.map(range(6))) == list(range(6))


def test_a_payload_that_always_ends_its_worker_is_given_up():
    with local(2, runner_work.always_dies, retries=1) as runner:
        results = runner.map(range(6))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RunError) as error:
            list(results)
        assert re.fullmatch(
            r"Gave up on payload 2: each of the 2 workers that tried it died; worker [01] ended with exit code 7\.",
            str(error.value),
        )
        assert list(runner.map([7, 8])) == [7, 8]


def test_an_idle_worker_that_is_killed_is_replaced():
    with local(2, runner_work.where) as runner:
        first = {pid for _, pid, *_ in runner.map(range(8))}
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        second = {pid for _, pid, *_ in runner.map(range(8))}
    assert second
    assert not first & second


@pytest.mark.parametrize(
    ("kind", "retries", "error", "text", "starts"),
    [
        ("user", 2, UserError, r"There is no model 'x'\.", 1),
        ("value", 2, RunError, r"Worker [01] failed to start: ValueError: a broken checkpoint", 1),
        ("exit", 2, RunError, r"Worker [01] ended with exit code 3 before it was ready\.", 1),
        (
            "kill",
            1,
            RunError,
            r"Worker [01] was killed by SIGKILL \(the system may have run out of memory\) \(2 times\)\.",
            2,
        ),
    ],
)
def test_a_setup_that_fails_is_reported_and_not_tried_for_ever(kind, retries, error, text, starts, tmp_path):
    with local(2, runner_work.no_setup, kind, tmp_path / "log", retries=retries) as runner:
        with pytest.raises(error) as raised:
            list(runner.map(range(5)))
        assert re.fullmatch(text, str(raised.value))
        with pytest.raises(RunError, match=r"^This runner is closed\.$"):
            list(runner.map([1]))
    assert max(Counter((tmp_path / "log").read_text().split()).values()) <= starts


def test_results_may_come_as_they_are_ready(tmp_path):
    with local(2, runner_work.sleeps, tmp_path / "log") as runner:
        assert list(runner.map([0, 0])) == [0, 0]  # both are ready
        assert list(runner.map([1.5, 0, 0.1], ordered=False)) == [0, 0.1, 1.5]


def test_a_payload_that_takes_too_long_ends_its_worker_and_no_other(tmp_path):
    with local(1, runner_work.sleeps, tmp_path / "log", retries=0, seconds=5.0) as runner:
        results = runner.map([0, 300, 0])
        assert next(results) == 0
        with pytest.raises(RunError, match=r"^Gave up on payload 1: .* worker 0 took longer than 5 s\.$"):
            list(results)
    pids = {int(pid) for pid in (tmp_path / "log").read_text().split()}
    assert os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


def test_the_caller_may_say_what_becomes_of_a_payload_that_is_given_up():
    lost = lambda payload, death: f"{payload}: {death.how}"  # noqa: E731
    with local(2, runner_work.always_dies, retries=0, lost=lost) as runner:
        assert list(runner.map(range(4))) == [0, 1, "2: ended with exit code 7", 3]


def test_one_map_at_a_time_and_one_that_is_left_early():
    with local(2, runner_work.squares) as runner:
        results = runner.map(range(10))
        assert next(results) == 0
        with pytest.raises(RunError, match="still at work on another map"):
            next(runner.map([1]))
        results.close()
        assert list(runner.map(range(20, 30))) == [number**2 for number in range(20, 30)]


def test_the_payloads_own_error_is_raised_as_it_is():
    def payloads():
        yield 1
        raise OSError("the data end here")

    with local(2, runner_work.squares) as runner, pytest.raises(OSError, match="the data end here"):
        list(runner.map(payloads()))


SCRIPT = """
import functools, runner_work, sys, time
from robustdup.runners import open_runner

if __name__ == "__main__":
    try:
        with open_runner("local", 2, functools.partial(runner_work.sleeps, sys.argv[1]), devices=()) as runner:
            list(runner.map([0, 0, 300, 300]))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@contextlib.contextmanager
def script_at_work(tmp_path, text=SCRIPT):
    """Yield a script whose two workers are in a long payload, and their process ids; kill what is left afterwards."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(log)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(lambda: log.exists() and len(log.read_text().split()) == 4, 60)
        workers = {int(pid) for pid in log.read_text().split()}
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        yield process, workers
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    with script_at_work(tmp_path) as (process, workers):
        process.kill()
        process.wait()
        wait_for(lambda: not any(alive(pid) for pid in workers), 60)


@pytest.mark.parametrize("group", [True, False])
def test_ctrl_c_ends_the_workers_at_once_and_quietly(group, tmp_path):
    with script_at_work(tmp_path) as (process, workers):
        os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=100)  # the workers would sleep for five minutes
        assert process.returncode == 130
        assert output == b""
        assert not any(alive(pid) for pid in workers)


def test_a_runner_that_nobody_closed_ends_with_the_program(tmp_path):
    text = SCRIPT.replace("with open_runner(", "runner = open_runner(").replace(") as runner:", ")")
    text = text.replace("    list(", "signal.signal(signal.SIGALRM, lambda *_: sys.exit(5)); list(")
    text = text.replace("import functools", "import signal, functools")
    with script_at_work(tmp_path, text) as (process, workers):
        process.send_signal(signal.SIGALRM)
        output, _ = process.communicate(timeout=100)
        assert (process.returncode, output) == (5, b"")
        assert not any(alive(pid) for pid in workers)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import runner_work\nfrom robustdup.runners import open_runner\n"
        "print(list(open_runner('local', 2, runner_work.squares, devices=()).map(range(3))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "ended with exit code 1 before it was ready; a script that starts workers must do so below" in done.stderr
    assert "`if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


def test_the_runners_load_without_torch_and_ray():
    code = (
        "import sys, robustdup.runners.local, robustdup.runners.ray; "
        "assert not {'torch', 'ray', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
