"""What would end the process: each way is an exception inside the block, and what is left for the end changes no exit code."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from robustdup.errors import UserError
from robustdup.plugins.exits import LATER, _ends
from robustdup.plugins.loading import check_loaded, load_plugins
from tests.forked import run
from tests.raising import raises


@pytest.mark.parametrize(
    ("name", "arguments", "ends"),
    [
        ("kill", (os.getpid(), signal.SIGKILL), True),
        ("kill", (0, signal.SIGTERM), True),
        ("kill", (os.getpid(), 0), False),  # asks whether it is there
        ("kill", (os.getpid(), signal.SIGINT), False),  # handled: Ctrl-C
        ("kill", (os.getpid() + 1, signal.SIGKILL), False),
        ("killpg", (os.getpgrp(), signal.SIGUSR1), True),
        ("raise_signal", (signal.SIGABRT,), True),
        ("pthread_kill", (1, signal.SIGSEGV), True),
        ("kill", (), False),  # Python says what is wrong
        (LATER, (1.0,), False),
        (LATER, (1.0, False, None, True), True),
        ("_exit", (0,), True),
    ],
)
def test_what_ends_the_process(name, arguments, ends):
    assert _ends(name, arguments, {}) == ends


@pytest.mark.parametrize("ending", ["os._exit, 0", "lambda: os._exit(0)"])
def test_a_plugin_that_ends_the_process_at_its_end_changes_no_exit_code(tmp_path, ending):
    (tmp_path / "late.py").write_text(f"import atexit, os\natexit.register({ending})\ndef register(registry): pass\n")
    words = ["robustdup", "eval", "--plugin", "late.py", "--attacks", "nope"]
    code = f"import sys; sys.argv = {words}; from robustdup.cli.main import run; run()"
    done = run(["-c", code], folder=tmp_path)
    assert done.returncode == 2
    assert "nope" in done.stderr


def test_a_plugin_that_cannot_be_imported_is_no_module(tmp_path):
    file = tmp_path / "torn.py"
    file.write_text("import sys; raise RuntimeError('torn')")
    registry = load_plugins(files=[file])
    with raises("bad-plugin", UserError, "torn"):
        check_loaded(registry, [file])
    assert "robustdup_plugin_torn" not in sys.modules
