"""The published models around a run: a chart of clean against robust accuracy, and the table."""

from __future__ import annotations

from typing import Any

from robustdup.leaderboard import LeaderboardEntry, RankResult
from robustdup.records import EvaluationRecord, doubts
from robustdup.report.evaluation_figures import board, board_entries, standing
from robustdup.report.format import missing
from robustdup.report.html.page import Section


def board_section(record: EvaluationRecord, rank: RankResult | str) -> Section:
    """Return the leaderboard around a run; only a sentence where there is none for its images and norm."""
    sentence = rank if isinstance(rank, str) else rank.sentence()
    entries = [] if isinstance(rank, str) or rank.dataset is None else board_entries(rank)
    unknown = missing(record.clean_accuracy.value) or missing(record.robust_accuracy.value)
    if isinstance(rank, str) or not entries or unknown:
        return Section("leaderboard", "On the leaderboard", "sections/board.html.j2", sentence, None)
    rows = [_row(entry) for entry in entries]
    rows.append({"own": True, "name": record.model.name, **_own(record, rank)})
    rows.sort(key=lambda row: -row["robust"])
    content = {
        "rows": rows,
        "reasons": [reason for reason in rank.reasons if reason.rstrip(".") not in sentence]
        if rank.autoattack is None
        else [],
        "notes": [note for note in rank.notes if note not in sentence],
        "source": rank.leaderboard_source,
        "date": rank.leaderboard_date,
    }
    chart = board(record, rank, entries)
    return Section("leaderboard", "On the leaderboard", "sections/board.html.j2", sentence, content, (chart,))


def _row(entry: LeaderboardEntry) -> dict[str, Any]:
    return {
        "own": False,
        "name": entry.model_id,
        "architecture": entry.architecture,
        "clean": entry.clean_acc or 0.0,
        "autoattack": entry.autoattack_acc,
        "robust": entry.robust_acc or 0.0,
        "eps": entry.eps or "",
        "extra": entry.extra_data,
        "unreliable": entry.unreliable,
        "venue": entry.venue,
        "url": entry.paper_url if entry.paper_url.startswith(("https://", "http://")) else "",
        "paper": entry.paper_title,
    }


def _own(record: EvaluationRecord, rank: RankResult) -> dict[str, Any]:
    robust = 100 * record.robust_accuracy.value
    return {
        "architecture": record.model.architecture, "clean": 100 * record.clean_accuracy.value,
        "autoattack": robust if rank.autoattack is not None else None, "robust": robust, "eps": record.threat.eps_text,
        "extra": None, "unreliable": bool(doubts(record)), "venue": standing(rank)[0], "url": "", "paper": "",
    }  # fmt: skip
