"""Figures: sizes, formats, the same bytes again, the record's numbers in them, refusals."""

import importlib.util
import io
import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from robustdup_study.records import DoseMean

from robustdup.errors import UserError
from robustdup.records import CurvePoint
from robustdup.report import plots
from robustdup.report.runs import read_run

CURVE = {str(e): CurvePoint(value=v, low=v - 0.1, high=v + 0.1, eps=e, alone=v) for e, v in ((0.05, 0.6), (0.1, 0.4))}


@pytest.fixture
def runs(run):
    return [read_run(run(name, seed=i, curve=CURVE).folder) for i, name in enumerate(("a", "b"))]


def drawn(kind, runs, width="one"):
    """The axes of a figure, before it becomes a file."""
    with matplotlib.rc_context(plots.STYLE):
        axes = Figure().add_subplot()
        plots.KINDS[kind].draw(axes, runs, width)
    return axes


@pytest.mark.parametrize("kind", ["curve", "accuracy", "cascade", "classes", "examples"])
@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_every_kind_in_every_format_has_its_width_and_the_same_bytes_again(runs, tmp_path, kind, ending):
    used = runs[:1] if plots.KINDS[kind].one_run else runs
    for width, inches in (("one", 3.25), ("two", 6.75)):
        path = plots.plot(used, tmp_path / f"{width}.{ending}", kind=kind, width=width)
        content = path.read_bytes()
        again = plots.plot(used, tmp_path / f"{width}-again.{ending}", kind=kind, width=width).read_bytes()
        assert content == again
        if ending == "png":
            assert Image.open(io.BytesIO(content)).width == round(300 * inches)
        elif ending == "svg":
            assert float(re.search(rb'width="([\d.]+)pt"', content).group(1)) == pytest.approx(72 * inches)
        else:
            box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", content).group(1)
            assert float(box) == pytest.approx(72 * inches)
            assert b"/Type3" not in content


def test_a_curve_goes_through_the_records_numbers(runs):
    line, other = drawn("curve", runs).get_lines()
    clean = runs[0].record.clean_accuracy.value
    assert line.get_xydata().tolist() == [[0, clean], [0.05, 0.6], [0.1, 0.4]]
    assert other.get_color() != line.get_color()
    assert other.get_marker() != line.get_marker()


def test_accuracies_and_their_intervals(runs):
    lines = drawn("accuracy", runs).get_lines()
    for i, found in enumerate(runs):
        record = found.record
        interval, clean, robust = lines[3 * i : 3 * i + 3]
        assert list(interval.get_xdata()) == [record.robust_accuracy.low, record.robust_accuracy.high]
        assert list(clean.get_xdata()) == [record.clean_accuracy.value]
        assert list(robust.get_xdata()) == [record.robust_accuracy.value]


def test_bars_of_the_cascade_are_shares_of_all_points(runs):
    record = runs[0].record
    bars = drawn("cascade", runs[:1]).patches
    held, broken = bars[0::2], bars[1::2]
    assert [bar.get_width() for bar in broken] == pytest.approx([a.n_broken / record.n for a in record.attacks])
    assert [bar.get_width() for bar in held] == pytest.approx([a.robust_accuracy_after for a in record.attacks])


def test_examples_show_broken_points_with_both_labels(runs, tmp_path):
    content = plots.draw(runs[:1], "examples", "one", "png")
    assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 20
    figure = Figure()
    with matplotlib.rc_context(plots.STYLE):
        plots.KINDS["examples"].draw(figure.add_subplot(), runs[:1], "one")
    tops = [axes.get_title() for axes in figure.axes if axes.get_title()]
    below = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert [(int(a[-1]) + 1) % 4 for a in tops] == [int(b[-1]) for b in below]
    assert len(tops) == 4


def test_names_are_text_and_not_mathematics(run, tmp_path):
    record = run("x").record
    made = run("y", model=record.model.model_copy(update={"spec": "$\\frac{1 & <b>"}), curve=CURVE)
    for kind in ("curve", "accuracy"):
        plots.plot([read_run(made.folder)] * 2, tmp_path / f"{kind}.svg", kind=kind)


def kinds():
    spec = importlib.util.spec_from_file_location("kinds", Path(__file__).with_name("test_kinds.py"))
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("width", ["one", "two"])
def test_more_lines_than_colours_get_panels_of_their_own(tmp_path, width):
    """Eight lines of three factors: four in a panel for each objective, told apart by colour and by their whole name."""
    levels = list(
        itertools.product(("standard", "pgd_at"), ("uniform", "class_skewed"), ("fixed-epochs", "fixed-steps"))
    )
    means = [
        DoseMean(metric="clean_accuracy", factors=dict(zip(("objective", "scheme", "budget"), place, strict=True)), dose=dose,
                 n=2, mean=0.001 * number + dose / 1000, sd=0.01, low=0.0, high=0.01)
        for number, place in enumerate(levels) for dose in (0.0, 0.5)
    ]  # fmt: skip
    kinds().study(tmp_path / "s", means=means)
    study, figure = read_run(tmp_path / "s"), Figure(layout="constrained", figsize=(3, 4))
    with matplotlib.rc_context(plots.STYLE):
        plots.KINDS["dose"].draw(figure.add_subplot(), [study], width)
        figure.draw_without_rendering()
    _, *panels = figure.axes
    assert [panel.texts[0].get_text() for panel in panels] == ["standard", "pgd_at"]
    for panel, half in zip(panels, (means[:8], means[8:]), strict=True):
        assert [bar.lines[0].get_ydata().tolist() for bar in panel.containers] == [
            [first.mean, second.mean] for first, second in zip(half[::2], half[1::2], strict=True)
        ]
        assert len({bar.lines[0].get_color() for bar in panel.containers}) == 4
        assert len({tick.get_text() for tick in panel.get_yticklabels()}) == len(panel.get_yticks())  # not 0%, 0%, 0%
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [", ".join(place[1:]) for place in levels[:4]]
    assert (panels[0].get_position().y0 == pytest.approx(panels[1].get_position().y0)) == (width == "two")


def test_trainings_and_studies_are_drawn(tmp_path):
    made = kinds()
    trained, studied = made.training(tmp_path / "t"), made.study(tmp_path / "s", "$x_{")
    training, study = read_run(tmp_path / "t"), read_run(tmp_path / "s")
    robust, clean = drawn("training", [training]).get_lines()
    assert robust.get_ydata().tolist() == [p.robust_accuracy for p in trained.validation]
    assert clean.get_ydata().tolist() == [p.clean_accuracy for p in trained.validation]
    figure = Figure()
    with matplotlib.rc_context(plots.STYLE):
        plots.KINDS["dose"].draw(figure.add_subplot(), [study], "two")
    lines = [bar.lines[0].get_xydata() for bar in figure.axes[1].containers]
    beside = 0.5 * 0.015 * 0.5  # half of a small share of the doses' reach: lines do not hide each other's intervals
    for line, means, shift in zip(lines, (studied.means[:2], studied.means[2:]), (-beside, beside), strict=True):
        assert line == pytest.approx(np.array([[m.dose + shift, m.mean] for m in means]))
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["0", "0.5"]
    for run in (training, study):
        assert plots.plot([run], tmp_path / f"{run.folder.name}.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="Kinds that can: dose, effects"):
        plots.plot([study], tmp_path / "x.pdf", kind="curve")


def test_effects_lie_where_the_record_says(tmp_path):
    spec = importlib.util.spec_from_file_location("kinds", Path(__file__).with_name("test_kinds.py"))
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.study(tmp_path / "s")
    figure = Figure()
    with matplotlib.rc_context(plots.STYLE):
        plots.KINDS["effects"].draw(figure.add_subplot(), [read_run(tmp_path / "s")], "one")
    zero, interval, point = figure.axes[1].get_lines()
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == [-0.0456, -0.0012]
    assert list(point.get_xdata()) == [-0.0234]
    (margin,) = figure.axes[1].patches
    assert (margin.get_x(), margin.get_width()) == (-0.01, 0.02)
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ["standard, 0.5"]
    made.study(tmp_path / "none", comparisons=[])
    with pytest.raises(UserError, match="no effects yet"):
        plots.plot([read_run(tmp_path / "none")], tmp_path / "x.pdf", kind="effects")


def test_refusals(run, runs, tmp_path):
    plain = read_run(run("plain", images=False).folder)
    with pytest.raises(UserError, match="pdf, svg, png"):
        plots.plot(runs, tmp_path / "x.jpg")
    with pytest.raises(UserError, match="Did you mean 'curve'"):
        plots.plot(runs, tmp_path / "x.png", kind="curves")
    with pytest.raises(UserError, match="about one run"):
        plots.plot(runs, tmp_path / "x.png", kind="cascade")
    with pytest.raises(UserError, match="several eps"):
        plots.plot([plain], tmp_path / "x.png", kind="curve")
    with pytest.raises(UserError, match="no adversarial images"):
        plots.plot([plain], tmp_path / "x.png", kind="examples")
    with pytest.raises(UserError, match="No RobustBench rank"):
        plots.plot([plain], tmp_path / "x.png", kind="leaderboard")
    (tmp_path / "x.png").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        plots.plot(runs, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert plots.plot(runs, tmp_path / "x.png", overwrite=True).read_bytes().startswith(b"\x89PNG")


def test_what_fits_is_drawn_where_no_kind_is_named(run, runs):
    plain = [read_run(run(name).folder) for name in ("p", "q")]
    assert [plots._usual(found) for found in (runs, plain, plain[:1])] == ["curve", "accuracy", "cascade"]
