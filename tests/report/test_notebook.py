"""What a notebook shows of a result: the numbers of the record, each attack, and what is said against them."""

import re
from html import unescape

from robustdup.records import Diagnostic
from robustdup.report.notebook import STYLES, notebook_html


def cells(shown):
    rows = re.findall(r"<tr>(.*?)</tr>", shown)
    return [
        [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)] for row in rows
    ]


def test_the_tables_hold_the_numbers_of_the_record(run):
    record = run().record
    rows = cells(notebook_html(record, "none"))
    verdict = {row[0].strip(): row[1] for row in rows if len(row) == 2}
    accuracy = record.robust_accuracy
    assert verdict["Robust accuracy"] == (
        f"{100 * accuracy.value:.2f}% [{100 * accuracy.low:.2f}, {100 * accuracy.high:.2f}]"
    )
    head, *attacks = [row for row in rows if len(row) > 2]
    assert head[:4] == ["Attack", "Samples", "Broken", "Robust"]
    assert [row[1:3] for row in attacks] == [[str(a.n_attacked), str(a.n_broken)] for a in record.attacks]


def test_remarks_stand_below_in_colours_for_any_ground(run):
    signs = [Diagnostic(code="x", severity=each, message=f"seen: {each}", advice="Look.") for each in
             ("info", "warning", "serious")]  # fmt: skip
    shown = notebook_html(run(diagnostics=signs).record, "No rank <here>.")
    for style, each in (("blue", "info"), ("yellow", "warning"), ("bold red", "serious")):
        assert f'<p><span style="{STYLES[style]}">{each}: seen: {each}</span> Look.</p>' in shown
    assert shown.endswith("<p>Leaderboard: No rank &lt;here&gt;.</p>\n</div>")
