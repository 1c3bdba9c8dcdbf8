"""The evasion attacks of the Adversarial Robustness Toolbox behind robustdup's contract."""

from __future__ import annotations

import importlib.util
from typing import Any

from robustdup import AttackFunction, AttackSpec, Registry, attack_signature, how_to_install
from robustdup_art.entry import Entry
from robustdup_art.table import DOCS, ENTRIES, UNAVAILABLE

MISSING = f"adversarial-robustness-toolbox is not installed: {how_to_install('robustdup[art]')}"


def register(registry: Registry) -> None:
    """Register every evasion attack of ART as `art:ClassName`, without importing ART."""
    installed = importlib.util.find_spec("art") is not None
    for entry in ENTRIES:
        registry.add_attack(_spec(entry, "" if installed else MISSING))
    for name, reason in UNAVAILABLE.items():
        registry.add_attack(
            AttackSpec(f"art:{name}", None, (), url=DOCS, kind="unbounded", available=False, reason=reason)
        )


def _spec(entry: Entry, reason: str) -> AttackSpec:
    missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
    if not reason and missing:
        reason = f"it needs {' and '.join(missing)}, which ART does not install: {how_to_install(*missing)}"
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


def make_attack(entry: Entry) -> AttackFunction:
    """Return the attack function of a row, with its real options in `__signature__`."""

    def attack(model: Any, images: Any, labels: Any, threat: Any, *, rng: Any, **options: Any) -> Any:
        from robustdup_art.adapter import run

        return run(entry, model, images, labels, threat, rng, {**entry.defaults, **options})

    attack.__name__ = attack.__qualname__ = entry.name
    attack.__doc__ = f"{entry.description}\n\nImages (N, C, H, W) in [0, 1] -> the same shape. {entry.url}"
    attack.__signature__ = attack_signature(entry.defaults, entry.choices)  # type: ignore[attr-defined]
    return attack
