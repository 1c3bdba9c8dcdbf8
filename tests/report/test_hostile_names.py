"""Names come from strangers: no terminal is written to by them, no markup is read in them, no table or card ends at them."""

import re
from collections import Counter

import pytest

from robustdup.records import EvaluationRecord
from robustdup.report.card import model_card
from robustdup.report.notebook import notebook_html
from robustdup.report.terminal import latex_table, markdown_table, show_record

NAMES = {
    "markup": "[/bold] [link=http://x]y[/link] [red]",
    "escape": "a\x1b[31mred\x1b]0;title\x07\x9b2J",
    "direction": "safe\u202egnp.exe\u2066",
    "lines": "a\nb\r\nc\u2028d",
    "tables": "a | b & c \\\\ \\hline {x} $y$ % z # _ ^ ~ \\",
    "html": "<script>alert(1)</script> [x](javascript:alert(1))",
    "null": "a\x00b\x08\x7f",
}
KEPT = {
    "norm",
    "eps_text",
    "status",
    "schema_name",
    "severity",
    "code",
    "sha256",
    "fingerprint",
    "created",
    "selection",
}
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def hostile(value, name, key=""):
    """Put a name in place of every text but those that a reader of records tells cases apart by."""
    if isinstance(value, str):
        return value if key in KEPT or not value else name
    if isinstance(value, dict):
        return {k: hostile(part, name, k) for k, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(hostile(part, name, key) for part in value)
    return value


@pytest.fixture(params=NAMES)
def record(request, run):
    name = NAMES[request.param]
    made = run().record
    content = hostile(made.model_dump(mode="json"), name)
    content["attacks"][0] |= {
        "options": {name: name}, "violations": 1, "violation_kinds": {name: 1}, "warning": name, "errors": [name],
    }  # fmt: skip
    content["events"] = [name]
    content["diagnostics"] = [{"code": "x", "severity": "serious", "message": name, "advice": name}]
    content["per_class"] = [{**each, "name": name} for each in content["per_class"]]
    return EvaluationRecord.model_validate(content)


def test_the_terminal_shows_names_as_they_are_written(record, capsys):
    show_record(record, None)
    shown = capsys.readouterr().out
    assert not CONTROLS.search(shown)
    if record.model.spec == NAMES["markup"]:
        assert "[/bold]" in shown
        assert "[red]" in shown


def test_a_notebook_gets_no_tag_of_a_name(record):
    shown = notebook_html(record, record.model.spec)
    assert not CONTROLS.search(shown)
    tags = Counter(re.findall(r"</?[a-z]+", shown))
    known = ("div", "table", "thead", "tbody", "tr", "td", "th", "p", "span")
    assert {tag.strip("</") for tag in tags} <= set(known)
    assert all(tags[tag] == tags[tag.replace("<", "</")] for tag in tags if "/" not in tag)
    assert "&lt;script&gt;" in shown or "<script" not in record.model.spec


def test_tables_and_cards_stay_whole(record):
    attacks = len(record.attacks)
    tex = latex_table(record)
    assert not CONTROLS.search(tex)
    assert tex.count(r"\end{table}") == 1
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == attacks + 2
    assert all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in body)
    table = markdown_table(record)
    assert not CONTROLS.search(table)
    assert "<script" not in table
    assert "](" not in table
    rows = [row for row in table.splitlines() if row.startswith("|")]
    assert len(rows) == attacks + 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    card = model_card(record)
    assert not CONTROLS.search(card)
    prose, fence, _ = card.split("\n---\n", 1)[1].partition("```")
    assert fence
    assert not re.search(r"(?<!\\)<", prose)


def test_classes_and_files_of_a_folder_are_shown_as_they_are_written(tmp_path, capsys):
    from PIL import Image

    from robustdup.cli.main import main

    for name in ("[red]a[bold]", "b\x1b]0;title\x07"):
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "x.png")
    assert main(["data", "describe", str(tmp_path / "data"), "--split", "test"]) == 0
    shown = capsys.readouterr()
    assert "[red]a[bold]" in shown.out
    assert not CONTROLS.search(shown.out)
    assert main(["data", "describe", str(tmp_path / "b\x1b[31m")]) == 2
    assert not CONTROLS.search(capsys.readouterr().err)
