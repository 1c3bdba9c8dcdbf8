"""Figures: sizes, formats, the same bytes again, the record's numbers in them, refusals."""

import importlib.util
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from robustdup_study.records import DoseMean

from robustdup.errors import UserError
from robustdup.records import CurvePoint
from robustdup.report import plots, svg
from robustdup.report.charts import Chart, Point, Series, linear, rows_axis
from robustdup.report.html.comparison import comparison_sections
from robustdup.report.runs import read_run
from robustdup.report.vega import PAPER_LOOK, specification
from tests.lanes import each_once
from tests.raising import raises

CURVE = {str(e): CurvePoint(value=v, low=v - 0.1, high=v + 0.1, eps=e, alone=v) for e, v in ((0.05, 0.6), (0.1, 0.4))}


@pytest.fixture
def runs(run):
    return [read_run(run(name, seed=i, curve=CURVE).folder) for i, name in enumerate(("a", "b"))]


def charted(kind, runs, width="one"):
    """What a figure shows, before it becomes a file."""
    return plots.all_kinds()[kind][0].chart(runs, width)


@each_once(kind=["curve", "accuracy", "cascade", "classes", "examples"], ending=["pdf", "svg", "png"])
def test_every_kind_in_every_format_has_its_width_and_the_same_bytes_again(runs, tmp_path, kind, ending):
    used = runs[:1] if plots.all_kinds()[kind][0].one_run else runs
    for width, inches in (("one", 3.25), ("two", 6.75)):
        path = plots.plot(used, tmp_path / f"{width}.{ending}", kind=kind, width=width)
        content = path.read_bytes()
        svg._draw.cache_clear()
        again = plots.plot(used, tmp_path / f"{width}-again.{ending}", kind=kind, width=width).read_bytes()
        assert content == again
        if ending == "png":
            assert Image.open(io.BytesIO(content)).width == round(300 * inches)
        elif ending == "svg":
            assert float(re.search(rb'width="([\d.]+)pt"', content).group(1)) == pytest.approx(72 * inches)
            assert b"<text" in content
        else:
            box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", content).group(1)
            assert float(box) == pytest.approx(72 * inches)
            assert b"/Type3" not in content
            assert b"/FontFile" in content  # the font of its text travels with it


def test_a_curve_goes_through_the_records_numbers(runs):
    line, other = charted("curve", runs).series
    clean = runs[0].record.clean_accuracy.value
    assert [(p.x, p.y) for p in line.points] == [(0, clean), (0.05, 0.6), (0.1, 0.4)]
    assert other.tone != line.tone
    assert other.shape != line.shape


def test_names_of_rows_stand_whole_in_several_lines(runs):
    name = "foolbox:LinfProjectedGradientDescentAttack(steps=20, rel_stepsize=0.1, random_start=True)"
    chart = charted("accuracy", runs)
    chart = replace(chart, y=rows_axis([name, "pgd"]))
    spec, _ = specification(chart, 234, PAPER_LOOK)
    [shown] = {layer["encoding"]["y"]["axis"]["labelExpr"] for layer in spec["layer"] if "y" in layer["encoding"]}
    lines, short = json.loads(shown.partition("[indexof")[0])
    assert "".join(lines).replace(" ", "") == name.replace("(", "").replace(")", "").replace(" ", "")
    assert max(map(len, lines)) <= 0.46 * 234 / (0.52 * 7)
    assert short == ["pgd"]
    assert spec["height"] >= 2 * len(lines) * 7


def test_a_page_and_a_figure_show_the_same_chart(runs):
    """One specification for both: what is drawn beside each other in a page is what stands in a paper."""
    sections = comparison_sections(runs, ["", ""])
    [chart] = next(section for section in sections if section.name == "curves").charts
    assert charted("curve", runs) == chart


def test_accuracies_and_their_intervals(runs):
    clean, robust = charted("accuracy", runs).series
    records = [run.record for run in runs]
    assert [p.x for p in clean.points] == [record.clean_accuracy.value for record in records]
    assert [(p.x, p.low, p.high) for p in robust.points] == [
        (r.robust_accuracy.value, r.robust_accuracy.low, r.robust_accuracy.high) for r in records
    ]
    assert [p.y for p in robust.points] == [0, 1]
    assert robust.sideways


def test_scales_of_accuracies_go_from_nothing_to_everything_and_no_further(runs):
    for kind in ("curve", "accuracy", "cascade", "classes"):
        chart = charted(kind, runs[:1] if kind in ("cascade", "classes") else runs)
        axis = chart.y if kind == "curve" else chart.x
        assert (axis.low, axis.high) == (0, 1)
        assert axis.ticks[-1][1] == "100%"


def test_bars_of_the_cascade_are_shares_of_all_samples(runs):
    record = runs[0].record
    bars = charted("cascade", runs[:1]).bars
    held, broken = bars[0::2], bars[1::2]
    assert [b.right - b.left for b in broken] == pytest.approx([a.n_broken / record.n for a in record.attacks])
    assert [b.right - b.left for b in held] == pytest.approx([a.robust_accuracy_after for a in record.attacks])


def test_examples_show_broken_samples_with_both_labels(runs, tmp_path):
    path = plots.plot(runs[:1], tmp_path / "x.png", kind="examples")
    assert np.asarray(Image.open(path).convert("L")).std() > 20
    root = ElementTree.fromstring(charted("examples", runs[:1]))
    texts = [(float(node.get("x")), node.text) for node in root.iter(f"{{{svg.SVG}}}text")]
    tops, below = texts[0::2], texts[1::2]
    assert [(int(a[-1]) + 1) % 4 for _, a in tops] == [int(b[-1]) for _, b in below]
    assert [x for x, _ in tops] == [x for x, _ in below]
    assert len(tops) == 4
    assert len(list(root.iter(f"{{{svg.SVG}}}image"))) == 12


def test_names_are_text_and_not_markup(run, tmp_path):
    record = run("x").record
    name = "$\\frac{1 & <b>"
    made = run("y", model=record.model.model_copy(update={"spec": name}), curve=CURVE)
    for kind in ("curve", "accuracy"):
        path = plots.plot([read_run(made.folder)] * 2, tmp_path / f"{kind}.svg", kind=kind)
        texts = [node.text or "" for node in ElementTree.fromstring(path.read_bytes()).iter(f"{{{svg.SVG}}}text")]
        assert any(text.startswith("$\\frac{1 & <b>") for text in texts)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("words", [2, 12])
def test_the_words_below_a_figure_stand_in_lines_that_fit_its_scale(rows, words):
    label = " ".join(["difference", "in"] * words)
    names = rows_axis(["standard, dose 0.25", "pgd_at, dose 0.5"]) if rows else linear(0, 1, "accuracy")
    chart = Chart("effects", "", "", linear(-1, 1, label), names, [Series("one", [Point(0, 0.5, "")], "c0")])
    spec, _ = specification(chart, 234, PAPER_LOOK)
    [lines] = {tuple(layer["encoding"]["x"]["axis"]["title"]) for layer in spec["layer"] if "x" in layer["encoding"]}
    assert " ".join(lines) == label
    assert max(map(len, lines)) * 0.5 * PAPER_LOOK.title < 234 * (
        0.75 if rows else 1
    )  # a letter is half as wide as high
    assert (len(lines) > 1) is (words == 12)


def test_a_figure_may_be_a_specification_of_vega_lite():
    """As a plugin makes it with altair."""
    spec = {
        "data": {"values": [{"x": 0, "y": 1}, {"x": 1, "y": 2}]}, "mark": "line",
        "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
    }  # fmt: skip
    content = plots.as_file(spec, "one", "png")
    assert Image.open(io.BytesIO(content)).width == 975


def test_nothing_is_fetched_for_a_figure():
    spec = {"data": {"url": "https://example.org/x.json"}, "mark": "point", "encoding": {}}
    with pytest.raises(ValueError, match="not allowed|denied|disallowed|External data"):
        plots.as_file(spec, "one", "svg")


def kinds():
    spec = importlib.util.spec_from_file_location("kinds", Path(__file__).with_name("test_kinds.py"))
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("width", ["one", "two"])
def test_more_lines_than_colours_get_panels_of_their_own(tmp_path, width):
    """Twelve lines of three factors: six in a panel for each objective, told apart by colour and by name."""
    levels = list(
        itertools.product(("standard", "pgd_at"), ("uniform", "class_skewed", "hard"), ("fixed-epochs", "fixed-steps"))
    )
    means = [
        DoseMean(metric="clean_accuracy", factors=dict(zip(("objective", "scheme", "budget"), place, strict=True)), dose=dose,
                 n=2, mean=0.001 * number + dose / 1000, sd=0.01, low=0.0, high=0.01)
        for number, place in enumerate(levels) for dose in (0.0, 0.5)
    ]  # fmt: skip
    kinds().study(tmp_path / "s", means=means)
    rows = charted("dose", [read_run(tmp_path / "s")], width)
    panels = [chart for row in rows for chart in row]
    assert [len(row) for row in rows] == ([2] if width == "two" else [1, 1])
    assert [panel.title for panel in panels] == ["Clean accuracy, standard", "Clean accuracy, pgd_at"]
    for panel, half in zip(panels, (means[:12], means[12:]), strict=True):
        assert [[p.y for p in line.points] for line in panel.series] == [
            [first.mean, second.mean] for first, second in zip(half[::2], half[1::2], strict=True)
        ]
        assert len({line.tone for line in panel.series}) == 6
        assert len({text for _, text in panel.y.ticks}) == len(panel.y.ticks)  # not 0%, 0%, 0%
        assert [key.name for key in panel.keys] == [", ".join(place[1:]) for place in levels[:6]]
    text = plots.as_file(rows, width, "svg").decode()
    for place in levels[:6]:
        assert text.count(f">{', '.join(place[1:])}<") == 1  # one legend for both


def test_trainings_and_studies_are_drawn(tmp_path):
    made = kinds()
    trained, studied = made.training(tmp_path / "t"), made.study(tmp_path / "s", "$x_{")
    training, study = read_run(tmp_path / "t"), read_run(tmp_path / "s")
    robust, clean = charted("training", [training]).series
    assert [p.y for p in robust.points] == [p.robust_accuracy for p in trained.validation]
    assert [p.y for p in clean.points] == [p.clean_accuracy for p in trained.validation]
    assert clean.dashed
    [[chart]] = charted("dose", [study], "two")
    beside = 0.5 * 0.012 * 0.5  # half of a small share of the doses' reach: lines do not hide each other's intervals
    for line, means, shift in zip(chart.series, (studied.means[:2], studied.means[2:]), (-beside, beside), strict=True):
        assert [(p.x, p.y) for p in line.points] == [pytest.approx((m.dose + shift, m.mean)) for m in means]
    assert [text for _, text in chart.x.ticks] == ["0", "0.5"]
    for run in (training, study):
        assert plots.plot([run], tmp_path / f"{run.folder.name}.pdf").read_bytes().startswith(b"%PDF")
    with raises("unfit-figure", UserError, "dose, effects"):
        plots.plot([study], tmp_path / "x.pdf", kind="curve")


def test_effects_lie_where_the_record_says(tmp_path):
    made = kinds()
    made.study(tmp_path / "s")
    [[chart]] = charted("effects", [read_run(tmp_path / "s")])
    assert [rule.x for rule in chart.rules] == [0]
    [series] = chart.series
    [point] = series.points
    assert (point.x, point.low, point.high) == (-0.0234, -0.0456, -0.0012)
    assert series.sideways
    [margin] = chart.bars
    assert (margin.left, margin.right) == (-0.01, 0.01)
    assert [text for _, text in chart.y.ticks] == ["standard, dose 0.5"]
    assert [key.name for key in chart.keys] == ["lower with copies", "margin, within which a difference counts as none"]
    dose = read_run(tmp_path / "s").record.comparisons[0]
    levels = {"kind": "contrast", "dose": 0.0, "contrast": "condition", "level": "matched", "against": "copies"}
    made.study(tmp_path / "levels", comparisons=[dose.model_copy(update=levels)])
    [[chart]] = charted("effects", [read_run(tmp_path / "levels")])
    assert [text for _, text in chart.y.ticks] == ["matched against copies (standard)"]
    assert next(key.name for key in chart.keys) == "lower"
    made.study(tmp_path / "none", comparisons=[])
    with raises("no-data", UserError, "no effects yet"):
        plots.plot([read_run(tmp_path / "none")], tmp_path / "x.pdf", kind="effects")


def test_refusals(run, runs, tmp_path):
    plain = read_run(run("plain", images=False).folder)
    with raises("unknown-format", UserError, "pdf, svg, png"):
        plots.plot(runs, tmp_path / "x.jpg")
    with raises("unknown-figure", UserError, "'curve'"):
        plots.plot(runs, tmp_path / "x.png", kind="curves")
    with raises("one-run", UserError, "cascade"):
        plots.plot(runs, tmp_path / "x.png", kind="cascade")
    with raises("no-data", UserError, "several eps"):
        plots.plot([plain], tmp_path / "x.png", kind="curve")
    with raises("no-data", UserError, "no adversarial images"):
        plots.plot([plain], tmp_path / "x.png", kind="examples")
    with raises("no-data", UserError, "No RobustBench rank"):
        plots.plot([plain], tmp_path / "x.png", kind="leaderboard")
    (tmp_path / "x.png").write_text("mine")
    with raises("file-exists", UserError, "--overwrite"):
        plots.plot(runs, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert plots.plot(runs, tmp_path / "x.png", overwrite=True).read_bytes().startswith(b"\x89PNG")


def test_what_fits_is_drawn_where_no_kind_is_named(run, runs):
    plain = [read_run(run(name).folder) for name in ("p", "q")]
    assert [plots.usual_kind(some) for some in (runs, plain, plain[:1])] == ["curve", "accuracy", "cascade"]
