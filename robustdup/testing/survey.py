"""The conformance test on many attacks, in worker processes of one thread: one that hangs or crashes harms no other."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence

from robustdup.plugins import Registry, load_plugins
from robustdup.runners import Death, WorkerPlace, open_runner
from robustdup.testing.conformance import check_attack
from robustdup.testing.report import ConformanceReport, Finding
from robustdup.testing.trial import conformance_samples


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
    reports: dict[int, ConformanceReport] = {}
    if not todo:
        return []
    with open_runner(
        "local", min(workers, len(todo)), functools.partial(_worker, list(files)), devices=["cpu"], threads=1,
        retries=0, seconds=seconds, lost=_lost,
    ) as runner:  # fmt: skip
        for number, result in runner.map([(number, *pair) for number, pair in enumerate(todo)], ordered=False):
            reports[number] = result
            report(result)
    return [reports[number] for number in range(len(todo))]


Check = tuple[int, str, str | None]  # the number of a check, its attack and norm


def _lost(check: Check, death: Death) -> tuple[int, ConformanceReport]:
    """Return the report on an attack that took too long, or ended the process that ran it."""
    number, name, norm = check
    code, message = ("time", f"it {death.how}") if death.timed_out else ("crash", "it ended the process that ran it")
    return number, ConformanceReport(name, norm or "", [Finding(code, False, message)])


def _worker(files: list[str], place: WorkerPlace) -> Callable[[Check], tuple[int, ConformanceReport]]:
    """Set up a worker process; what toolkits print there is dropped."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    registry = load_plugins(files)
    conformance_samples()  # loads what the first check would have to wait for

    def work(check: Check) -> tuple[int, ConformanceReport]:
        number, name, norm = check
        return number, check_attack(registry.attacks[name], norm=norm, registry=registry)

    return work
