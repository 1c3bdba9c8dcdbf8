"""Choose and sort entries of the leaderboard table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustdup.errors import UserError, unknown
from robustdup.leaderboard.table import Leaderboard, LeaderboardEntry, choose, load, same_eps

Key = Callable[[LeaderboardEntry], Any]

SORTS: dict[str, Key] = {
    "robust": lambda e: e.robust_acc,
    "autoattack": lambda e: e.autoattack_acc,
    "external": lambda e: e.external_acc,
    "clean": lambda e: e.clean_acc,
    "reported": lambda e: e.reported_acc,
    "corruptions": lambda e: e.corruptions_acc,
    "corruptions-3d": lambda e: e.corruptions_acc_3d,
    "name": lambda e: e.model_id.lower(),
}


def select(
    table: Leaderboard | None = None,
    *,
    dataset: str | None = None,
    threat: str | None = None,
    sort: str = "robust",
    top: int | None = None,
    search: str | None = None,
    architecture: str | None = None,
    extra_data: bool | None = None,
    unreliable: bool | None = None,
    eps: str | None = None,
) -> list[LeaderboardEntry]:
    """Return entries, best first (`name`: alphabetical); entries without the sorted number come last.

    `search` looks into name, title and venue; `architecture` is a part of the architecture's name; `extra_data` and
    `unreliable` keep only entries with (True) or without (False) that mark; `eps` is compared as an exact number.
    Raises UserError for an unknown dataset, threat model or sort, and for a leaderboard that does not exist.
    """
    table = table if table is not None else load()
    if sort not in SORTS:
        raise unknown("sort order", sort, SORTS)
    if top is not None and top < 1:
        raise UserError(f"--top must be at least 1, got {top}.", code="bad-option")
    wanted: list[Callable[[LeaderboardEntry], bool]] = [
        lambda e: _contains(search, e.model_id, e.paper_title, e.venue),
        lambda e: _contains(architecture, e.architecture),
        lambda e: extra_data is None or e.extra_data == extra_data,
        lambda e: unreliable is None or e.unreliable == unreliable,
        lambda e: eps is None or (e.eps is not None and same_eps(e.eps, eps)),
    ]
    kept = [entry for entry in _of_boards(table, dataset, threat) if all(fits(entry) for fits in wanted)]
    return ordered(kept, sort)[:top]


def _of_boards(table: Leaderboard, dataset: str | None, threat: str | None) -> list[LeaderboardEntry]:
    """Return the entries of one leaderboard, or of all those of a dataset or a threat model."""
    if dataset is not None and threat is not None:
        return list(table.board(dataset, threat))
    entries = list(table.entries)
    if dataset is not None:
        name = choose("dataset", dataset, table.datasets)
        entries = [entry for entry in entries if entry.dataset == name]
    if threat is not None:
        name = choose("threat model", threat, sorted({entry.threat_model for entry in entries}))
        entries = [entry for entry in entries if entry.threat_model == name]
    return entries


def ordered(entries: list[LeaderboardEntry], sort: str = "robust") -> list[LeaderboardEntry]:
    """Return entries in one of the orders of SORTS; ties by name."""
    key = SORTS[sort]
    known = sorted((entry for entry in entries if key(entry) is not None), key=lambda e: e.model_id.lower())
    return sorted(known, key=key, reverse=sort != "name") + [entry for entry in entries if key(entry) is None]


def _contains(part: str | None, *texts: str) -> bool:
    return part is None or any(part.lower() in text.lower() for text in texts)
