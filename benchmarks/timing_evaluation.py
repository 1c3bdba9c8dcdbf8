"""Evaluations side by side: robustdup's own and what people use today, on the same points and the same threads.

Every measurement is a fresh process (`benchmarks.contender`), and contenders take turns over the repeats, forwards
and backwards, so that a machine that grows slower favours nobody. Only the attack call is timed: start-up, imports and
loading are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.baselines import BASELINES
from benchmarks.measured import Measurement, TimingResult, summarise
from benchmarks.options import TimingConfig
from robustdup.config import parse_attacks, parse_value
from robustdup.errors import RunError, UserError, unknown
from robustdup.plugins import Registry, load_plugins
from robustdup.records import now, write_atomic
from robustdup.runners.local import usable_cores
from robustdup.runners.worker import THREAD_VARIABLES

USUAL = ("autoattack", "fast", "pyautoattack", "pyautoattack@best", "torchattacks-autoattack", "art-autoattack")
PATIENCE = 5.0  # seconds in which a child that is told to end may do so by itself


@dataclass(frozen=True)
class Contender:
    """Something to measure: `call` is a baseline's name, or attacks as --attacks reads them (`ours`).

    `batch_size` None is the toolkit's own; `best` is to be found in a sweep first.
    """

    name: str
    call: str
    ours: bool
    batch_size: int | None = None
    best: bool = False
    about: str = ""


Say = Callable[[str], None]
Measure = Callable[[TimingConfig, Contender, int, int, int], Measurement]


def run_timing(config: TimingConfig, *, say: Say = lambda _: None, measure: Measure | None = None) -> TimingResult:
    """Measure every contender `repeats` times and return the result; with `out` it is written after each measurement.

    `say` is told what is going on; `measure` stands in for a fresh process. Raises UserError for a mistake and RunError
    where model and data cannot be loaded.
    """
    notes: list[str] = []
    contenders = parse_contenders(config, load_plugins(config.plugin), notes)
    sizes = config.sizes if any(each.best for each in contenders) else []
    threads = config.threads or len(usable_cores())
    measure = measure or in_fresh_process
    sweep: list[Measurement] = []
    done: list[Measurement] = []

    def result() -> TimingResult:
        return TimingResult(
            created=now(), command=command(config), config=config.model_dump(mode="json"), n=config.n, norm=config.norm,
            eps=config.eps, threads=threads, sweep=sweep, measurements=done, notes=notes,
            clean_accuracy=next((each.clean_accuracy for each in done if each.clean_accuracy is not None), None),
            environment=next((each.environment for each in done if each.environment), {}),
            contenders=summarise(
                done, {each.name: each.about for each in contenders}, [each.name for each in contenders if each.ours]
            ),
        )  # fmt: skip

    for place, contender in enumerate(contenders):
        if contender.best:
            contenders[place] = swept(config, contender, sizes, threads, measure, sweep, notes, say)
    given_up: set[str] = set()
    for repeat in range(config.repeats):
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            if contender.name in given_up:
                continue
            say(f"repeat {repeat + 1} of {config.repeats}: {contender.name}")
            done.append(measure(config, contender, config.n, threads, repeat))
            if done[-1].status != "done":
                given_up.add(contender.name)
            if config.out is not None:
                write_atomic(Path(config.out), (result().model_dump_json(indent=2) + "\n").encode())
    return result()


def parse_contenders(config: TimingConfig, registry: Registry, notes: list[str]) -> list[Contender]:
    """Return the contenders that are named, or the usual ones that are there. Raises UserError for an unknown one."""
    if config.contenders is None:
        contenders = []
        for text in USUAL:
            name = text.partition("@")[0]
            if name in BASELINES or name in registry.ensembles:
                contenders.append(_contender(text, {}, registry))
            else:
                notes.append(f"{text} is not registered here and was left out.")
        return contenders
    contenders = [_contender(name, options, registry) for name, options in parse_attacks(config.contenders)]
    names = [each.name for each in contenders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"The contender {twice!r} is named twice. --repeats says how often each is measured.")
    return contenders


def _contender(text: str, options: dict[str, Any], registry: Registry) -> Contender:
    name, separator, size = text.partition("@")
    inside = ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()
    )
    ours = f"{name}({inside})" if inside else name
    if name in BASELINES:
        if options:
            raise UserError(f"Baseline {name!r} runs at its toolkit's settings and takes no options.")
        if separator and not re.fullmatch(r"best|[1-9]\d*", size):
            raise UserError(f"{text!r}: write {name}@64 for batches of 64, or {name}@best.")
        about = BASELINES[name].description
        return Contender(text, name, False, int(size) if size.isdecimal() else None, size == "best", about)
    if name in registry.attacks or name in registry.ensembles:
        if separator:
            raise UserError(f"{text!r}: robustdup chooses how rows are packed; @ is for baselines. Write {name!r}.")
        for stage in registry.stages(name, options):
            registry.get_attack(stage.attack).check_options(stage.options)
        known = registry.ensembles.get(name) or registry.attacks[name]
        return Contender(ours, ours, True, about=known.description)
    native = [spec.name for spec in registry.attacks.values() if spec.source == "native"]
    raise unknown("contender", name, [*BASELINES, *registry.ensembles, *native])


def swept(
    config: TimingConfig, contender: Contender, sizes: Sequence[int], threads: int, measure: Measure,
    sweep: list[Measurement], notes: list[str], say: Say,
) -> Contender:  # fmt: skip
    """Return the contender at the batch size that was quickest on the first `sweep_n` points."""
    n = min(config.sweep_n, config.n)
    tried = [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] < n]
    if len(tried) < len(sizes) and n < config.n:
        left = ", ".join(str(size) for size in sizes if size not in tried)
        notes.append(
            f"{contender.name}: on the {n} points of the sweep, batch sizes {left} are the same as {tried[-1]}; "
            "--sweep-n takes more points."
        )
    if len(tried) == 1:
        return replace(contender, batch_size=tried[0])
    times = []
    for size in tried:
        say(f"sweep on {n} points: {contender.name}, batch size {size}")
        measured = measure(config, replace(contender, batch_size=size), n, threads, 0)
        sweep.append(measured)
        if measured.status == "done" and measured.seconds is not None:
            times.append((measured.seconds, size))
    if not times:
        notes.append(f"{contender.name}: no batch size of the sweep finished; its own default is measured.")
        return contender
    return replace(contender, batch_size=min(times)[1])


def in_fresh_process(
    config: TimingConfig, contender: Contender, n: int, threads: int, repeat: int, python: Sequence[str] = ()
) -> Measurement:
    """Measure once in a process of its own; errors and overtime become part of the measurement.

    Raises UserError or RunError where the process cannot load model and data, which no contender can then.
    """
    order = {
        "config": config.model_dump(mode="json"), "contender": contender.call, "batch_size": contender.batch_size,
        "n": n, "threads": threads,
    }  # fmt: skip
    words = [*(python or (sys.executable, "-m", "benchmarks.contender")), json.dumps(order)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    blank: dict[str, Any] = {
        "contender": contender.name, "repeat": repeat, "batch_size": contender.batch_size, "n": n, "threads": threads,
    }  # fmt: skip
    with tempfile.TemporaryFile() as errors, _lifeline() as lifeline:
        # A session of its own: what a contender starts can be ended with it, and Ctrl-C reaches it through us.
        child = subprocess.Popen(
            words, stdin=lifeline, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            event = _read(child)
            if event.get("event") == "started":
                event = _last_event(child, config.timeout)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it is ending by itself: let it say how
                    child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            reason = f"stopped after {config.timeout:g} s"
            return Measurement(**blank, status="timeout", seconds=config.timeout, reason=reason)
        finally:
            end(child)
        return _measurement(event, blank, child.returncode, errors)


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """Give the end of a pipe to read from, which ends when this process does, however that happens."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def _read(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    return dict(json.loads(line)) if line else {}


def _last_event(child: subprocess.Popen[bytes], timeout: float | None) -> dict[str, Any]:
    text, _ = child.communicate(timeout=timeout)
    lines = text.splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def _measurement(event: dict[str, Any], blank: dict[str, Any], code: int | None, errors: IO[bytes]) -> Measurement:
    kind = event.pop("event", None)
    if kind == "done":
        return Measurement(**blank, status="done", **event)
    if kind == "not loaded":
        raise (UserError if event["user"] else RunError)(event["reason"])
    if kind == "failed":
        return Measurement(**blank, status="failed", reason=f"{event['reason']} ({event['place']})")
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip().splitlines()
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    reason = f"its process ended with {name}" + (f": {words[-1]}" if words else "")
    return Measurement(**blank, status="failed", reason=reason)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and everything that it started, and wait for it."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue
        break
    if child.stdout is not None:
        child.stdout.close()


def command(config: TimingConfig) -> str:
    """Return the command line that runs this benchmark again."""
    words = ["python", "-m", "benchmarks.timing", "eval"]
    defaults = TimingConfig.model_validate({})
    for name, value in config.model_dump(mode="json").items():
        if name == "eps" or value != getattr(defaults, name):
            plain = isinstance(value, str) and parse_value(value) == value
            words.append(f"{name}={value if plain else json.dumps(value)}")
    return shlex.join(words)
