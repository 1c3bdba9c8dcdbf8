"""foolbox's attacks behind robustdup's contract."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from robustdup import AttackFunction, AttackSpec, attack_signature, how_to_install
from robustdup_foolbox.table import ENTRIES, Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import Registry, SampleRng, ThreatModel

INSTALL = {
    "foolbox": f"foolbox is not installed: {how_to_install('robustdup[foolbox]')}",
    "eagerpy": f"eagerpy, which foolbox is built on, is not installed: {how_to_install('robustdup[foolbox]')}",
    "numba": f"foolbox compiles this attack with numba, which is not installed: {how_to_install('numba')}",
}


def missing() -> set[str]:
    """Return which packages are not installed, without importing them."""
    specs = {package: importlib.util.find_spec(package) for package in INSTALL}
    return {package for package, spec in specs.items() if spec is None or spec.origin is None}  # or a mere folder


def as_function(entry: Entry) -> AttackFunction:
    """Return the attack of one row of the table; foolbox and torch are imported when it is called."""

    def attack(
        model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, **options: Any
    ) -> Tensor:
        from robustdup_foolbox.adapter import run

        return run(entry, model, images, labels, threat, rng=rng, **options)

    attack.__signature__ = attack_signature(entry.options, entry.choices)  # type: ignore[attr-defined]
    attack.__name__ = attack.__qualname__ = entry.name
    attack.__doc__ = f"{entry.summary} (foolbox.attacks.{entry.name}): {entry.url}"
    return attack


def as_spec(entry: Entry, absent: set[str]) -> AttackSpec:
    """Return the attack of one row of the table as robustdup registers it, where these packages are not installed."""
    needed = ("foolbox", "eagerpy", *([entry.needs] if entry.needs else []))
    reason = next((INSTALL[package] for package in needed if package in absent), "")
    called = f" (foolbox also calls it {', '.join(entry.aliases)})" if entry.aliases else ""
    return AttackSpec(
        name=f"foolbox:{entry.name}", function=as_function(entry), norms=entry.norms, kind=entry.kind,
        knowledge=entry.knowledge, url=entry.url, cost=entry.cost, quick=entry.quick,
        description=f"{entry.summary}{called}.", warning=entry.warning, undemonstrated=entry.undemonstrated,
        available=not reason, reason=reason, aliases=tuple(f"foolbox:{alias}" for alias in entry.aliases),
    )  # fmt: skip


def register(registry: Registry) -> None:
    """Register every attack class of foolbox as `foolbox:ClassName`."""
    absent = missing()
    for entry in ENTRIES:
        registry.add_attack(as_spec(entry, absent))
