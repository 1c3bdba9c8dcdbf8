"""The conformance test on many attacks, in worker processes of one thread: one that hangs or crashes harms no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from robustdup.plugins import AttackSpec, Registry, load_plugins
from robustdup.testing.conformance import ConformanceReport, Finding, check_attack, conformance_points

START_SECONDS = 300.0  # a worker imports torch and the toolkits first


def pairs(registry: Registry, names: Iterable[str] | None = None) -> list[tuple[str, str | None]]:
    """Return every (attack, norm) to check: each norm of each attack that can run here; None stands for no norm."""
    chosen = registry.attacks.values() if names is None else [registry.attacks[name] for name in names]
    return [(spec.name, norm) for spec in chosen if spec.available for norm in (spec.norms or (None,))]


def survey(
    todo: Sequence[tuple[str, str | None]],
    *,
    files: Sequence[str] = (),
    workers: int = 2,
    seconds: float = 180.0,
    report: Callable[[ConformanceReport], None] = lambda _: None,
) -> list[ConformanceReport]:
    """Check each (attack, norm) and return the reports in that order; `report` is called as each one comes.

    `files` are plugin files besides the installed plugins. An attack that takes longer than `seconds` is ended, and
    that is its finding.
    """
    jobs: queue.Queue[int] = queue.Queue()
    done: queue.Queue[tuple[int, ConformanceReport]] = queue.Queue()
    for number in range(len(todo)):
        jobs.put(number)
    for _ in range(min(workers, len(todo))):
        threading.Thread(target=_feed, args=(todo, jobs, done, list(files), seconds), daemon=True).start()
    found: dict[int, ConformanceReport] = {}
    while len(found) < len(todo):
        number, result = done.get()
        found[number] = result
        report(result)
    return [found[number] for number in range(len(todo))]


def _feed(
    todo: Sequence[tuple[str, str | None]], jobs: queue.Queue[int], done: queue.Queue[tuple[int, ConformanceReport]],
    files: list[str], seconds: float,
) -> None:  # fmt: skip
    """Hand jobs to one worker, and start another when it hangs or dies."""
    process: Any = None
    connection: Connection | None = None
    while True:
        try:
            number = jobs.get_nowait()
        except queue.Empty:
            break
        name, norm = todo[number]
        try:
            if connection is None:
                process, connection = _start(files)
            connection.send((name, norm))
            if not connection.poll(seconds):
                raise TimeoutError(f"it took longer than {seconds:g} s")
            done.put((number, connection.recv()))
        except (EOFError, OSError, TimeoutError) as failure:
            said = str(failure) if isinstance(failure, TimeoutError) else "it ended the process that ran it"
            code = "time" if isinstance(failure, TimeoutError) else "crash"
            done.put((number, ConformanceReport(name, norm or "", [Finding(code, False, said)])))
            if process is not None:
                process.kill()
            process = connection = None
    if connection is not None:
        connection.close()


def _start(files: list[str]) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, files), daemon=True)
    process.start()
    there.close()
    if not here.poll(START_SECONDS):
        process.kill()
        raise EOFError
    here.recv()
    return process, here


def _work(connection: Connection, files: list[str]) -> None:
    """Answer (attack, norm) with reports until the connection closes; what toolkits print is dropped."""
    import torch

    torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    registry = load_plugins(files)
    conformance_points()  # loads what the first check would have to wait for
    connection.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            name, norm = connection.recv()
            connection.send(check_attack(registry.attacks[name], norm=norm, registry=registry))


def as_row(report: ConformanceReport) -> dict[str, Any]:
    """Return a report as plain values for JSON."""
    return {**asdict(report), "ok": report.ok, "evidence": report.evidence}


def from_row(row: dict[str, Any]) -> ConformanceReport:
    """Read what `as_row` wrote."""
    plain = {name: value for name, value in row.items() if name not in ("ok", "evidence", "findings")}
    return ConformanceReport(findings=[Finding(**finding) for finding in row["findings"]], **plain)


def summarise(spec: AttackSpec, reports: Sequence[ConformanceReport]) -> dict[str, Any]:
    """Say of one attack whether it runs, conforms and is demonstrated, over its norms, and why not where it does not."""
    mine = [report for report in reports if report.attack == spec.name]
    ran = [report for report in mine if report.n]
    shown = [report for report in ran if report.demonstrated]
    if not spec.available:
        reason = spec.reason
    elif not ran:
        reason = next((report.evidence for report in mine), "it was not checked")
    elif not shown:
        reason = spec.undemonstrated or f"{ran[0].norm}: {ran[0].evidence}"
    else:
        reason = "; ".join(f"{report.norm}: {report.evidence}" for report in mine if not report.demonstrated)
    broken = [f"{report.norm}: {f.message}" for report in ran for f in report.findings if not f.ok]
    return {
        "name": spec.name,
        "source": spec.source,
        "available": spec.available,
        "runs": bool(ran),
        "conforms": bool(ran) and not broken,
        "demonstrated": bool(shown),
        "demonstrated_norms": [report.norm for report in shown],
        "reason": reason,
        "not_conforming": "; ".join(broken),
        "seconds": sum(report.seconds for report in mine),
    }
