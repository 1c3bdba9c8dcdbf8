"""adv-lib's attacks behind robustdup's contract."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from robustdup import AttackFunction, AttackSpec, attack_signature, how_to_install
from robustdup_advlib.table import ENTRIES, Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import Registry, SampleRng, ThreatModel


def missing() -> str:
    """Return why adv-lib cannot run here, or '' if it can: looks for it without importing it."""
    spec = importlib.util.find_spec("adv_lib")
    if spec is None or spec.origin is None:  # without origin: a mere folder of that name
        return f"adv-lib is not installed: {how_to_install('--no-deps', 'adv-lib>=0.2.8,<0.3')}"
    return ""


def as_function(entry: Entry) -> AttackFunction:
    """Return the attack of one row of the table; adv-lib and torch are imported when it is called."""

    def attack(
        model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, **options: Any
    ) -> Tensor:
        from robustdup_advlib.adapter import run

        return run(entry, model, images, labels, threat, rng=rng, **options)

    attack.__signature__ = attack_signature(entry.options, entry.choices)  # type: ignore[attr-defined]
    attack.__name__ = attack.__qualname__ = entry.name
    attack.__doc__ = f"{entry.summary} ({entry.module}.{entry.name}): {entry.url}"
    return attack


def as_spec(entry: Entry, reason: str) -> AttackSpec:
    """Return the attack of one row of the table as robustdup registers it."""
    return AttackSpec(
        name=f"advlib:{entry.name}", function=as_function(entry), norms=entry.norms, kind=entry.kind, url=entry.url,
        cost=entry.cost, quick=entry.quick, description=f"{entry.summary}.", warning=entry.warning,
        undemonstrated=entry.undemonstrated, available=not reason, reason=reason,
    )  # fmt: skip


def register(registry: Registry) -> None:
    """Register every attack on classifiers of adv-lib as `advlib:function`."""
    reason = missing()
    for entry in ENTRIES:
        registry.add_attack(as_spec(entry, reason))
