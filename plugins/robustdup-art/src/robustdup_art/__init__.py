"""The evasion attacks of the Adversarial Robustness Toolbox behind robustdup's contract."""

from __future__ import annotations

import importlib.util

from robustdup import AttackSpec, Registry
from robustdup_art.entry import Entry, make_attack
from robustdup_art.table import DOCS, ENTRIES, UNAVAILABLE

ART = "adversarial-robustness-toolbox"


def register(registry: Registry) -> None:
    """Register every evasion attack of ART as `art:ClassName`, without importing ART."""
    installed = importlib.util.find_spec("art") is not None
    for entry in ENTRIES:
        registry.add_attack(_spec(entry, "" if installed else f"the package {ART} is not installed"))
    for name, reason in UNAVAILABLE.items():
        registry.add_attack(
            AttackSpec(f"art:{name}", None, (), url=DOCS, kind="unbounded", available=False, reason=reason)
        )


def _spec(entry: Entry, reason: str) -> AttackSpec:
    missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
    if not reason and missing:
        reason = f"it needs {' and '.join(missing)}, which ART does not install: pip install {' '.join(missing)}"
    return AttackSpec(
        name=f"art:{entry.name}",
        function=None if reason else make_attack(entry),
        norms=entry.norms,
        kind=entry.kind,
        knowledge=entry.knowledge,
        url=entry.url,
        batching=entry.batching,
        cost=entry.cost,
        description=entry.description,
        quick=entry.quick,
        warning=entry.warning,
        undemonstrated=entry.undemonstrated,
        available=not reason,
        reason=reason,
    )
