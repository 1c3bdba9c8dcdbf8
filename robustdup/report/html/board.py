"""The published models around a run: a chart of clean against robust accuracy, and the table."""

from __future__ import annotations

from typing import Any

from robustdup.leaderboard import LeaderboardEntry, RankResult, load
from robustdup.records import EvaluationRecord
from robustdup.report.charts import Chart, Point, Series, linear
from robustdup.report.format import missing, percent
from robustdup.report.html.page import Section


def board_section(record: EvaluationRecord, rank: RankResult | str) -> Section:
    """Return the leaderboard around a run; only a sentence where there is none for its images and norm."""
    sentence = rank if isinstance(rank, str) else rank.sentence()
    board = () if isinstance(rank, str) or rank.dataset is None else _board(rank)
    entries = [entry for entry in board if entry.robust_acc is not None and entry.clean_acc is not None]
    unknown = missing(record.clean_accuracy.value) or missing(record.robust_accuracy.value)
    if isinstance(rank, str) or not entries or unknown:
        return Section("leaderboard", "On the leaderboard", "sections/board.html.j2", sentence, None)
    rows = [_row(entry) for entry in entries]
    rows.append({"own": True, "name": record.model.spec, **_own(record, rank)})
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
    chart = _chart(record, rank, entries)
    return Section("leaderboard", "On the leaderboard", "sections/board.html.j2", sentence, content, (chart,))


def _board(rank: RankResult) -> tuple[LeaderboardEntry, ...]:
    return load().boards.get((rank.dataset or "", rank.threat_model), ())


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
        "extra": None, "unreliable": False, "venue": _standing(rank)[0], "url": "", "paper": "",
    }  # fmt: skip


def _standing(rank: RankResult) -> tuple[str, str]:
    """What the mark of the run is called, and its key: only what was measured as the others were stands among them."""
    if rank.autoattack is not None:
        return "this run", "this run, with its 95% interval"
    if rank.at_most is not None:
        return "this run, a bound", "this run by a weaker attack: its robust accuracy is this or less"
    return "this run, not comparable", f"this run, not comparable: {rank.reasons[0].rstrip('.')}"


def _chart(record: EvaluationRecord, rank: RankResult, entries: list[LeaderboardEntry]) -> Chart:
    def series(name: str, tone: str, shape: str, extra: bool) -> Series:
        points = [
            Point(
                e.clean_acc or 0.0,
                e.robust_acc or 0.0,
                f"{e.model_id}: clean {e.clean_acc:.2f}%, robust {e.robust_acc:.2f}%",
            )
            for e in entries
            if e.extra_data is extra
        ]
        return Series(name, points, tone, shape, line=False)

    clean, robust = record.clean_accuracy, record.robust_accuracy
    tip = f"{record.model.spec}: clean {percent(clean.value)}, robust {percent(robust.value)}"
    label, key = _standing(rank)
    tip += "" if rank.autoattack is not None else f" ({label})"
    own = Point(100 * clean.value, 100 * robust.value, tip, 100 * robust.low, 100 * robust.high, label=label)
    xs = [entry.clean_acc or 0.0 for entry in entries] + [own.x]
    ys = [entry.robust_acc or 0.0 for entry in entries] + [own.low or own.y, own.high or own.y]
    board = f"RobustBench {rank.dataset} {rank.threat_model} {rank.leaderboard_eps or ''}".strip()
    return Chart(
        "leaderboard", f"{board}: clean against robust accuracy",
        f"{len(entries)} published models. This run: clean {percent(clean.value)}, robust {percent(robust.value)}.",
        linear(min(xs), max(xs), "clean accuracy", text=lambda v: f"{round(v, 6):g}%", margin=0.03),
        linear(max(min(ys), 0.0), max(ys), "robust accuracy", text=lambda v: f"{round(v, 6):g}%"),
        [
            series("published", "c0", "circle", False),
            series("published, extra training data", "c1", "triangle", True),
            Series(key, [own], "own", "diamond" if rank.autoattack is not None else "ring", line=False),
        ],
        height=340,
    )  # fmt: skip
