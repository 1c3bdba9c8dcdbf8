"""An evaluation as a notebook shows it: the verdict, each attack, and what speaks against the number."""

from __future__ import annotations

from html import escape

from rich.text import Text

from robustdup.errors import plain
from robustdup.records import EvaluationRecord
from robustdup.report.format import printable
from robustdup.report.tables import ball_label
from robustdup.report.terminal import attack_columns, remarks, verdict_lines

# Colours that can be read on white and on black; notebooks bring their own font, lines and ground.
STYLES = {
    "bold": "font-weight:bold", "bold red": "font-weight:bold;color:#d93025", "yellow": "color:#b26a00",
    "blue": "color:#2f7fd0", "dim": "opacity:0.7",
}  # fmt: skip


def notebook_html(record: EvaluationRecord, leaderboard: str) -> str:
    """Return tables for a notebook, without scripts, every text escaped.

    Args:
        record: of an evaluation.
        leaderboard: where the model stands, in a sentence.
    """
    record = printable(record)
    columns = attack_columns(record)
    verdict = [f"<tr>{_cell(_html(name))}{_cell(_html(value))}</tr>" for name, value in verdict_lines(record)]
    head = _cell("Attack", "th") + "".join(_cell(name, "th", "right") for name in columns)
    attacks = [
        f"<tr>{_cell(escape(ball_label(attack)))}{''.join(_cell(number, side='right') for number in numbers)}</tr>"
        for attack, numbers in zip(record.attacks, zip(*columns.values(), strict=True), strict=True)
    ]
    below = [_html(line) for line in remarks(record)] + [f"Leaderboard: {escape(plain(leaderboard, lines=True))}"]
    return "\n".join(
        [
            '<div style="max-width:60em;overflow-x:auto">', "<table>", *verdict, "</table>",
            f'<p style="{STYLES["dim"]}">{escape(record.interval_about)}</p>',
            f"<table><thead><tr>{head}</tr></thead><tbody>", *attacks, "</tbody></table>",
            *(f"<p>{line}</p>" for line in below), "</div>",
        ]
    )  # fmt: skip


def _cell(content: str, tag: str = "td", side: str = "left") -> str:
    return f'<{tag} style="text-align:{side};padding:0.1em 0.6em;white-space:pre-wrap">{content}</{tag}>'


def _html(markup: str) -> str:
    """Return a line of rich's markup, in which styles follow each other, as HTML."""
    text, parts, end = Text.from_markup(markup), [], 0
    for span in text.spans:
        parts.append(escape(text.plain[end : span.start]))
        styled = escape(text.plain[span.start : span.end])
        parts.append(f'<span style="{STYLES[str(span.style)]}">{styled}</span>')
        end = span.end
    return "".join([*parts, escape(text.plain[end:])])
