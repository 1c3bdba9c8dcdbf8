"""What a stranger's bundle or run would execute: code and pickles are run only if the user names them, or says so.

Settings that come with a bundle or a run folder are data. Those that name code are taken from the user's own command line,
or after `--trust`, which comes after the user was told what would run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from robustdup.errors import UserError, user_path
from robustdup.inflation import read_text
from robustdup.models.files import is_file_spec
from robustdup.models.trained import CHECKPOINTS, NETWORK_FILE
from robustdup.records.origin import note_made_here

RUN = "run:"
CODE_FREE = ("builtin", "robustbench")  # schemes whose names are looked up in installed packages, never in a file
MODELS = ("model", "attack_model", "init", "score_model", "extra_labels")  # settings that name a model
BARE_NAME = re.compile(r"[\w-]+(\(.*\))?")
LARGEST_MICRO_BATCH = 4096  # rows that a stranger's settings may have a model call padded to
DATA = ("data", "test_data", "extra_data", "against")  # settings that name data


def code_of_model(spec: str | None) -> str | None:
    """Say in words what loading a model would run or ask for; None for what needs no trust."""
    if spec is None or spec == "python":
        return None
    if is_file_spec(spec):
        return f"the file {str(user_path(spec.rpartition('.py')[0] + '.py').resolve())!r}"
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "run":
        return _code_of_run(rest)
    if colon and scheme not in CODE_FREE:
        return f"the loader of {scheme!r} models, on {rest!r}"
    named = BARE_NAME.fullmatch(spec) and not Path(spec).is_file()  # of an architecture
    return None if colon or named or spec.endswith(".safetensors") else f"the program in {spec!r}"


def code_of_data(spec: str | None) -> str | None:
    """Say in words what loading data would run; None for built-in data, local files and ids of the Hub, which run nothing."""
    scheme, colon, rest = (spec or "").partition(":")
    if not colon or len(scheme) < 2 or "/" in scheme or "\\" in scheme or scheme == "builtin":
        return None
    return f"the loader of {scheme!r} data, on {rest!r}"


def _network_file(rest: str) -> Path:
    folder, separator, name = rest.rpartition("@")
    return user_path(folder if separator and name in CHECKPOINTS else rest) / NETWORK_FILE


def _code_of_run(rest: str) -> str | None:
    file = _network_file(rest)
    try:
        spec = json.loads(read_text(file))["spec"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # it cannot be loaded, and says so
    if not isinstance(spec, str) or not (is_file_spec(spec) or ":" in spec):
        return None
    return f"{spec!r}, as {str(file)!r} says"


def would_run(settings: Mapping[str, Any], own: Collection[str] = ()) -> dict[str, str]:
    """Return what settings would run, in words, by their names; those in `own` are the user's and left out."""
    runs: dict[str, str] = {}
    for names, code_of in ((MODELS, code_of_model), (DATA, code_of_data)):
        for name in names:
            value = settings.get(name)
            code = code_of(value) if isinstance(value, str) and name not in own else None
            if code is not None:
                runs[name] = code
    files = settings.get("plugin") or []
    if files and "plugin" not in own:
        runs["plugin"] = ", ".join(f"the file {str(Path(str(file)).resolve())!r}" for file in files)
    if settings.get("allow_pickle") and "allow_pickle" not in own:
        runs["allow_pickle"] = "whatever the pickles say that hold its weights"
    return runs


def check_trust(
    settings: Mapping[str, Any],
    *,
    origin: str,
    own: Collection[str] = (),
    trust: bool = False,
    only: Collection[str] = (),
) -> None:
    """Refuse to run what came with a stranger's bundle or run, unless the user trusts it.

    Args:
        settings: what it came with, by name.
        origin: what to call it in messages: "The bundle".
        own: names of settings that the user gave.
        trust: whether the user trusts it; what runs is printed on standard error.
        only: names of the settings that are used at all; all if empty.

    Raises:
        UserError: untrusted-code, with what would run and what to type.
    """
    used = {name: value for name, value in settings.items() if not only or name in only}
    code_of = would_run(used, own)
    if not code_of:
        return
    listed = "; ".join(f"{name} = {_short(settings[name])} runs {code}" for name, code in code_of.items())
    if trust:
        print(f"Trusted by --trust: {listed}.", file=sys.stderr)
        _trust_networks(used[name] for name in code_of)
        return
    flags = " ".join(
        "--allow-pickle" if name == "allow_pickle" else f"--{name.replace('_', '-')} …" for name in code_of
    )
    raise UserError(
        f"{origin} names code that was not run: {listed}. Name your own copy ({flags}), or, if you trust whoever made it "
        "and have looked at what would run, add --trust.",
        code="untrusted-code",
    )


def trust_networks(settings: Mapping[str, Any]) -> None:
    """Trust the files that build the networks of `run:FOLDER` settings, also in later processes, and print which they are."""
    of_runs = {name: value for name, value in settings.items() if name in MODELS and str(value).startswith(RUN)}
    check_trust(of_runs, origin="The run", trust=True)


def _trust_networks(specs: Iterable[Any]) -> None:
    for spec in specs:
        if isinstance(spec, str) and spec.startswith(RUN):
            note_made_here(_network_file(spec.removeprefix(RUN)).read_bytes())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "…"


def without_demands(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bundle's settings without what it has no say in: devices, threads, plugins, pickles, memory."""
    size = settings.get("micro_batch")
    kept = size if isinstance(size, int) and 0 < size <= LARGEST_MICRO_BATCH else None
    usual = {"plugin": [], "allow_pickle": False, "device": "auto", "runner": "local", "micro_batch": kept}
    return {**settings, **dict.fromkeys(("attack_model", "replay", "out", "threads", "workers")), **usual}
