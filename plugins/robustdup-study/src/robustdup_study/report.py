"""A study in the terminal and as Markdown: the sentences, the table of doses, and what is missing. From its record alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from robustdup.report.format import escape
from robustdup.report.live import Bars
from robustdup_study.metrics import is_share
from robustdup_study.records import Claim, DoseMean, PairedComparison, StudyProgress, StudyRecord

EVIDENCE = 6  # sentences of a claim that are written out; the rest is in the tables
VERDICT_STYLE = {"lower": "red", "higher": "green", "equivalent": "cyan", "undecided": "yellow"}


class LiveStudy(Bars):
    """Shows the whole grid as it goes: cells done, failed, and the time left."""

    def __init__(self, *, enabled: bool, lines: bool = False) -> None:
        super().__init__(
            TextColumn("[bold]cells"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            enabled=enabled,
            lines=lines,
        )
        self._task: TaskID | None = None

    def update(self, progress: StudyProgress) -> None:
        """Take one event of a study."""
        left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
        if progress.failed:
            left += f", {progress.failed} failed"
        left += f" ({progress.workers} at a time)" if progress.workers > 1 else ""
        left = "; ".join(filter(None, [left.removeprefix(", ").strip(), progress.under_way]))
        if self._task is None:
            self._task = self._bars.add_task("cells", total=progress.total, left=left)
        self._bars.update(self._task, completed=progress.done, left=left)
        if self._lines is not None:
            self._lines.say(lambda: f"{progress.done}/{progress.total} cells{f'; {left}' if left else ''}")
        if progress.message:
            self._bars.console.print(f"[yellow]{escape(progress.message)}")


def duration(seconds: float) -> str:
    """Return a time as 40 s, 12 min or 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def show_study(record: StudyRecord, folder: Path) -> None:
    """Print a study on standard output: table, sentences, claims, and what is missing."""
    console = Console()
    console.print(f"[bold]{escape(record.name)}[/]: {escape(summary(record))}", highlight=False, soft_wrap=True)
    for part in dose_tables(record):
        console.print(part)
    for title, lines in sections(record, brief=True):
        console.print(f"[bold]{title}")
        for line in lines:
            console.print(f"  • {escape(line)}", highlight=False, soft_wrap=True)
    for part in beside(record, console.width):
        console.print(part)
    console.print(escape(f"Report: {folder}/report.md, table: {folder}/cells.parquet"), style="dim", soft_wrap=True)


def summary(record: StudyRecord) -> str:
    """Return what was run, in one line."""
    text = f"{record.n_complete} of {record.n_cells} cells, {len(record.seeds)} seed{'s' * (len(record.seeds) > 1)}"
    text += f", {record.n_failed} failed" if record.n_failed else ""
    text += f", {record.n_missing} missing" if record.n_missing else ""
    return f"{text}, {duration(record.seconds)} of computing"


def sections(record: StudyRecord, *, brief: bool = False) -> list[tuple[str, list[str]]]:
    """Return the parts of a report that are sentences: (title, lines), empty ones left out.

    A brief one counts what is undecided between levels, or on the same images, instead of telling it.
    """
    others = [entry for entry in record.comparisons if entry.kind == "contrast" and not entry.primary]
    shown = [entry for entry in others if not brief or entry.verdict in ("lower", "higher", "equivalent")]
    contrasts = [entry.sentence for entry in shown]
    if len(shown) < len(others):
        contrasts.append(f"{len(others) - len(shown)} more are undecided: see the report.")
    sure = [entry for entry in record.image_differences if not brief or entry.low > 0 or entry.high < 0]
    same_images = [entry.sentence for entry in sure]
    if len(sure) < len(record.image_differences):
        same_images.append(
            f"{len(record.image_differences) - len(sure)} {'more ' * bool(sure)}show no difference beyond chance."
        )
    anova = [
        f"{term.metric}: {term.term}, F({term.df:g}, {term.df_error:g}) = {term.f:.2f}, p = {term.p:.2g} "
        f"(lower bound {term.p_lower_bound:.2g})"
        for term in record.anova
    ]
    parts = [
        ("Conclusions", record.conclusions),
        ("Between levels (not corrected)", contrasts if brief else []),
        ("The same training images with and without copies", same_images),
        ("Claims of arXiv 2504.00638", [claim.sentence for claim in record.claims] if brief else []),
        (
            "Doses stated in all usual ways",
            [f"{entry.dose:g} ({entry.mode}): {entry.text}" for entry in record.duplication_rates if entry.dose],
        ),
        ("ANOVA of the paired effects, seeds as subjects", anova),
        ("Seeds", precision(record)),
        ("Remarks", [*record.remarks, *record.analysis_changes]),
    ]
    return [(title, lines) for title, lines in parts if lines]


def precision(record: StudyRecord) -> list[str]:
    """Return what the seeds could have shown, and how many a wished precision needs, for each metric of the study."""
    analysis = record.recipe.get("analysis", {})
    lines = []
    for name in analysis.get("metrics", []):
        comparisons = [
            comparison
            for comparison in record.comparisons
            if comparison.metric == name and comparison.primary and comparison.power is not None
        ]
        if not comparisons:
            continue
        powers = [comparison.power for comparison in comparisons if comparison.power is not None]
        text = (
            f"{name}: with {_range([len(comparison.seeds) for comparison in comparisons])} seeds the power to see a "
            f"difference of the size of the margin was {_range([round(100 * p) for p in powers])}%"
        )
        needed = [
            comparison.seeds_for_precision for comparison in comparisons if comparison.seeds_for_precision is not None
        ]
        if needed:
            text += f"; intervals of ±{analysis.get('precision')} points need {_range(needed)} seeds"
        lines.append(f"{text}.")
    return lines


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def varying(record: StudyRecord) -> list[str]:
    """Return the factors besides the dose that have several levels."""
    dose = record.recipe.get("analysis", {}).get("dose", "dose")
    levels: dict[str, set[str]] = {}
    for mean in record.means:
        for name, value in mean.factors.items():
            levels.setdefault(name, set()).add(str(value))
    return [name for name, values in levels.items() if len(values) > 1 and name != dose]


def cells_of_table(record: StudyRecord) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the table of doses: header, rows of text, and the verdict of each row.

    A row for each combination of factors and dose: for each metric of the study its mean over seeds and the paired
    difference to no copies with its interval, in per cent and points where it is a share.
    """
    metrics = [
        m for m in record.recipe.get("analysis", {}).get("metrics", []) if any(x.metric == m for x in record.means)
    ]
    names = varying(record)
    effects = {
        (comparison.metric, _place(comparison.factors), comparison.dose): comparison
        for comparison in record.comparisons if comparison.kind == "dose"
    }  # fmt: skip
    means = {(mean.metric, _place(mean.factors), mean.dose): mean for mean in record.means}
    header = [*names, record.recipe.get("analysis", {}).get("dose", "dose"), "seeds"]
    for name in metrics:
        header += [name, "difference"]
    rows, verdicts = [], []
    for place, dose in dict.fromkeys((_place(mean.factors), mean.dose) for mean in record.means):
        shown = [(means.get((name, place, dose)), effects.get((name, place, dose))) for name in metrics]
        seeds = max((mean.n for mean, _ in shown if mean is not None), default=0)
        row = [*(dict(place).get(name, "") for name in names), f"{dose:g}", str(seeds)]
        for mean, effect in shown:
            row += [_mean(mean), _effect(effect)]
        rows.append(row)
        judged = [effect.verdict for _, effect in shown if effect is not None]
        verdicts.append(next((v for v in ("lower", "higher", "undecided", "equivalent") if v in judged), ""))
    return header, rows, verdicts


def _place(factors: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in factors.items())


def _mean(mean: DoseMean | None) -> str:
    if mean is None:
        return "–"
    return f"{100 * mean.mean:.2f}" if is_share(mean.metric) else f"{mean.mean:.4g}"


def _effect(effect: PairedComparison | None) -> str:
    if effect is None:
        return ""
    scale, digits = (100, 2) if is_share(effect.metric) else (1, 3)
    text = f"{scale * effect.difference:+z.{digits}f}"
    if effect.low is not None and effect.high is not None:
        text += f" [{scale * effect.low:+z.{digits}f}, {scale * effect.high:+z.{digits}f}]"
    return re.sub(r"[+-](0\.0+)(?!\d)", r"\1", text).replace("-", "−")  # no sign before a zero


def dose_tables(record: StudyRecord) -> list[Table | Text]:
    """Return the table of doses for the terminal: a block of lines for each combination of the other factors.

    A line is coloured by what was concluded from it. Factors stand above their block, so that 80 columns hold two metrics.
    """
    header, rows, verdicts = cells_of_table(record)
    text = len(varying(record))
    titles = [
        title.replace("_accuracy", "").replace("_", " ").replace("difference", "change") for title in header[text:]
    ]
    widths = [max(map(len, column)) for column in zip(titles, *(row[text:] for row in rows), strict=True)]

    def block(**options: Any) -> Table:
        made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), **options)
        for title, width in zip(titles, widths, strict=True):
            made.add_column(title, justify="right", min_width=width)
        return made

    blocks: list[Table | Text] = [block()]
    lines = zip(rows, verdicts, strict=True)
    for place, group in itertools.groupby(lines, key=lambda line: line[0][:text]):
        if place:
            blocks.append(Text(", ".join(place), style="bold"))
        made = block(show_header=False)
        for row, verdict in group:
            made.add_row(*map(escape, row[text:]), style=VERDICT_STYLE.get(verdict, ""))
        blocks.append(made)
    return blocks


def beside(record: StudyRecord, width: int) -> list[Table]:
    """Return the published figures beside what was seen here; nothing where the recipe does not ask for it.

    In less than 140 columns (`width`) intervals and seeds stand below their value, and sources are left to the report.
    """
    if not record.published:
        return []
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, title="arXiv 2504.00638, published and here (%)")
    narrow = width < 140
    head = PUBLISHED_HEAD[:-1] if narrow else PUBLISHED_HEAD
    for title in head:
        heading = title.replace(", ", ",\n") if narrow else title
        made.add_column(heading, justify="left" if title in ("arm", "metric", "source") else "right", no_wrap=narrow)
    for row in _published_rows(record):
        cells = [
            cell.replace(" [", "\n[").replace("], ", "]\n").replace(", the", "\nthe") if narrow else cell
            for cell in row
        ]
        made.add_row(*(escape(cell.replace("_accuracy", "") if narrow else cell) for cell in cells[: len(head)]))
    return [made]


PUBLISHED_HEAD = ("arm", "percent", "metric", "published", "as published, here", "repaired, here", "source")


def _published_rows(record: StudyRecord) -> Iterable[list[str]]:
    for row in record.published:
        published = "–" if row.published is None else f"{row.published:.2f}"
        repaired = _seen(row.repaired, row.repaired_low, row.repaired_high, row.repaired_seeds)
        if row.mended == "clamp":
            repaired += ", the clamp alone"
        here = _seen(row.here, row.low, row.high, row.seeds)
        yield [row.arm, f"{row.percent:g}", row.metric, published, here, repaired, row.source]


def _seen(value: float | None, low: float | None, high: float | None, seeds: int) -> str:
    if value is None:
        return "–"
    interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{value:.2f}{interval}, {seeds} seed{'s' * (seeds > 1)}"


def markdown(record: StudyRecord) -> str:
    """Return the whole report as Markdown."""
    lines = [f"# {record.name}", "", f"{summary(record)}. `{record.command}`", ""]
    if record.analysis_since:
        lines += [f"The analysis (margins, primary comparisons) was fixed on {record.analysis_since}.", ""]
    if record.scope:
        lines += [f"Scope: {record.scope}.", ""]
    lines += claims_table(record.claims)
    header, rows, _ = cells_of_table(record)
    lines += markdown_table([title.replace("_", " ") for title in header], rows, left=len(varying(record)))
    lines += [
        "",
        "Means over seeds in per cent; differences in points to the same seed without copies, with 95% t intervals over "
        "seeds, for these test images, not corrected for their number.",
        "",
    ]
    if record.published:
        rows = list(_published_rows(record))
        lines += ["## Published and here (%)", "", *markdown_table(PUBLISHED_HEAD, rows, left=1), ""]
    for title, sentences in sections(record):
        lines += [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""]
    lines += _contrast_table(record)
    for claim in record.claims:
        if claim.evidence:
            more = [f"- {len(claim.evidence) - EVIDENCE} more: see the tables."] * (len(claim.evidence) > EVIDENCE)
            evidence = [f"- {text}" for text in claim.evidence[:EVIDENCE]]
            lines += [f"### {claim.claim}", "", f"{claim.sentence} {claim.attribution_text}", "", *evidence, *more, ""]
    failed = [row for row in record.runs if row.status == "failed"]
    if failed:
        lines += ["## Failed cells", ""]
        lines += [f"- `{row.cell}` (seed {row.seed}, {_words(row.factors)}): {row.error}" for row in failed] + [""]
    return "\n".join(lines)


def claims_table(claims: Sequence[Claim]) -> list[str]:
    """Return the table of published claims as lines of Markdown, with a heading; nothing where there are none."""
    if not claims:
        return []
    budgets = list(dict.fromkeys(budget for claim in claims for budget in claim.by_budget))
    header = ["claim", "verdict", "effect", "attribution", *budgets, "scope", "evidence", "what would change it"]
    rows = [
        [
            claim.claim, f"**{claim.verdict}**", claim.effect, f"{claim.attribution}. {claim.attribution_text}".strip(),
            *(claim.by_budget.get(budget, "–") for budget in budgets), claim.scope or "–",
            f"{claim.cells} runs; figure {claim.figure}" if claim.figure else "–", claim.would_change or "–",
        ]
        for claim in claims
    ]  # fmt: skip
    return [
        "## Claims of arXiv 2504.00638", "",
        "*Effect*: did accuracy move as claimed? *Attribution*: because of copies, or of what came along with them? A claim is "
        "confirmed or refuted only where copies are all that differs.", "",
        *markdown_table(header, rows, left=len(header)), "",
    ]  # fmt: skip


def _contrast_table(record: StudyRecord) -> list[str]:
    """Return the comparisons between levels as a table: none of them is corrected for their number."""
    contrasts = [
        comparison for comparison in record.comparisons if comparison.kind == "contrast" and not comparison.primary
    ]
    if not contrasts:
        return []
    names = varying(record)
    rows = [
        [
            comparison.metric.replace("_", " "), levels_text(comparison),
            ", ".join(str(comparison.factors[name]) for name in names if name in comparison.factors),
            f"{comparison.dose:g}", _effect(comparison),
            "–" if comparison.p is None else f"{comparison.p:.2g}", comparison.verdict, str(len(comparison.seeds)),
        ]
        for comparison in contrasts
    ]  # fmt: skip
    header = ["metric", "levels", "where", "dose", "difference", "p", "verdict", "seeds"]
    return ["## Between levels (explored, not corrected)", "", *markdown_table(header, rows, left=3), ""]


def levels_text(comparison: PairedComparison) -> str:
    """Return what a contrast compares: "matched against copies", an interaction with the change that is compared."""
    change = f"change {comparison.change}, " if comparison.change else ""
    return f"{change}{comparison.level} against {comparison.against}"


def _words(factors: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in factors.items())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return the lines of a Markdown table; columns from `left` on are right-aligned."""
    marks = ["---" if number < left else "---:" for number in range(len(header))]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (header, marks, *rows)]
