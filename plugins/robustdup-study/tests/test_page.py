"""Every number in the tables of a study's page is the record's, and those of the written report are the same."""

from __future__ import annotations

import html
import importlib.util
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from robustdup_study.records import PublishedFigure, save_study_record
from robustdup_study.report import beside, cells_of_table, markdown

from robustdup.report.html import write_report

_spec = importlib.util.spec_from_file_location("studies_made", Path(__file__).with_name("test_record.py"))
_made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_made)


class Tables(HTMLParser):
    """The tables of a page by their id: rows of cells, each its text; what an interval says stands after a bar."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self._rows, self._in_cell = {}, None, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attributes).get("id"), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "small":
            self._rows[-1][-1] += "|"

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self._rows[-1][-1] += data

    def __getitem__(self, name):
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[name][1:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of two metrics, with claims, published figures and an analysis of variance: (record, tables of its page)."""
    folder = tmp_path_factory.mktemp("study")
    record = _made.study(
        folder, _made.skewed_harm, published=True,
        extra=lambda clean, factors: {"robust_accuracy": clean / 2, "steps": 4000.0 * (1 + factors["dose"]) + 1000 * clean},
        analysis={"metrics": ["clean_accuracy", "robust_accuracy", "steps"], "margins": {"clean_accuracy": 1.0},
                  "contrasts": ["scheme"]},
    )  # fmt: skip
    figure = {"arm": "adversarial", "metric": "clean", "source": "page 1"}
    record.published = [
        PublishedFigure(percent=0, published=None, here=None, **figure),  # nothing to show, and so not on the page
        PublishedFigure(percent=10, published=41.16, here=30.05, low=29.5, high=30.6, seeds=2, **figure),
        PublishedFigure(percent=60, published=None, here=20.1, seeds=1, repaired=52.0, repaired_low=51.4, repaired_high=52.6,
                        repaired_seeds=2, mended="clamp", **figure),
    ]  # fmt: skip
    save_study_record(record, folder)
    page = write_report([folder], folder / "pages").read_text(encoding="utf-8")
    return record, Tables(page), page


def signed(metric, value):
    """A difference as a person writes it: shares in points, counts with separators from a thousand on."""
    count = f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"
    text = f"{100 * value:+.2f}" if metric.endswith("accuracy") else count
    return text.replace("-", "−")


def p_value(value):
    return "–" if value is None else f"{value:.2g}"


@pytest.mark.parametrize("kind", ["dose", "contrast"])
def test_the_table_of_effects_is_the_records(made, kind):
    record, tables, _ = made
    rows = [row for name in tables.tables if (name or "").startswith(f"effects-{kind}-") for row in tables[name]]
    of_kind = [entry for entry in record.comparisons if entry.kind == kind]
    assert {entry.metric for entry in of_kind} >= {"clean_accuracy", "robust_accuracy", "steps"}
    expected = sorted(
        (
            [
                entry.primary,
                f"{entry.dose:.4g}",
                signed(entry.metric, entry.difference)
                + (f"|{signed(entry.metric, entry.low)} to {signed(entry.metric, entry.high)}" if entry.low is not None else ""),
                entry.verdict + ", within the margin" * entry.also_equivalent,
                str(len(entry.seeds)),
                p_value(entry.p),
                "" if entry.p_holm is None else p_value(entry.p_holm),
            ]
            for entry in of_kind
        ),
        key=str,
    )  # fmt: skip
    assert sorted(([row[0].endswith(" primary"), row[1], *row[3:]] for row in rows), key=str) == expected


def test_the_table_of_claims_is_the_records_and_the_reports(made):
    record, tables, page = made
    budgets = list(dict.fromkeys(budget for claim in record.claims for budget in claim.by_budget))
    assert len(record.claims) == 5
    assert tables["claims-table"] == [
        [
            claim.claim, claim.verdict, claim.effect,
            claim.attribution + (f"|{claim.attribution_text}" if claim.attribution_text else ""),
            *(claim.by_budget.get(budget, "–") for budget in budgets), claim.scope,
            f"{claim.cells} runs" if claim.figure else "–", claim.would_change,
        ]
        for claim in record.claims
    ]  # fmt: skip
    report = markdown(record)
    for claim in record.claims:
        assert not claim.figure or f'id="{claim.figure}"' in page
        told = [claim.sentence, *claim.evidence]
        assert all(html.escape(text, quote=False) in page.replace("&#39;", "'") for text in told)
        assert all(text in report for text in told[: 4 if claim.evidence else 0])
    assert any(re.search(r"\d\.\d\d", text) for claim in record.claims for text in claim.evidence)


def test_the_other_tables_are_the_records(made):
    record, tables, page = made
    assert tables["published-table"] == [
        ["adversarial", "10", "clean", "", "30.05|29.50 to 30.60", "41.16", "2", "–", "page 1"],
        ["adversarial", "60", "clean", "", "20.10", "–", "1", "52.00|51.40 to 52.60, the clamp alone", "page 1"],
    ]
    fields = re.findall(r'data-field="published\.(\d+)\.here" data-value="([^"]*)"', page)
    assert [record.published[int(at)].here for at, _ in fields] == [float(value) for _, value in fields]
    assert [row[2:6] for row in tables["anova-table"]] == [
        [f"{term.df:.4g}, {term.df_error:.4g}", f"{term.f:,.2f}", p_value(term.p), p_value(term.p_lower_bound)]
        for term in record.anova
    ]
    shown = tables["cells-table"]
    assert len(shown) == len(record.runs) == 48
    for row, run in zip(shown, record.runs, strict=True):
        assert row[0] == run.cell
        assert row[4:6] == [str(run.seed), run.status]
        assert row[6:8] == [f"{100 * run.metrics[name]:.2f}%" for name in ("clean_accuracy", "robust_accuracy")]


def test_the_numbers_behind_the_charts_are_those_of_the_report(made):
    record, tables, _ = made
    header, rows, _ = cells_of_table(record)
    behind = {cell for row in tables.tables[None] for cell in map(str.strip, row)}
    for row in rows:
        for name, text in zip(header, row, strict=True):
            if name in ("clean_accuracy", "robust_accuracy"):
                assert any(cell.startswith(text) for cell in behind), text


def test_published_figures_fit_80_columns_and_break_no_word(made):
    record, _, _ = made
    console = Console(width=80, file=io.StringIO())
    [table] = beside(record, 80)
    console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert {
        "adversarial",
        "published",
        "30.05",
        "[29.50, 30.60]",
        "52.00",
        "[51.40, 52.60]",
        "the clamp alone",
        "2 seeds",
    } <= {part.strip() for line in text.splitlines() for part in re.split(r"\s{2,}", line)}
