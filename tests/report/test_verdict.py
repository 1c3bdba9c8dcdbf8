"""A robust accuracy that is not to be believed is printed as a bound everywhere, and gets no place on the board."""

import re
from html import unescape

import pytest
from rich.console import Console

from robustdup.leaderboard import position
from robustdup.records import Diagnostic, bound_text, doubt_text, doubts, load_samples
from robustdup.report.card import model_card
from robustdup.report.html.evaluation import evaluation_page
from robustdup.report.notebook import notebook_html
from robustdup.report.runs import read_run
from robustdup.report.tables import runs_table
from robustdup.report.terminal import latex_table, markdown_table, verdict_panel

REASONS = ["The gradient of the loss is exactly zero for 100% of 30 samples."]
SAID = "gradients masked: the gradient of the loss is exactly zero for 100% of 30 samples"


def printed(record):
    console = Console(width=200, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict_panel(record))
    return console.export_text()


def forms(made):
    """Every form in which a person meets the number."""
    record = made.record
    figure = evaluation_page(read_run(made.folder), "x").context["figures"][0]
    return {
        "terminal": printed(record), "markdown": markdown_table(record), "latex": latex_table(record),
        "card": model_card(record, load_samples(made.folder)), "str": str(record),
        "notebook": unescape(re.sub("<[^>]*>", " ", notebook_html(record, ""))), "page": f"{figure.text} {figure.note}",
        "rank": position(record, load_samples(made.folder)).sentence(),
    }  # fmt: skip


def test_what_is_not_to_be_believed_is_a_bound_in_every_form(run):
    made = run(reliable=False, unreliable_reasons=REASONS)
    bound = bound_text(made.record)
    assert bound == f"≤ {100 * made.record.robust_accuracy.value:.2f}%"
    shown = forms(made)
    for name, text in shown.items():
        assert SAID in text.replace("\\", ""), name
    for name in ("terminal", "notebook", "markdown", "card", "str", "page"):
        assert bound in shown[name], name
    assert bound.replace("≤", r"$\leq$").replace("%", r"\%") in shown["latex"]
    assert "place" not in shown["rank"]
    low = f"[{100 * made.record.robust_accuracy.low:.2f}"
    assert not any(low in shown[name] for name in ("terminal", "notebook", "markdown", "str"))
    rows = runs_table([made.record, made.record])[2]
    assert rows[0][-1] == bound


@pytest.mark.parametrize("reliable", [True, None])
def test_what_may_be_believed_is_printed_as_ever(run, reliable):
    shown = forms(run(reliable=reliable))
    assert not any("≤" in text or "gradients masked" in text for text in shown.values())


def test_an_older_record_is_doubted_for_its_own_serious_signs(run):
    sign = Diagnostic(code="zero_gradients", severity="serious", message=REASONS[0], advice="")
    assert doubts(run(diagnostics=[sign]).record) == REASONS
    other = sign.model_copy(update={"code": "clean_near_chance"})
    assert doubts(run("other", diagnostics=[other]).record) == []
    seen_through = run("seen", diagnostics=[sign], reliable=True)
    assert doubt_text(seen_through.record) == ""


def test_a_model_with_a_serious_sign_gets_no_place(run):
    made = run(reliable=False, unreliable_reasons=REASONS)
    result = position(made.record, load_samples(made.folder))
    assert not result.comparable
    assert result.autoattack is None
    assert result.at_most is None
