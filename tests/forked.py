"""Commands and scripts in processes of their own, forked from one that has torch in it: importing it takes seconds each time.

What a cold start brings is looked at elsewhere: tests/test_imports.py, tests/plugins/test_imported.py, `.ci/alone`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from subprocess import TimeoutExpired

CONTEXT = multiprocessing.get_context("forkserver")
# Nothing that reads its settings from the environment when it is imported, such as huggingface_hub.
PRELOADED = [
    "torch",
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
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without
