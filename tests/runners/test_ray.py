"""Ray actors as workers. What needs ray is skipped where it is missing; what is said then is checked everywhere."""

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import runner_work
from runner_work import alive, wait_for

from robustdup import RunError, Unavailable, UserError, how_to_install
from robustdup.runners import open_runner

NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra: ray)")


def open_ray(workers, setup, *arguments, **options):
    return open_runner(
        "ray", workers, functools.partial(setup, *arguments) if arguments else setup, devices=(), **options
    )


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable) as error:
        open_ray(2, runner_work.squares)
    assert str(error.value).startswith("The runner 'ray' needs the package ray (")
    assert str(error.value).endswith(f"): {how_to_install('robustdup[ray]')}")


@pytest.fixture(scope="module")
def here():
    """A Ray of this machine that all tests of the module share: a runner leaves what it did not start."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # actors import `runner_work`
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@NEEDS_RAY
def test_results_come_in_order_and_each_payload_is_done_once(here, tmp_path):
    with open_ray(2, runner_work.log_squares, tmp_path / "log") as runner:
        assert list(runner.map(range(17))) == [number**2 for number in range(17)]
        assert list(runner.map([30, 20])) == [900, 400]
    done = Counter(int(line) for line in (tmp_path / "log").read_text().split())
    assert done == Counter([*range(17), 20, 30])
    assert here.is_initialized()


@NEEDS_RAY
def test_places_and_functions_of_a_script(here):
    with open_ray(2, lambda place: lambda _: (place, os.environ["OMP_NUM_THREADS"]), threads=2) as runner:
        seen = {place.number: (place, omp) for place, omp in runner.map(range(8)) if not time.sleep(0.05)}
    assert {(place.workers, place.device, place.threads, omp) for place, omp in seen.values()} == {(2, "cpu", 2, "2")}


@NEEDS_RAY
def test_errors_of_payloads_and_of_the_setup(here, tmp_path):
    with open_ray(2, runner_work.refuse) as runner:
        with pytest.raises(UserError, match=r"^eps must be positive, got -1\.$") as user:
            list(runner.map(["good", "user"]))
        assert type(user.value) is UserError
        with pytest.raises(
            RunError, match=r"^Worker [01] failed on payload 1: ValueError: what a stranger's code says$"
        ) as e:
            list(runner.map(["good", "value"]))
        assert "runner_work.py" in str(e.value.__cause__)
        with pytest.raises(RunError, match=r"failed on payload 0: SystemExit: 4$"):
            list(runner.map(["exit"]))
        with pytest.raises(UserError, match=r"^Cannot send payload 0 to a worker \("):
            list(runner.map([threading.Lock()]))
        assert list(runner.map(["good", "good"])) == ["good", "good"]
    with open_ray(2, runner_work.no_setup, "user", tmp_path / "log") as runner:
        with pytest.raises(UserError, match=r"^There is no model 'x'\.$"):
            list(runner.map([1]))
        with pytest.raises(RunError, match=r"^This runner is closed\.$"):
            list(runner.map([1]))
    with pytest.raises(UserError, match=r"^Cannot send the setup to a worker \("):
        open_ray(2, runner_work.squares, threading.Lock())


@NEEDS_RAY
def test_an_actor_that_is_killed_is_replaced_and_its_payload_done(here, tmp_path):
    with open_ray(2, runner_work.dies_once, tmp_path) as runner:
        assert list(runner.map(range(9))) == [number**2 for number in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3-0", "5-0", "5-1"]


@NEEDS_RAY
def test_a_payload_that_always_ends_its_actor_is_given_up(here):
    with open_ray(2, runner_work.always_dies, retries=1) as runner:
        results = runner.map(range(6))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(
            RunError, match=r"^Gave up on payload 2: each of the 2 workers that tried it died; worker [01] was"
        ):
            list(results)
        assert list(runner.map([7, 8])) == [7, 8]


def in_a_script(text, tmp_path, **environment):
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "log")], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


NODES = """
import functools, os, runner_work, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from robustdup.runners import open_runner

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address

def setup(path, place):
    node = ray.get_runtime_context().get_node_id()
    def work(number):
        with open(path, "a") as file:
            file.write(f"{node} {number}\\n")
        time.sleep(0.3)
        return node, number * number
    return work

with open_runner("ray", 2, functools.partial(setup, sys.argv[1]), devices=()) as runner:
    results = []
    for result in runner.map(range(30)):
        results.append(result)
        if len({node for node, _ in results}) == 2 and second is not None:
            cluster.remove_node(second, allow_graceful=False)
            second = None
assert second is None
assert [square for _, square in results] == [number**2 for number in range(30)]
cluster.shutdown()
print("nodes:", len({node for node, _ in results}))
"""


@NEEDS_RAY
def test_a_node_that_is_lost(tmp_path):
    process = in_a_script(NODES, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "nodes: 2" in output
    done = Counter(int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines())
    assert set(done) == set(range(30))
    assert sum(done.values()) <= 31  # what the lost node was at is done again, and nothing else


SCRIPT = """
import functools, runner_work, sys
from robustdup.runners import open_runner

try:
    with open_runner("ray", 2, functools.partial(runner_work.sleeps, sys.argv[1]), devices=()) as runner:
        list(runner.map([0, 0, 300, 300]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@NEEDS_RAY
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_or_killed_run(sent, tmp_path):
    process = in_a_script(SCRIPT, tmp_path)
    log = tmp_path / "log"
    try:
        wait_for(lambda: log.exists() and len(log.read_text().split()) == 4, 60)
        actors = {int(pid) for pid in log.read_text().split()}
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)
            output, _ = process.communicate(timeout=100)  # the actors would sleep for five minutes
            assert process.returncode == 130, output
            assert "Traceback" not in output
        else:
            process.kill()
        wait_for(lambda: not any(alive(pid) for pid in actors), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@NEEDS_RAY
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there(address, tmp_path):
    process = in_a_script(SCRIPT, tmp_path, RAY_ADDRESS=address)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith(
        f"robustdup.errors.RunError: There is no Ray cluster at RAY_ADDRESS={address}: "
    )
