"""Pages hold the record's numbers and nothing that a record could do; what is missing is said, not hidden."""

import base64
import hashlib
import importlib.util
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustdup.errors import RunError, UserError
from robustdup.leaderboard import RankResult, compare
from robustdup.leaderboard.rank import Place
from robustdup.records import Diagnostic, Threat, load_record, load_samples, save_record, save_samples
from robustdup.report.evaluation_figures import standing
from robustdup.report.html import write_report
from robustdup.report.html.site import breakable


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read = _load("reading").read
FIXTURE = Path(__file__).parents[1] / "fixtures" / "record-1.json"


@pytest.fixture
def page(tmp_path):
    """Write the pages of some runs and return the first one, read."""

    def make(*places, **options):
        return read(write_report([str(place) for place in places], tmp_path / "pages", **options))

    return make


def lookup(record, path):
    """Follow a path such as attacks.0.n_broken into a record."""
    found = record.model_dump()
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def test_numbers_on_the_page_are_the_records(run, page):
    made = run(seed=3)
    found = page(made.folder)
    assert {
        "robust_accuracy.value",
        "clean_accuracy.value",
        "attacks.3.n_broken",
        "per_class.2.robust_accuracy",
    } <= set(found.fields)
    for field, (value, text) in found.fields.items():
        true = lookup(made.record, field)
        assert float(value) == true, field
        shown = f"{true:,}" if isinstance(true, int) else f"{100 * true:.2f}%"
        assert text == shown, field
    robust = made.record.robust_accuracy
    assert f"95% interval {100 * robust.low:.2f} to {100 * robust.high:.2f}" in found.text


def test_the_verdict_counts_points(run, page):
    right = [True] * 30 + [False] * 10
    made = run(right=right, broken_by=[0] * 5 + [2] * 7 + [-1] * 28)
    assert made.record.robust_accuracy.value == 18 / 40
    text = page(made.folder).text
    assert (
        "Of 40 images the model classifies 30 correctly. Attacks within Linf 0.1 change 12 of these answers; 18 stand."
        in text
    )
    assert "still right 18" in text
    assert "broken by an attack 12" in text
    assert "wrong already 10" in text


def test_the_verdict_comes_first(run, page):
    sections = [values["id"] for tag, values in page(run().folder).tags if tag in ("section", "div") and "id" in values]
    assert sections[0] == "verdict"


def test_confusion_counts_every_point_once(run, page):
    made = run(k=3, n=30)
    found = page(made.folder)
    cells = [v["data-tip"] for tag, v in found.tags if tag == "td" and "--share" in v.get("style", "")]
    counts = {
        re.match(r"(.*) taken for (.*): (\d+)", cell).group(1, 2): int(cell.split(": ")[1].split()[0]) for cell in cells
    }
    assert sum(counts.values()) == 30
    taken = np.where(
        made.broken_by >= 0, (made.labels + 1) % 3, np.where(made.right, made.labels, (made.labels + 2) % 3)
    )
    for (true, after), count in counts.items():
        expected = ((made.labels == int(true[-1])) & (taken == int(after[-1]))).sum()
        assert count == expected, (true, after)


HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "../../../etc/passwd",
    "\u202eright to left\u2066",
    "x" * 3000,
    "--><!--",
    "javascript:alert(1)",
    "null\x00byte",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_change_nothing_but_text(run, tmp_path, text):
    def changes(word):
        base = run("base", images=False, samples=False)
        record = base.record
        attacks = [a.model_copy(update={"name": word, "options": {"loss": word}, "warning": word, "violations": 2,
                                        "violation_kinds": {word: 2}, "errors": [word]}) for a in record.attacks]  # fmt: skip
        return {
            "model": record.model.model_copy(update={"spec": word, "architecture": word}),
            "data": record.data.model_copy(update={"spec": word, "class_names": [word] * 4}),
            "per_class": [c.model_copy(update={"name": word}) for c in record.per_class],
            "attack_results": attacks, "command": word, "run_id": word, "events": [word], "interval_about": word,
            "diagnostics": [Diagnostic(code="x", severity="serious", message=word, advice=word)], "versions": {word: word},
            "config": {"attacks": word},
        }  # fmt: skip

    pages = {}
    for name, word in (("plain", "plain"), ("hostile", text)):
        made = run(name, **changes(word))
        before = set(tmp_path.rglob("*"))
        pages[name] = read(write_report([made.folder, made.folder], tmp_path / f"out-{name}"))
        own = read(tmp_path / f"out-{name}" / "run-001.html")
        pages[name, "own"] = own
        new = set(tmp_path.rglob("*")) - before
        assert all((tmp_path / f"out-{name}") in [path, *path.parents] for path in new)
        files = sorted(p.relative_to(tmp_path / f"out-{name}").as_posix() for p in new if p.is_file())
        assert files == [".robustdup-report.json", *(f"images/run-00{r}-0{s}.png" for r in (1, 2) for s in (0, 1)),
                         "index.html", "run-001.html", "run-002.html"]  # fmt: skip
    assert pages["hostile"].structure == pages["plain"].structure
    assert pages["hostile", "own"].structure == pages["plain", "own"].structure
    links = {values.get("href") for tag, values in pages["hostile", "own"].tags if tag == "a"}
    assert not any(link.startswith("javascript") for link in links if link)
    shown = text.replace("\x00", "")
    assert " ".join(shown.split())[:200] in pages["hostile", "own"].text
    assert pages["hostile", "own"].json["gallery-data"]["classes"] == [text] * 4


def test_the_page_may_load_nothing_and_run_only_its_own_script(run, tmp_path):
    path = write_report([run().folder], tmp_path / "pages")
    content = path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content).group(1).replace("&#39;", "'")
    assert policy.startswith("default-src 'none'")
    script = re.search(r"<script>(.*?)</script>", content, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    for tag, values in read(path).tags:
        for name in ("src", "srcset", "action", "poster", "data"):
            assert name not in values, (tag, values)
        if tag == "link":
            assert values["href"] == "data:,"
        assert not [name for name in values if name.startswith("on")], (tag, values)


def test_without_samples_and_images_the_numbers_are_still_there(run, page):
    found = page(run(samples=False, images=False).folder)
    assert "Without the table of samples" in found.text
    assert "Pictures need the table of samples" in found.text
    assert "robust_accuracy.value" in found.fields


def test_without_images_the_gallery_says_why(run, page):
    assert "keeps no adversarial images" in page(run(images=False).folder).text


def test_without_clean_images_only_adversarial_ones_are_shown(run, page):
    found = page(run(clean_images=False).folder)
    assert found.json["gallery-data"]["columns"] == ["adversarial"]
    assert "kept no clean images" in found.text


def test_damaged_images_and_samples_are_named(run, page):
    made = run()
    (made.folder / "images" / "adversarial.safetensors").write_bytes(b"\x10" + bytes(40))
    assert "cannot be read" in page(made.folder).text
    (made.folder / "samples.parquet").write_bytes(b"not parquet")
    assert "Without the table of samples" in page(made.folder).text


def test_a_run_that_cannot_be_ranked_stands_apart_among_the_published(run, page, tmp_path):
    record = run("plain").record
    data = record.data.model_copy(update={"spec": "uoft-cs/cifar10", "image_shape": [3, 32, 32]})
    threat = Threat(norm="Linf", eps=2 / 255, eps_text="2/255")
    made = run("a", shape=(3, 32, 32), data=data, threat=threat, eps=2 / 255)
    found = page(made.folder)
    tips = [v["aria-label"] if "aria-label" in v else v.get("data-tip", "") for _, v in found.tags]
    assert any(tip.startswith("model.py:make: clean") and tip.endswith("(this run, not comparable)") for tip in tips)
    assert re.search(r"this run, not comparable: \S+", found.text)
    assert "this run, with its 95% interval" not in found.text
    place, bound = Place.model_construct(), Place.model_construct()
    ranked = RankResult.model_construct(autoattack=place, at_most=None, reasons=[])
    assert standing(ranked) == ("this run", "this run, with its 95% interval")
    assert standing(ranked.model_copy(update={"autoattack": None, "at_most": bound}))[0] == "this run, a bound"


def test_samples_of_another_run_are_not_believed(run, page):
    made, other = run("a", n=40), run("b", n=40)
    rows = {
        name: [v for v, a in zip(other.rows[name], other.rows["attack"], strict=True) if a != "clean"]
        for name in other.rows
    }
    save_samples(rows, made.folder)
    found = page(made.folder)
    assert "does not fit this record" in found.text
    assert "robust_accuracy.value" in found.fields


def test_an_older_record_is_upgraded_and_a_newer_one_refused(tmp_path, page):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "record.json").write_bytes(FIXTURE.read_bytes())
    found = page(tmp_path / "old")
    value, text = found.fields["robust_accuracy.value"]
    assert float(value) == 7 / 12
    assert text == "58.33%"
    assert "0.15" in found.text
    content = json.loads(FIXTURE.read_text()) | {"schema_version": 99}
    (tmp_path / "old" / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="schema version 99"):
        write_report([tmp_path / "old"], tmp_path / "pages-2")


def test_a_partial_run_is_shown_as_partial(run, page):
    made = run(status="failed", n_undecided=3)
    text = page(made.folder).text
    assert "Partial result: no attack finished a single call; 3 samples undecided" in text
    assert "No rank" in text


def test_a_run_that_is_not_finished_has_a_page(tmp_path, page):
    state = tmp_path / "going" / "state" / "0.1" / "0"
    state.mkdir(parents=True)
    (tmp_path / "going" / "state" / "config.json").write_text(json.dumps({"model": "builtin:digits-robust", "n": 100}))
    (state / "0000000.safetensors").write_bytes(b"")
    (tmp_path / "going" / "state" / "clean.safetensors").write_bytes(b"")  # no attack's
    text = page(tmp_path / "going").text
    assert "This run is not finished" in text
    assert "1 call of attacks is saved" in text
    assert f"robustdup eval --resume {tmp_path / 'going'}" in text


def test_unfinished_runs_of_other_kinds_say_how_to_go_on(tmp_path, page):
    kinds = {"train": {"objective": "pgd_at"}, "data detect": {"against": None, "data": "d"}}
    for command, config in kinds.items():
        folder = tmp_path / command
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "config.json").write_text(json.dumps(config))
        assert f"robustdup {command} --resume {shlex.quote(str(folder))}" in page(folder).text
    (tmp_path / "train" / "state" / "checkpoint.pt").write_bytes(b"")
    assert "The state of its last checkpoint is saved." in page(tmp_path / "train").text


def test_an_unfinished_study_says_which_cells_are_there(tmp_path, page):
    lines = [{"factors": {}, "seed": seed, "key": key} for seed, key in enumerate("abcd")]
    for key, status in (("a", "complete"), ("b", "complete"), ("c", "failed"), ("stranger", "complete")):
        (tmp_path / "study" / "cells" / key).mkdir(parents=True)
        (tmp_path / "study" / "cells" / key / "cell.json").write_text(json.dumps({"status": status}))
    (tmp_path / "study" / "grid.json").write_text(json.dumps({"recipe": {"name": "doses"}, "lines": lines}))
    text = page(tmp_path / "study").text
    assert "Of 4 cells 2 are complete and 1 failed." in text
    assert "robustdup study report CONFIG" in text
    (tmp_path / "study" / "grid.json").write_text("{")
    with pytest.raises(UserError, match="not a whole JSON file"):
        page(tmp_path / "study")


def test_no_survivor_one_class_and_no_attack(run, page):
    nobody = page(run("a", right=[True] * 8, broken_by=[0] * 8, n=8).folder)
    assert "Attacks within Linf 0.1 change 8 of these answers; none stands." in nobody.text
    assert nobody.fields["robust_accuracy.value"][1] == "0.00%"
    one = page(run("b", k=1, n=8, right=[True] * 8, broken_by=[-1] * 8).folder)
    assert "One class only." in one.text
    none = page(run("c", n=8, attacks=(), right=[True] * 8, broken_by=[-1] * 8).folder)
    assert "No attack ran." in none.text


def test_numbers_that_are_none_are_dashes(run, page):
    made = run(n=8)
    record = made.record.model_copy(
        update={"robust_accuracy": made.record.robust_accuracy.model_copy(update={"value": math.nan})}
    )
    content = json.loads(record.model_dump_json())
    content["robust_accuracy"]["value"] = math.nan
    (made.folder / "record.json").write_text(json.dumps(content))  # as a program that does not mind NaN would write it
    rows = made.rows | {"margin": [math.nan] * len(made.rows["margin"]), "distance": [None] * len(made.rows["margin"])}
    save_samples(rows, made.folder)
    found = page(made.folder)
    assert found.fields["robust_accuracy.value"][1] == "–"
    assert "not a number" in found.text
    assert "nan" not in found.text.lower()
    page(made.folder, made.folder)


def test_a_folder_that_holds_something_else_is_left_alone(run, tmp_path):
    made = run()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my own page")
    (mine / "notes.txt").write_text("my notes")
    with pytest.raises(UserError, match="holds something that is not a report"):
        write_report([made.folder], mine)
    assert (mine / "index.html").read_text() == "my own page"
    write_report([made.folder], mine, overwrite=True)
    assert "robustdup" in (mine / "index.html").read_text()
    assert (mine / "notes.txt").read_text() == "my notes"


def test_a_report_is_written_again_and_leaves_no_page_behind(run, tmp_path):
    a, b, to = run("a"), run("b", seed=1), tmp_path / "pages"
    write_report([a.folder, b.folder], to)
    assert (to / "run-002.html").is_file()
    (to / "mine.txt").write_text("keep")
    write_report([a.folder], to)
    assert sorted(p.name for p in to.iterdir()) == [".robustdup-report.json", "images", "index.html", "mine.txt"]
    (to / "run-001.html").write_text("my own")  # not by a report: then another report does not take it
    with pytest.raises(UserError, match="was not written by a report"):
        write_report([a.folder, b.folder], to)
    assert (to / "run-001.html").read_text() == "my own"


def test_links_and_markers_cannot_lead_elsewhere(run, tmp_path):
    made, to, outside = run(), tmp_path / "pages", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    to.mkdir()
    (to / "images").symlink_to(outside, target_is_directory=True)
    marker = {"files": ["../outside/precious.txt", str(outside / "precious.txt"), "images/precious.txt"]}
    (to / ".robustdup-report.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="outside"):
        write_report([made.folder], to)
    (to / "images").unlink()
    write_report([made.folder], to)
    assert sorted(p.name for p in outside.iterdir()) == ["precious.txt"]


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path):
    made = run()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        write_report([made.folder], tmp_path / "file")
    with pytest.raises(RunError, match="--to"):
        write_report([made.folder], tmp_path / "file" / "below")


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="no record at"):
        write_report([tmp_path / "nowhere"], tmp_path / "pages")
    with pytest.raises(UserError, match="at least one run"):
        write_report([], tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


def test_differences_are_those_of_compare(run, page):
    a = run("a", n=60, right=[True] * 60, broken_by=[0] * 20 + [-1] * 40)
    b = run("b", n=60, right=[True] * 55 + [False] * 5, broken_by=[-1] * 10 + [1] * 30 + [-1] * 20)
    true = compare(load_record(b.folder), load_samples(b.folder), load_record(a.folder), load_samples(a.folder)).robust
    text = page(a.folder, b.folder).text.replace("−", "-")
    assert f"{100 * true.difference:+.2f} {100 * true.low:+.2f} to {100 * true.high:+.2f}" in text
    tips = [v["data-tip"] for _, v in page(a.folder, b.folder).tags if "stand only here" in v.get("data-tip", "")]
    assert tips == [f"on 60 samples; {true.only_a} stand only here, {true.only_b} only in the reference"]


def test_runs_that_cannot_be_compared_say_why(run, page):
    a, b = run("a"), run("b", threat=Threat(norm="L2", eps=0.5, eps_text="0.5"))
    c = run("c", samples=False)
    text = page(a.folder, b.folder, c.folder).text
    assert "other threat model: L2 0.5, Linf 0.1" in text
    assert "The threat models differ" in text
    assert "no samples" in text
    other = run("d")
    save_samples(other.rows | {"image_sha256": ["f" * 64] * len(other.rows["index"])}, other.folder)
    assert "other images" in page(a.folder, other.folder).text


@pytest.mark.timing
def test_two_hundred_runs_in_one_page(run, tmp_path, within):
    folders = [run(f"r{i:03d}", n=100, seed=i, images=False).folder for i in range(20)]
    write_report(folders[:2], tmp_path / "warm", each=False)  # templates are compiled once
    with within(3):
        path = write_report(folders * 10, tmp_path / "pages")
    assert path.stat().st_size < 500_000
    found = read(path)
    assert sum("robust_accuracy.value" in field for field in found.fields) == 200
    assert sorted(p.name for p in path.parent.iterdir()) == [".robustdup-report.json", "index.html"]


@pytest.mark.timing
def test_one_record_takes_less_than_a_second(run, tmp_path, within):
    made = run(n=2000, shape=(3, 32, 32), k=10)
    write_report([run("small").folder], tmp_path / "warm")
    with within(1):
        path = write_report([made.folder], tmp_path / "pages")
    assert sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file()) < 5_000_000


def test_pages_are_made_without_torch_and_pandas(run, tmp_path):
    """Either takes longer to import than a page to make."""
    a, b = run("a"), run("b", seed=1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom robustdup.report.html import write_report\n"
        f"write_report([{str(a.folder)!r}, {str(b.folder)!r}], Path({str(tmp_path / 'pages')!r}))\n"
        "print(sorted({'torch', 'pandas', 'datasets', 'scipy', 'matplotlib', 'altair'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"


def test_pictures_of_a_strange_shape_are_left_out(run, page):
    made = run(n=8)
    save_file({"images": np.zeros((8, 5, 4, 4), dtype=np.float32)}, made.folder / "images" / "adversarial.safetensors")
    assert "cannot be drawn" in page(made.folder).text


def test_a_saved_record_is_what_the_page_was_made_from(run):
    made = run()
    save_record(made.record, made.folder)
    assert load_record(made.folder) == made.record


def test_names_break_where_their_words_meet_and_addresses_do_not():
    assert breakable("net_a.py:net@<b>") == "net_<wbr>a.py:<wbr>net@<wbr>&lt;b&gt;"
    assert "<wbr>" not in "".join(re.findall(r'(?:href|title|src)="[^"]*"', every_template()))


def every_template():
    folders = [Path(__file__).parents[2] / "robustdup", *Path(__file__).parents[2].glob("plugins/*/src")]
    text = "".join(path.read_text() for folder in folders for path in sorted(folder.rglob("*.html.j2")))
    return re.sub(r"\|breakable", "<wbr>", text)
