"""The percentage by which arXiv 2504.00638 states a dose: whole copies in its standard arm, a share in its adversarial one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robustdup.errors import UserError
from robustdup_study.records import DuplicationRate

ARMS = ("standard", "adversarial")


def plan(percent: Any, rest: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return the settings of a duplication plan for a percentage, and the share of its entries that are copies.

    Under the scheme whole_set p means p // 10 whole copies, under any other p per cent of the images once more.

    Args:
        percent: From 0 to 100.
        rest: The other settings of the plan.

    Raises:
        UserError: It is not a number from 0 to 100.
    """
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise UserError(f"percent goes from 0 to 100, as in arXiv 2504.00638; got {percent!r}.", code="bad-value")
    if rest.get("scheme") == "whole_set":
        return {"paper_p": int(percent)}, _share(percent // 10)
    return {"paper_r": percent / 100}, _share(percent / 100)


def _share(copies: float) -> float:
    """Return the share of entries that are copies where each original has so many."""
    return copies / (1 + copies)


def readings(percents: Iterable[float]) -> list[DuplicationRate]:
    """Return what percentages mean in each arm."""
    doses = list(percents)
    return [_reading(percent, arm) for arm in ARMS for percent in doses]


def _reading(percent: float, arm: str) -> DuplicationRate:
    added = percent // 10 if arm == "standard" else percent / 100
    share = _share(added)
    text = f"in the {arm} arm {_copies_added(arm, added)}: {100 * share:.4g}% of the entries are copies"
    return DuplicationRate(
        dose=percent,
        mode=f"{arm} arm",
        share_of_copies=share,
        copies_percent_of_originals=100 * added,
        entries_per_original=1 + added,
        unique_percent_of_originals=100.0,
        text=text,
    )


def _copies_added(arm: str, added: float) -> str:
    if arm == "adversarial":
        return f"{100 * added:.4g}% of the images are added once more"
    return f"{added:.4g} further cop{'y' if added == 1 else 'ies'} of every image {'is' if added == 1 else 'are'} added"
