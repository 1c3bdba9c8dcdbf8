"""Tests compute with one thread a process: the models are small, and pytest-xdist fills the cores.

Lanes: `uv run pytest` runs all but what is marked `slow`; `-m unit` what needs neither processes, trained networks,
toolkits nor a browser; `-m timing` looks at the clock, which the others do not. docs/contributing/tests.md tells of them.
"""

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands too: two threads each wait for cores that others compute on
os.environ.pop("COLUMNS", None)  # readline sets it for the workers of pytest-xdist: what goes nowhere has no width
os.environ.setdefault("ROBUSTDUP_CACHE", tempfile.mkdtemp(prefix="robustdup-tests-"))  # not the home of who runs them
# In the background of a script Ctrl-C is ignored, and so it would be by the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A module of tests that mentions one of these does more than call functions on small tensors.
MORE_THAN_A_UNIT = re.compile(
    r"subprocess|multiprocessing|playwright|browser|open_runner|run_training|run_evaluation|run_study|run_detection"
    r"|check_attack|cli\.main|import (torchattacks|art|foolbox|autoattack|robustbench|timm|transformers)"
    r"|\b(evaluate|train|verify|eval_digits)\(|forked|entry_points\(|load_builtin"
    # Libraries that take longer to import than a hundred tests take; an optimizer brings torch's compiler, torch.testing sympy.
    r"|importorskip\(.timm|import datasets|own_datasets_cache|(from|import) (robustdup_study|torchvision|sklearn|statsmodels)"
    r"|torch\.compile\(|torch\.testing|optim\.[A-Z]|attacks\.student|training\.(loop|trainer)"
)


def pytest_configure(config):
    """Compute with one thread. The process that hands out the tests to others needs no torch."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """Leave out of the small lanes what they do not run before it is imported: imports take longer than the tests."""
    lane = LANES.get(config.option.markexpr)
    if lane is None or collection_path.suffix not in (".py", ".md"):
        return None
    return True if collection_path.suffix == ".md" or not lane(collection_path) else None


def pytest_make_parametrize_id(val):
    """Name bytes by their length: two processes that collect must give one test one name, and bytes may hold the time."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Mark as `unit` what lies in modules that only call functions."""
    for item in items:
        if item.get_closest_marker("slow") is None and _is_light(item.path):
            item.add_marker("unit")


def pytest_collection_finish():
    """Take what was imported and collected, millions of objects, out of the walks of the garbage collector."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last test of a module, take what it left, such as what it imported, out of these walks too."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@cache
def _is_light(path: Path) -> bool:
    texts = [file.read_text(encoding="utf-8") for file in (path, path.parent / "conftest.py") if file.is_file()]
    return not {"plugins", "benchmarks"} & set(path.parts) and not any(MORE_THAN_A_UNIT.search(text) for text in texts)


def _is_timed(path: Path) -> bool:
    return "pytest.mark.timing" in path.read_text(encoding="utf-8")


LANES = {"unit": _is_light, "timing": _is_timed}


@pytest.fixture(autouse=True)
def one_thread():
    """Start every test with one thread, and fail the one that leaves another number behind."""
    import torch

    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session", autouse=True)
def quick_starts():
    """Fork workers and second judges from a process that has torch: each would import it, for three seconds of a CPU.

    Workers compute with one thread unless a test says otherwise, as the tests themselves do.
    """
    from robustdup.jobs import second_judge
    from robustdup.runners import local
    from tests import forked

    usual = local.open_local

    def with_one_thread(*arguments, threads, **options):
        return usual(*arguments, threads=threads or 1, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local, "open_local", with_one_thread)
        patched.setattr(local, "multiprocessing", forked.MULTIPROCESSING)
        patched.setattr(second_judge, "subprocess", forked.SUBPROCESS)
        yield usual


@pytest.fixture
def cold_starts(monkeypatch, quick_starts):
    """Let workers and second judges of this test start as those of a user do."""
    from robustdup.jobs import second_judge
    from robustdup.runners import local

    monkeypatch.setattr(local, "open_local", quick_starts)
    monkeypatch.setattr(local, "multiprocessing", multiprocessing)
    monkeypatch.setattr(second_judge, "subprocess", subprocess)


class Within:
    """`with within(seconds):` fails what takes more time of the processor, where the clock is looked at."""

    def __init__(self, timed: bool):
        self.timed = timed

    @contextlib.contextmanager
    def __call__(self, seconds: float):
        """Time a block."""
        started = time.process_time()
        yield
        assert not self.timed or time.process_time() - started < seconds


@pytest.fixture
def within(request):
    """Look at the clock in the lane `-m timing` only: beside other work no time means anything."""
    return Within(request.config.option.markexpr == "timing")


@pytest.fixture(scope="module")
def own_datasets_cache(tmp_path_factory):
    """Let `datasets` keep what it prepares in a folder of this module's own."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before
