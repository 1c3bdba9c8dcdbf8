"""The parts of pages against what is known: scales, words, the worst example of a point, sheets of pictures, folders."""

import io
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustdup.errors import UserError
from robustdup.records import SAMPLES_SCHEMA, Threat, load_samples
from robustdup.report import format as text
from robustdup.report.charts import Axis, Chart, Point, Series, counts, linear, shares
from robustdup.report.gallery import choose, find_pictures, make_gallery
from robustdup.report.html.comparison import labels
from robustdup.report.html.folder import write_files
from robustdup.report.runs import read_run
from robustdup.report.samples import read_samples
from robustdup.report.svg import SVG, draw, page_svg
from robustdup.report.vega import SCREEN, specification

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_a_scale_covers_its_values_with_round_ticks_in_order(a, b):
    low, high = min(a, b), max(a, b)
    axis = linear(low, high, "x")
    slack = 1e-9 * (abs(low) + abs(high) + 1)
    assert axis.low <= low + slack
    assert axis.high >= high - slack
    ticks = [at for at, _ in axis.ticks]
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 9


def test_known_scales():
    assert [label for _, label in linear(0, 1, "").ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [label for _, label in shares("").ticks] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert [label for _, label in shares("", 0.15, 0.25).ticks] == ["14%", "16%", "18%", "20%", "22%", "24%", "26%"]
    assert [counts(n, "").ticks[-1][1] for n in (0, 1, 3, 7, 4321)] == ["1", "1", "3", "8", "6,000"]
    assert all(at == round(at) for n in range(40) for at, _ in counts(n, "").ticks)
    assert linear(math.nan, math.inf, "").low == 0
    assert linear(3, 3, "").low < 3 < linear(3, 3, "").high


def paths(chart, kind):
    """The paths of a chart of 924 by its height as lists of numbers, by kind of mark."""
    spec, _ = specification(chart, 924, SCREEN)
    drawn = [g for g in draw(spec).iter(f"{{{SVG}}}g") if g.get("class") == kind]
    return [[float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))] for g in drawn for path in g]


def test_a_line_goes_through_its_points_and_skips_what_has_no_place():
    axis = Axis(0, 10, (), "")
    points = [
        Point(0, 0),
        Point(5, math.nan, "nowhere"),
        Point(10, 10, low=9, high=10),
        Point(5, 5, "five", low=4, high=6),
    ]
    chart = Chart("c", "", "", axis, axis, [Series("s", points, band=True)], height=100)
    [line], [band] = paths(chart, "line"), paths(chart, "band")
    right, bottom = max(line[::2]), max(line[1::2])
    assert line == pytest.approx([0, bottom, right, 0, right / 2, bottom / 2])
    places = sorted(zip(band[::2], band[1::2], strict=True))
    assert places == [pytest.approx((x * right, y * bottom)) for x, y in ((0.5, 0.4), (0.5, 0.6), (1, 0), (1, 0.1))]
    assert page_svg(chart).count("<path") == 2 * (1 + 1 + 3)  # a line, a band and three marks, wide and narrow
    assert page_svg(chart).count('data-tip="five"') == 2
    assert "nowhere" not in page_svg(chart)


def test_a_chart_says_what_it_is_given_and_leads_only_where_it_should():
    axis = linear(0, 1, "x", text=lambda value: f"<&{value:g}\"'")
    points = [Point(0.95, 0.5, "</svg><script>", href="#cell-0"), Point(2, 0.5, "off the scale")]
    text = page_svg(Chart("c", "", "", axis, axis, [Series("<b>", points)]))
    root = ElementTree.fromstring(f"<div>{text}</div>")
    assert {link.get("href") for link in root.iter("a")} == {"#cell-0"}
    assert root.find(".//script") is None
    ticks = [node.text for node in root.iter("text")]
    assert ticks.count("<&1\"'") == 4  # both ends of both axes, wide and narrow
    assert "vega" not in text
    assert text == page_svg(Chart("c", "", "", axis, axis, [Series("<b>", points)]))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (text.percent(0.685), "68.50%"), (text.percent(None), "–"), (text.percent(math.nan), "–"),
        (text.signed(-0.0123), "−1.23"), (text.signed(-0.0), "+0.00"), (text.signed(-1e-9), "+0.00"),
        (text.interval(0.1, 0.25), "10.00 to 25.00"), (text.duration(4.21), "4.2 s"), (text.duration(59.97), "1 min 0 s"),
        (text.duration(7512), "2 h 5 min"), (text.short(950), "950"), (text.short(19_400), "19.4k"),
        (text.short(3_660_000), "3.66M"),
        (text.whole(1234567), "1,234,567"), (text.plural(1, "point"), "1 point"), (text.plural(0, "point"), "0 points"),
        (text.listed("abc", 2), "a, b and 1 more"), (text.number(math.inf), "–"), (text.number(0.031372), "0.03137"),
    ],
)  # fmt: skip
def test_numbers_in_words(found, expected):
    assert found == expected


rows_of_a_point = st.lists(
    st.tuples(
        st.sampled_from(["0.05", "0.1"]), st.sampled_from(["broken", "robust", "undecided"]),
        st.floats(-2, 2), st.integers(0, 9),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(rows_of_a_point, min_size=1, max_size=5))
def test_the_worst_example_is_the_one_that_an_evaluation_keeps(attacked):
    """At the record's eps the least (correct share, margin), the first of equals; a smaller eps only where that broke."""
    columns = {name: [] for name in SAMPLES_SCHEMA.names}
    blank = {
        "image_sha256": "",
        "violation": "",
        "forward_passes": 0,
        "backward_passes": 0,
        "min_distance": None,
        "stage": 0,
    }

    def add(**values):
        for name, value in (blank | values).items():
            columns[name].append(value)

    expected = []
    for i, rows in enumerate(attacked):
        clean = {
            "eps": "",
            "attack": "clean",
            "outcome": "correct",
            "prediction": 0,
            "margin": 3.0,
            "correct_share": 1.0,
        }
        add(position=i, index=i, label=0, distance=0.0, **clean)
        best, best_key = ("", 0), (1.0, 3.0)
        small = None
        for number, (eps, outcome, margin, prediction) in enumerate(rows):
            share = 0.0 if outcome == "broken" else 1.0
            lost = outcome == "undecided"
            values = {"margin": None, "prediction": None, "correct_share": None} if lost else {
                "margin": margin, "prediction": prediction, "correct_share": share}  # fmt: skip
            add(position=i, index=i, label=0, eps=eps, attack=f"a{number}", outcome=outcome, distance=None, **values)
            if lost:
                continue
            if eps == "0.1" and (share, margin) < best_key:
                best, best_key = (f"a{number}", prediction), (share, margin)
            if eps == "0.05" and outcome == "broken" and (small is None or margin < small[1]):
                small = ((f"a{number}", prediction), margin)
        expected.append(small[0] if best_key[0] == 1.0 and small is not None else best)
    record = _Record()
    points = read_samples(record, pa.table(columns, schema=SAMPLES_SCHEMA))
    assert list(zip(points.attack.tolist(), points.after.tolist(), strict=True)) == expected


class _Record:
    """What read_samples looks at in a record."""

    run_id = "r"
    threat = Threat(norm="Linf", eps=0.1, eps_text="0.1")


def test_points_agree_with_what_the_run_was_made_of(run):
    made = run(seed=5)
    points = read_samples(made.record, load_samples(made.folder))
    assert (points.index == 100 + np.arange(40)).all()
    assert ((points.outcome == "wrong already") == ~made.right).all()
    assert ((points.outcome == "broken") == (made.broken_by >= 0)).all()
    hit = made.broken_by >= 0
    assert [points.attack[i] for i in np.flatnonzero(hit)] == [
        ("apgd-ce", "apgd-t", "fab-t", "square")[b] for b in made.broken_by[hit]
    ]


def test_sheets_hold_the_pictures_to_the_level(run):
    """Clean and adversarial tiles are the images in 256 levels; the difference is drawn around grey, eps at the ends."""
    made = run(shape=(3, 6, 5), n=30, eps=0.1)
    points = read_samples(made.record, load_samples(made.folder))
    found = make_gallery(made.record, points, find_pictures(made.folder, 30), prefix="x")
    assert [name for name, _ in found.sheets] == ["images/x-00.png", "images/x-01.png"]
    assert found.magnified == 5
    order = [point["index"] - 100 for point in found.data["samples"]]
    assert sorted(order) == list(range(30))
    for i, row in enumerate(order):
        sheet = np.asarray(Image.open(io.BytesIO(found.sheets[i // 24][1])))
        tiles = [sheet[6 * (i % 24) : 6 * (i % 24) + 6, 5 * c : 5 * c + 5].transpose(2, 0, 1) for c in range(3)]
        assert (tiles[0] == made.clean[row]).all()
        assert (tiles[1] == (made.adversarial[row] * 255).round()).all()
        change = made.adversarial[row] - made.clean[row].astype(np.float32) / 255
        assert np.abs(tiles[2] / 255 - (0.5 + change / 0.2).clip(0, 1)).max() <= 0.51 / 255 + 1e-6


def test_large_pictures_are_shrunk_and_the_number_is_bounded(run):
    made = run(shape=(3, 200, 150), n=30)
    points = read_samples(made.record, load_samples(made.folder))
    found = make_gallery(made.record, points, find_pictures(made.folder, 30), prefix="x", limit=10)
    assert found.shown == 10
    assert found.shrunk
    ((name, content),) = found.sheets
    assert name.endswith(".jpg")
    assert Image.open(io.BytesIO(content)).size == (3 * 50, 10 * 66)


def test_the_points_that_are_shown_cover_outcomes_attacks_and_classes(run):
    made = run(n=400, k=4)
    points = read_samples(made.record, load_samples(made.folder))
    rows = choose(points, 40)
    assert len(rows) == 40
    assert (np.diff(rows) > 0).all()
    kinds = set(
        zip(
            points.outcome.tolist(),
            np.where(points.outcome == "broken", points.attack, "").tolist(),
            points.label.tolist(),
            strict=True,
        )
    )
    shown = {
        (points.outcome[r], points.attack[r] if points.outcome[r] == "broken" else "", points.label[r]) for r in rows
    }
    assert shown == kinds


def test_labels_tell_runs_apart(run):
    a, b = run("a"), run("b")
    c = run("c", config={"attacks": "fast"})
    runs = [read_run(made.folder) for made in (a, b, c)]
    assert labels(runs) == ["model.py:make · autoattack · a", "model.py:make · autoattack · b", "model.py:make · fast"]


@pytest.mark.parametrize("name", ["../x.html", "/etc/x", "a/../../x", "a\\..\\x", "", "nul\0"])
def test_no_file_leaves_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="outside"):
        write_files(tmp_path / "to", {name: b""}, overwrite=True)
    assert not list(Path(tmp_path).rglob("*.html"))


def test_long_names_are_broken_where_their_words_meet():
    name = "foolbox:LinfProjectedGradientDescentAttack"
    lines = text.folded(name, 20).split("\n")
    assert lines == ["foolbox:Linf", "ProjectedGradient", "DescentAttack"]
    assert "".join(lines) == name
    assert text.folded("advlib:carlini_wagner_linf", 20) == "advlib:carlini_\nwagner_linf"
    assert text.folded("apgd-t", 20) == "apgd-t"
    assert text.folded("x" * 30, 20) == "x" * 30  # nowhere to break
