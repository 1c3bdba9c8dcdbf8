"""Commands and scripts in processes of their own, forked from one that has torch in it: importing it takes seconds each time.

Workers of an evaluation and second judges of this process are forked too (`cold_starts` lets them start as users' do).
What a cold start brings is looked at elsewhere: tests/test_imports.py, tests/plugins/test_imported.py, tests/runners,
tests/test_second_judge.py, `.ci/alone`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, TimeoutExpired
from types import SimpleNamespace
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# Nothing that reads its settings from the environment when it is imported, such as huggingface_hub.
PRELOADED = [
    "torch",
    "torch._dynamo",  # the first optimizer of a process imports it, for two seconds
    "pandas",
    "robustdup.cli.main",
    "robustdup.evaluation.engine",
    "robustdup.jobs.evaluation",
    "robustdup.models.load",
]


class Forked:
    """A process that runs `robustdup WORDS …` or a file of Python, its output in `stdout` and `stderr` (text)."""

    def __init__(self, words: Sequence[str], *, folder: Path | None = None, env: Mapping[str, str] | None = None):
        _start_server()
        self.words = list(words)
        self._output = Path(tempfile.mkdtemp(prefix="robustdup-forked-"))
        environment = dict(os.environ if env is None else env)
        arguments = (self.words, str(folder or Path.cwd()), environment, str(self._output))
        self._process = CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, -9 where it was killed; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float = 900) -> int:
        """Return the exit code once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutExpired(self.words, timeout)
        return self.returncode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self._output / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What it has said so far on standard error."""
        return (self._output / "stderr").read_text(encoding="utf-8")


def run(words: Sequence[str], *, folder: Path | None = None, env: Mapping[str, str] | None = None) -> Forked:
    """Run a command or file to its end."""
    process = Forked(words, folder=folder, env=env)
    process.wait()
    return process


class WorkerContext:
    """Stands for multiprocessing's context "spawn": a worker is forked, and finds the environment of now."""

    Pipe = staticmethod(CONTEXT.Pipe)

    @staticmethod
    def Process(*, target: Callable[..., None], args: tuple[Any, ...], name: str) -> Any:  # noqa: N802
        """Make a process that calls `target`."""
        _start_server()
        return CONTEXT.Process(target=_call_in, args=(dict(os.environ), target, args), name=name)


def ask_judge(words: Sequence[str], **_: Any) -> CompletedProcess[bytes]:
    """Stand for `subprocess.run` of `python -P -c CODE WORDS…`: the code runs in a forked process, to its end."""
    done = run(["-c", *words[3:]])
    return CompletedProcess(list(words), done.returncode or 0, stderr=done.stderr.encode())


MULTIPROCESSING = SimpleNamespace(get_context=lambda _: WorkerContext, parent_process=multiprocessing.parent_process)
SUBPROCESS = SimpleNamespace(run=ask_judge, DEVNULL=DEVNULL, PIPE=PIPE)


@cache
def _start_server() -> None:
    """Start the process that all are forked from, with one thread."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        CONTEXT.set_forkserver_preload(PRELOADED)
        multiprocessing.forkserver.ensure_running()
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _run(words: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(output) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    sys.path[:0] = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = words
    try:
        if words[0] == "robustdup":
            from robustdup.cli.main import main

            sys.exit(main(words[1:]))
        if words[0] == "-c":
            sys.argv = [words[0], *words[2:]]
            exec(words[1], {"__name__": "__main__"})
            return
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without


def _call_in(environment: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
