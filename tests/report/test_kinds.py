"""The pages of training runs and studies: the record's numbers, every cell, what is partial, and hostile names."""

import importlib.util
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from robustdup_study.records import (
    Claim,
    DoseMean,
    ImageDifference,
    PairedComparison,
    PublishedFigure,
    StudyRecord,
    StudyRun,
    save_study_record,
)

from robustdup.records import (
    Accuracy,
    CheckpointResult,
    DataInfo,
    DuplicationInfo,
    Threat,
    TimeTo,
    TrainEnvironment,
    TrainingRecord,
    TrainPasses,
    TrainPoint,
    ValidationPoint,
    save_training_record,
)
from robustdup.report.html import write_report
from robustdup.report.runs import read_run

_spec = importlib.util.spec_from_file_location("reading", Path(__file__).with_name("reading.py"))
_reading = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reading)
read = _reading.read
HOSTILE = "</script><img src=x onerror=alert(1)>\"'"


def training(folder, word="pgd_at", **changes):
    robust = Accuracy(value=0.4567, low=0.41, high=0.5)
    fields = {
        "run_id": folder.name, "created": "2026-11-22T12:00:00+00:00", "status": "complete", "command": f"robustdup train {word}",
        "objective": word, "update": "plain", "inner_attack": "pgd(steps=10)",
        "threat": Threat(norm="Linf", eps=0.1, eps_text="0.1"),
        "architecture": word, "parameters": 19178, "budget": {"epochs": 3}, "steps": 30, "samples_seen": 3840,
        "unique_samples_seen": 1271, "epochs": 3.0, "batch_size": 128, "seconds": 65.0, "validation_seconds": 2.0,
        "images_per_second": 59.08, "peak_memory": 2**30, "passes": TrainPasses(attack_forward=38400),
        "curve": [TrainPoint(step=s, samples=128 * s, epoch=s / 10, seconds=2.0 * s, lr=0.1 / s, loss=3.0 / s, accuracy=s / 40)
                  for s in range(1, 31)],
        "validation": [ValidationPoint(step=s, samples=128 * s, epoch=s / 10, seconds=2.0 * s, clean_accuracy=0.2 + s / 50,
                                       robust_accuracy=0.5 - abs(s - 20) / 50, best=s == 20) for s in (10, 20, 30)],
        "n_validation": 100,
        "time_to": [TimeTo(kind="robust", target=0.4, step=20, samples=2560, seconds=40.0),
                    TimeTo(kind="robust", target=0.6, step=None, samples=None, seconds=None)],
        "checkpoints": [
            CheckpointResult(name="best", step=20, fingerprint="b" * 8, validation_clean=0.6, validation_robust=0.5, n=300,
                             clean_accuracy=Accuracy(value=0.61, low=0.5, high=0.7), robust_accuracy=robust, attacks="fast"),
            CheckpointResult(name="last", step=30, fingerprint="c" * 8, validation_clean=0.8, validation_robust=0.3),
        ],
        "data": DataInfo(spec=word, split="train", n_total=1297, selection="all", image_shape=[1, 8, 8], class_names=[word],
                         fingerprint="0"),
        "duplication": DuplicationInfo(scheme=word, mode="append", dose=0.25, hash="abc", entries=1600, unique=1200,
                                       rates={word: 1}),
        "initial_fingerprint": "d", "events": [word], "seed": 0, "config": {},
        "environment": TrainEnvironment(device="cpu", device_name=word, threads=1, processes=1, python="3", platform="x",
                                        precision="fp32", compiled="off", channels_last=True),
        "versions": {"torch": word},
    }  # fmt: skip
    record = TrainingRecord(**{**fields, **changes})
    save_training_record(record, folder)
    return record


def study(folder, word="pgd_at", **changes):
    """Two objectives, two doses, two seeds; one cell failed and one is missing."""
    rows = []
    for number, (objective, dose, seed) in enumerate(itertools.product(("standard", word), (0.0, 0.5), (0, 1))):
        status = {5: "failed", 7: "missing"}.get(number, "complete")
        metrics = {"clean_accuracy": 0.9 - number / 100} if status == "complete" else {}
        rows.append(StudyRun(factors={"objective": objective, "dose": dose}, seed=seed, cell=f"{number}{word}", status=status,
                             metrics=metrics, error=word if status == "failed" else "", folder=f"cells/{word}"))  # fmt: skip
    means = [
        DoseMean(
            metric="clean_accuracy", factors={"objective": o}, dose=d, n=2, mean=m, sd=0.01, low=m - 0.02, high=m + 0.03
        )
        for o, d, m in (("standard", 0.0, 0.895), ("standard", 0.5, 0.875), (word, 0.0, 0.86), (word, 0.5, 0.84))
    ]
    comparisons = [
        PairedComparison(kind="dose", metric="clean_accuracy", factors={"objective": "standard"}, dose=0.5, primary=True,
                   seeds=[0, 1], difference=-0.0234, low=-0.0456, high=-0.0012, p=0.04, p_holm=0.08, margin=0.01, verdict="lower",
                   sentence=word),
        PairedComparison(kind="contrast", metric="clean_accuracy", factors={}, dose=0.5, contrast="objective", level=word,
                   against="standard", primary=False, seeds=[0], difference=0.01, verdict="one seed", sentence=word),
    ]  # fmt: skip
    fields = {
        "run_id": folder.name, "created": "2026-11-22T12:00:00+00:00", "status": "partial", "name": word, "command": word,
        "recipe": {"analysis": {"metrics": ["clean_accuracy"], "dose": "dose"}}, "factors": {"objective": ["standard", word]},
        "seeds": [0, 1], "n_cells": 8, "n_complete": 6, "n_failed": 1, "n_missing": 1, "runs": rows, "means": means,
        "comparisons": comparisons, "conclusions": [f"Conclusion about {word}."], "remarks": [word],
        "claims": [Claim(claim=word, verdict="refuted", sentence=word, evidence=[word])],
        "published": [PublishedFigure(arm=word, percent=10, metric="robust", published=43.21, here=45.67, low=44.0, high=47.0,
                                      seeds=2, source=word)],
    }  # fmt: skip
    record = StudyRecord(**{**fields, **changes})
    save_study_record(record, folder)
    return record


def lookup(record, path):
    found = record if isinstance(record, dict) else record.model_dump()
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


@pytest.mark.parametrize("make", ["training", "study", "description"])
def test_numbers_are_the_records(tmp_path, make):
    record = globals()[make](tmp_path / "run")
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    assert found.fields
    for field, (value, _) in found.fields.items():
        assert float(value) == lookup(record, field), field


def floats(content, path=()):
    """The places of a record's real numbers; one of each list will do."""
    if isinstance(content, float):
        yield path
    for key, value in (
        content.items() if isinstance(content, dict) else enumerate(content[:1] if isinstance(content, list) else ())
    ):
        yield from floats(value, (*path, key))


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        ("training", math.nan),
        ("study", math.nan),
        ("description", math.nan),
        ("evaluation", math.nan),
        ("description", math.inf),
        *(pytest.param(make, math.inf, marks=pytest.mark.slow) for make in ("training", "study", "evaluation")),
    ],
)
def test_a_number_that_is_none_is_a_dash_wherever_it_stands(tmp_path, run, make, bad):
    """Every real number of every record in turn: the page is made, and says and draws nothing of nan or inf."""
    folder = tmp_path / "run"
    run("run", images=False, n=8) if make == "evaluation" else globals()[make](folder)
    content = json.loads((folder / "record.json").read_text())
    places = [path for path in floats(content) if "factors" not in path]  # levels of factors are names
    assert len(places) > 2
    for path in places:
        broken = json.loads(json.dumps(content))
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = bad
        (folder / "record.json").write_text(json.dumps(broken))
        page = write_report([folder], tmp_path / "pages")
        assert not re.search(r"\b(nan|inf)\b", read(page).text.lower()), path
        drawn = re.sub(r'data-value="[^"]*"', "", page.read_text(encoding="utf-8"))
        assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', re.sub(r"<style>.*?</script>", "", drawn, flags=re.S)), path


def test_a_training_in_words(tmp_path):
    training(tmp_path / "run")
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    assert found.fields["checkpoints.0.robust_accuracy.value"][1] == "45.67%"
    assert "95% interval 41.00 to 50.00, 300 test images" in found.text
    assert "the best checkpoint, at step 20, has 50.00% robust and 60.00% clean" in found.text
    assert "The last is 20.00 points less robust than the best" in found.text
    assert "Never reached: robust 60% and above." in found.text
    assert "Target Robust: steps Robust: images Robust: time 40% 20 2.56k 40.0 s" in found.text
    assert "25.00% of the 1,600 training entries are copies" in found.text
    assert "1,024 MiB" in found.text


def test_a_training_that_was_stopped_or_never_validated(tmp_path):
    nan = [TrainPoint(step=1, samples=1, epoch=0.1, seconds=1.0, lr=0.1, loss=1.0)]
    training(
        tmp_path / "run", status="stopped", reason="the loss was not finite at step 7", curve=nan, validation=[], checkpoints=[],
        time_to=[], duplication=None, peak_memory=None,
    )  # fmt: skip
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "Partial result: this training was stopped. the loss was not finite at step 7" in text


def test_trainings_side_by_side(tmp_path):
    for name, word in (("a", "standard"), ("b", "trades")):
        training(tmp_path / name, word)
    found = read(write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "pages"))
    assert "a standard 3 45.67% test, 41.00 to 50.00" in found.text
    assert [
        values["href"] for tag, values in found.tags if tag == "a" and values.get("href", "").startswith("run-")
    ] == [
        "run-001.html",
        "run-002.html",
    ]


def test_a_study_shows_every_cell_and_every_point_leads_to_one(tmp_path):
    study(tmp_path / "run")
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    anchors = {values["id"] for tag, values in found.tags if values.get("id", "").startswith("cell-")}
    assert anchors == {f"cell-{i}" for i in range(8)}
    squares = [v for tag, v in found.tags if tag == "a" and v.get("class", "").startswith("square")]
    assert [v["class"].split()[1] for v in squares] == ["stands"] * 5 + ["broken", "stands", "blank"]
    assert [v["href"] for v in squares] == [f"#cell-{i}" for i in range(8)]
    dots = [v["href"] for tag, v in found.tags if tag == "a" and v.get("aria-label", "").startswith("seed")]
    assert sorted(dots) == [f"#cell-{i}" for i in (0, 1, 2, 3, 4, 6) for _ in ("broad", "narrow")]
    assert "Partial result: of 8 cells, 1 failed and 1 missing are not there." in found.text


def test_a_study_in_numbers(tmp_path):
    study(tmp_path / "run")
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "standard 0.5 2 87.50% 85.50% to 90.50%" in text
    assert "−2.34 −4.56 to −0.12 lower 2 0.04 0.08" in text
    assert "Of 1 primary comparison with no copies: 1 lower." in text
    assert "45.67 44.00 to 47.00 43.21" in text


def test_an_empty_study_has_a_page(tmp_path):
    study(tmp_path / "run", runs=[], means=[], comparisons=[], conclusions=[], claims=[], published=[], remarks=[], n_complete=0,
          n_failed=0, n_missing=8)  # fmt: skip
    assert "no primary comparison can be made yet" in read(write_report([tmp_path / "run"], tmp_path / "pages")).text


@pytest.mark.parametrize("make", ["training", "study", "description"])
def test_hostile_names_change_nothing_but_text(tmp_path, make):
    structures = []
    for name, word in (("plain", "plain"), ("hostile", HOSTILE)):
        globals()[make](tmp_path / name, word)
        found = read(write_report([tmp_path / name], tmp_path / f"pages-{name}"))
        structures.append(found.structure)
    assert structures[0] == structures[1]
    assert HOSTILE in found.text


def test_hostile_names_change_nothing_but_text_where_kinds_meet(tmp_path):
    """Runs of every kind on one page: the names of the one are the text of links of the other."""
    structures = []
    for name, word in (("plain", "plain"), ("hostile", HOSTILE)):
        places = []
        for kind in ("training", "study", "description"):
            places.append(tmp_path / f"{name}-{kind}")
            globals()[kind](places[-1], word)
        training(tmp_path / f"{name}-other", word, run_id=word)
        found = read(write_report([*places, tmp_path / f"{name}-other"], tmp_path / f"pages-{name}"))
        structures.append(found.structure)
        files = sorted(path.name for path in (tmp_path / f"pages-{name}").iterdir())
        assert files == [".robustdup-report.json", "index.html", *(f"run-00{i}.html" for i in range(1, 5))]
    assert structures[0] == structures[1]
    assert HOSTILE in found.text


def test_a_study_tells_what_is_repaired_and_what_copies_do_to_their_images(tmp_path):
    sentence = f"On the same training images accuracy was 5.0 points [3.0, 7.0] higher where {HOSTILE}."
    crossed = ImageDifference(
        measure="accuracy",
        factors={},
        dose=0.5,
        seeds=[0, 1],
        images=9,
        difference=0.05,
        low=0.03,
        high=0.07,
        sentence=sentence,
    )
    figure = PublishedFigure(
        arm="adversarial", percent=60, metric="clean", published=20.9, here=19.5, repaired=48.25, repaired_low=47.0,
        repaired_high=49.5, repaired_seeds=3, mended="clamp",
    )  # fmt: skip
    study(tmp_path / "run", published=[figure], image_differences=[crossed])
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "The same images with and without copies" in text
    assert sentence in text
    assert "Repaired, here" in text
    assert "48.25" in text
    assert "47.00 to 49.50, the clamp alone" in text


def test_published_figures_are_drawn_beside_ours(tmp_path):
    figures = [
        PublishedFigure(arm=arm, percent=percent, metric="robust", published=20.0 + percent, here=here, low=here and here - 1,
                        high=here and here + 1, seeds=2, source="table")
        for arm, percent, here in (("standard", 0, 21.5), ("standard", 10, None), ("robust", 0, 22.5), ("robust", 10, 31.25))
    ]  # fmt: skip
    study(tmp_path / "run", published=figures)
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    told = {v["aria-label"]: v["href"] for tag, v in found.tags if tag == "a" and "#published-" in v.get("href", "")}
    assert told == {
        "standard, published, 0%: 20.00": "#published-0", "standard, published, 10%: 30.00": "#published-1",
        "standard, here, 0%: 21.50": "#published-0", "robust, published, 0%: 20.00": "#published-2",
        "robust, published, 10%: 30.00": "#published-3", "robust, here, 0%: 22.50": "#published-2",
        "robust, here, 10%: 31.25": "#published-3",
    }  # fmt: skip
    rows = {v["id"] for tag, v in found.tags if v.get("id", "").startswith("published-")}
    assert {f"published-{at}" for at in range(4)} <= rows


def test_means_and_effects_lead_to_their_row_of_the_grid(tmp_path):
    study(tmp_path / "run")
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    means = {
        v["aria-label"][:13]: v["href"] for tag, v in found.tags if tag == "a" and "seeds)" in v.get("aria-label", "")
    }
    assert means == {"standard, dos": "#place-1", "pgd_at, dose ": "#place-3"}
    rows = [v["id"] for tag, v in found.tags if tag == "tr" and v.get("id", "").startswith("place-")]
    assert rows == [f"place-{at}" for at in range(4)]


def test_charts_of_a_metric_share_a_scale_where_nothing_is_flattened_by_it(tmp_path):
    """Ten combinations: a chart for each objective. Shares cover five points at least."""
    from robustdup_study import page

    from robustdup.plugins import record_kinds
    from robustdup.report.runs import Run

    def made(**levels):
        means = [
            DoseMean(metric="clean_accuracy", factors={"objective": o, "scheme": f"s{i}"}, dose=d, n=2, mean=mean, sd=0.0,
                     low=None, high=None)
            for o, (first, last) in levels.items() for i in range(5) for d, mean in ((0.0, first), (0.5, last))
        ]  # fmt: skip
        record = study(tmp_path / "run", means=means, runs=[])
        run = Run(tmp_path / "run", record, record_kinds()["robustdup.study"])
        sections = page.study_page(run, "index").context["sections"]
        return next(section for section in sections if section.name == "dose-0")

    near = made(standard=(0.90, 0.94), pgd_at=(0.84, 0.88))
    assert [(chart.y.low, chart.y.high) for chart in near.charts] == [
        pytest.approx((0.825, 0.95))
    ] * 2  # ticks of 2.5 points
    assert [line.name for line in near.content["legend"]] == [f"s{i}" for i in range(5)]
    assert all(not chart.keys for chart in near.charts)
    far = made(standard=(0.001, 0.002), pgd_at=(0.84, 0.88))
    (low, high), (other_low, _) = [(chart.y.low, chart.y.high) for chart in far.charts]
    assert low == 0
    assert 0.02 < high < 0.06
    assert other_low > 0.8


def test_throughput_over_training(tmp_path):
    """Two images a second at first, one a second after half of the way."""
    points = [(step, 10 * step, 5.0 * min(step, 10) + 10.0 * max(step - 10, 0)) for step in range(1, 21)]
    curve = [
        TrainPoint(step=step, samples=samples, epoch=step / 10, seconds=seconds, lr=0.1, loss=1.0)
        for step, samples, seconds in points
    ]
    training(tmp_path / "run", curve=curve, images_per_second=1.25)
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    told = [hint for hint in found.hints if hint.endswith("images a second")]
    assert [float(text.split(": ")[1].split()[0]) for text in told] == [2] * 9 + [1] * 10


def test_a_record_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "record.json").write_text('{"schema_name": "robustdup.music"}')
    from robustdup.errors import UserError

    with pytest.raises(UserError, match=r"kind 'robustdup\.music'"):
        write_report([tmp_path], tmp_path / "pages")


def description(folder, word="x", **changes):
    """A split of ten entries: five samples once, one twice, one three times."""
    record = {
        "schema_name": "robustdup.description", "schema_version": 1, "run_id": word, "created": "2026-11-22T12:00:00+00:00",
        "command": word, "data": word, "versions": {word: word},
        "splits": [{
            "place": word, "entries": 10, "same_by": "pixels", "unique": 7, "copies": 3, "dose": 0.3,
            "effective_sample_size": 5.5556, "multiplicity": {"1": 5, "2": 1, "3": 1}, "conflicts": 1,
            "classes": [{"name": word, "entries": 8, "copies": 3, "unique": 5, "share": 0.8},
                        {"name": "y", "entries": 2, "copies": 0, "unique": 2, "share": 0.2}],
            "sizes": {word: 10}, "modes": {"L": 10}, "n_unreadable": 1, "unreadable": [{"row": 3, "path": word, "reason": word}],
            "notes": [word],
        }],
    }  # fmt: skip
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(record | changes))
    return record | changes


def test_a_description_in_numbers(tmp_path):
    record = description(tmp_path / "run")
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    assert found.fields["splits.0.unique"] == ("7", "7")
    bars = found.hints
    assert bars == ["1 entries: 5 samples", "2 entries: 1 sample", "3 entries: 1 sample"]
    assert "x 8 80.00% 5 3 37.50% y 2 20.00% 2 0 0.00%" in found.text
    assert "first of its sample 7 copy 3" in found.text
    record["splits"][0]["multiplicity"] = {"1": 5, "3": 4, "2": 2, "40": 1}
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    found = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    bars = found.hints
    assert bars == ["1 entries: 5 samples", "2 to 3 entries: 6 samples", "32 to 63 entries: 1 sample"]


def test_a_description_without_much_in_it(tmp_path):
    bare = {
        "place": "",
        "entries": 0,
        "same_by": "rows",
        "unique": 0,
        "copies": 0,
        "dose": 0.0,
        "effective_sample_size": 0.0,
    }
    bare |= {
        "multiplicity": {},
        "conflicts": 0,
        "classes": [],
        "sizes": {},
        "modes": {},
        "n_unreadable": 0,
        "unreadable": [],
    }
    description(tmp_path / "run", splits=[bare, bare])
    assert "2 splits" in read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    description(tmp_path / "none", splits=[])
    assert "0 splits" in read(write_report([tmp_path / "none"], tmp_path / "pages")).text


@pytest.mark.parametrize(
    "splits", [[{}], [1], [{"multiplicity": {"a": 1}}], [{"classes": [2, {}]}], [{"sizes": {"x": "y"}}]]
)
def test_a_damaged_description_is_refused(tmp_path, splits):
    from robustdup.errors import UserError

    description(tmp_path / "run", splits=splits)
    with pytest.raises(UserError, match="is damaged: field 'splits"):
        write_report([tmp_path / "run"], tmp_path / "pages")


def test_the_snippet_of_the_studys_readme_prints_its_primary_comparisons(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "plugins" / "robustdup-study" / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    study(tmp_path / "studies" / "digits")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    record = read_run(tmp_path / "studies" / "digits").record
    assert capsys.readouterr().out.splitlines() == [c.sentence for c in record.comparisons if c.primary]
