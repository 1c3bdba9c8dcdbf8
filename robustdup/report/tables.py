"""Tables that one pastes into a paper, in LaTeX or Markdown: of one run, and of several side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

from robustdup.errors import plain
from robustdup.records import (
    UNION,
    AttackResult,
    EvaluationRecord,
    UnionBall,
    bound_text,
    doubt_text,
    doubts,
    proven_text,
)
from robustdup.report.format import NONE, attack_label, percent, with_interval

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NONE: "--", "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$",
    "∞": r"$\infty$", "ε": r"$\varepsilon$", "[": "{[}", "*": "{*}",
}  # fmt: skip
# [ and * in braces: a line break before them would take them for its options
_LATEX_READS = (
    "ØøÆæŒœŁłßı§©®°±·×÷µ…“”‘’—→"  # besides ASCII and letters with an accent, whatever the encoding of the font
)
_OGONEK = "\u0328"  # the accent that needs another

Rows = Sequence[Sequence[str]]


def as_latex(caption: str, head: Sequence[str], rows: Rows, *, left: int = 1) -> str:
    """Return a LaTeX table (booktabs), escaped; the first `left` columns are aligned left, the others right."""
    columns = "l" * left + "r" * (len(head) - left)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        " & ".join(map(_tex, head)) + r" \\", r"\midrule",
    ]  # fmt: skip
    lines += [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def as_markdown(caption: str, head: Sequence[str], rows: Rows, *, left: int = 1) -> str:
    """Return a Markdown table below its caption; the first `left` columns are aligned left, the others right."""
    rule = "|".join(["---"] * left + ["---:"] * (len(head) - left))
    cells = [" | ".join(_markdown(cell).replace("|", "\\|") for cell in row) for row in (head, *rows)]
    return "\n".join([_markdown(caption), "", f"| {cells[0]} |", f"|{rule}|", *(f"| {row} |" for row in cells[1:])])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter) or _tex_letter(letter) for letter in plain(text))


def _tex_letter(letter: str) -> str:
    """Return a letter as it is where pdflatex reads it without further packages, else its number: [U+4E2D]."""
    base, *accents = list(unicodedata.normalize("NFD", letter))
    accented = base.isascii() and len(accents) == 1 and ord(letter) < 0x180 and accents[0] != _OGONEK
    return letter if letter.isascii() or accented or letter in _LATEX_READS else f"{{[}}U+{ord(letter):04X}]"


def _markdown(text: str) -> str:
    """Return text on one line in which no name makes HTML or a link."""
    return plain(text).replace("<", "&lt;").replace("](", "]\\(")


def ball_label(attack: AttackResult) -> str:
    """Return an attack's name with its options, after the ball that it worked in where there are several."""
    return f"{attack.ball}: {attack_label(attack)}" if attack.ball else attack_label(attack)


def alone_text(ball: UnionBall) -> str:
    """Return the robust accuracy in one ball of a union alone: with its interval, or between what bounds where it is open."""
    accuracy = ball.robust_accuracy
    if not (ball.n_open or ball.n_undecided):
        return with_interval(accuracy)
    return f"{percent(accuracy.value)} to {percent(ball.at_most)}"


def robust_text(record: EvaluationRecord) -> str:
    """Return the robust accuracy in per cent with its 95% interval, or as a bound where it is not to be believed."""
    return bound_text(record) if doubts(record) else with_interval(record.robust_accuracy)


def run_table(record: EvaluationRecord) -> tuple[str, list[str], list[list[str]]]:
    """Return (caption, head, rows) of one run: what each attack left, and the accuracy at each eps of a curve."""
    caption = f"{record.model.name} on {record.data.spec}, {record.threat.text}, n = {record.n}"
    rows = [["clean", str(record.n), "", percent(record.clean_accuracy.value)]]
    rows += [
        [ball_label(attack), str(attack.n_attacked), str(attack.n_broken), percent(attack.robust_accuracy_after)]
        for attack in record.attacks
    ]
    rows += [
        [f"robust in {ball.name} alone", str(ball.n_attacked), str(ball.n_broken), alone_text(ball)]
        for ball in record.union
    ]
    if len(record.curve) > 1:
        rows += [
            [f"robust at eps = {eps}", str(record.n), "", f"{'≤ ' if doubts(record) else ''}{percent(point.value)}"]
            for eps, point in record.curve.items()
        ]
    doubt = doubt_text(record)
    if record.certification is not None:
        proven = record.certification
        rows.append(
            ["certified, a lower bound", str(record.n), str(proven.n_certified), with_interval(proven.accuracy)]
        )
        caption = f"{caption}, {proven_text(record)}"
    if doubt:
        caption = f"{bound_text(record)}, {doubt}. {caption}"
    rows.append(["robust, an upper bound" if doubt else "robust", str(record.n), "", robust_text(record)])
    return caption, ["attack", "attacked", "broken", "robust accuracy after"], rows


def runs_table(records: Sequence[EvaluationRecord]) -> tuple[str, list[str], list[list[str]], int]:
    """Return (caption, head, rows, columns of words) of several runs, a row each; what all share is in the caption.

    A column for each eps that any of them was attacked at; a dash where a run was not.
    """
    words: dict[str, Callable[[EvaluationRecord], str]] = {
        "Data": lambda r: f"{r.data.spec} ({r.data.split})",
        "Norm": lambda r: r.threat.norm,
        "n": lambda r: str(r.n),
        "Attacks": lambda r: str(r.config.get("attacks", "")),
    }
    differ = {title: of for title, of in words.items() if len({of(record) for record in records}) > 1}
    shared = [f"{title.lower()} {of(records[0])}" for title, of in words.items() if title not in differ]
    radii: dict[tuple[Fraction, str], str] = {}
    for record in records:
        for eps in (*record.curve, record.threat.eps_text):
            radii.setdefault(_radius(record, eps), eps)
    head = ["Model", *differ, "Clean", *(f"Robust at {radii[eps]}" for eps in sorted(radii))]
    rows = []
    for record in records:
        by_radius = {_radius(record, eps): percent(point.value) for eps, point in record.curve.items()}
        if doubts(record):
            by_radius = {eps: f"≤ {text}" for eps, text in by_radius.items()}
        by_radius[_radius(record, record.threat.eps_text)] = robust_text(record)
        rows.append(
            [
                record.model.name, *(of(record) for of in differ.values()), percent(record.clean_accuracy.value),
                *(by_radius.get(eps, NONE) for eps in sorted(radii)),
            ]
        )  # fmt: skip
    return f"Robust accuracy: {', '.join(shared)}", head, rows, 1 + len(differ)


def _radius(record: EvaluationRecord, eps: str) -> tuple[Fraction, str]:
    """Return by what columns are ordered: a radius; a union, which has several, comes first and by its name."""
    return (Fraction(0), eps) if record.threat.norm == UNION else (Fraction(eps), "")
