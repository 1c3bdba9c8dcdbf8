"""torchattacks' attacks behind robustdup's contract: every class of version 3.5.1, as `torchattacks:ClassName`.

Nothing is imported from torchattacks before an attack runs.
"""

from __future__ import annotations

from robustdup import Registry


def register(registry: Registry) -> None:
    """Register every row of the table; without torchattacks they are listed with the reason."""
    from robustdup_torchattacks.adapter import make_spec, missing
    from robustdup_torchattacks.table import ROWS

    reason = missing()
    for row in ROWS:
        registry.add_attack(make_spec(row, reason))
