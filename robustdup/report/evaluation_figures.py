"""The charts of evaluations, for their pages and for `robustdup plot`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from robustdup.errors import UserError
from robustdup.leaderboard import LeaderboardEntry, RankResult, load, position
from robustdup.records import EvaluationRecord
from robustdup.report.charts import (
    Axis,
    Bar,
    Chart,
    Point,
    Rule,
    Series,
    linear,
    measured,
    rows_axis,
    shape,
    shares,
    tone,
)
from robustdup.report.charts import counts as count_scale
from robustdup.report.format import attack_label, interval, number, percent, plural, shortened, whole
from robustdup.report.gallery import find_pictures, side_by_side
from robustdup.report.runs import Run, labels
from robustdup.report.samples import read_samples

LINES = 8  # curves in one chart
BINS = 20
ROW = 23  # pixels of a row
EXAMPLES = {"one": 4, "two": 9}


def curve(record: EvaluationRecord) -> Chart | None:
    """Return robust accuracy over eps: measured points with intervals, and what the smallest distances found say at most."""
    series, rows = [], []
    clean = record.clean_accuracy
    if record.curve:
        start = Point(0.0, clean.value, f"clean: {percent(clean.value)}", clean.low, clean.high)
        points = [
            Point(r.eps, r.value, f"eps {eps}: {percent(r.value)} [{interval(r.low, r.high)}]", r.low, r.high)
            for eps, r in record.curve.items()
        ]
        series.append(Series("robust accuracy", [start, *points], "robust", band=True))
        rows += [
            ("measured", eps, percent(r.value), interval(r.low, r.high), percent(r.alone))
            for eps, r in record.curve.items()
        ]
    if record.min_distance is not None and record.min_distance.curve:
        left = [(_eps(eps), eps, share) for eps, share in record.min_distance.curve.items()]
        bound = [Point(x, share, f"eps {eps}: at most {percent(share)}") for x, eps, share in left]
        start = Point(0.0, clean.value, f"clean: {percent(clean.value)}")
        series.append(Series("at most, from distances", [start, *bound], "c1", "square", dashed=True, marks=False))
        rows += [("at most", eps, percent(share), "", "") for _, eps, share in left]
    if not series:
        return None
    places = {r.eps: eps for eps, r in record.curve.items()} or {record.threat.eps: record.threat.eps_text}
    highest = max(point.x for line in series for point in line.points)
    if highest not in places:
        places[highest] = number(highest)
    return Chart(
        "curve", "Robust accuracy over eps",
        f"Robust accuracy falls from {percent(clean.value)} at eps 0 to {percent(series[0].points[-1].y)} at the largest.",
        measured(f"eps ({record.threat.norm})", places), shares("robust accuracy"), series,
        rules=[Rule(f"eps {record.threat.eps_text}", x=record.threat.eps)] if len(series) > 1 else [],
        headings=("kind", "eps", "robust accuracy", "95% interval", "attacks at this eps alone"), rows=rows,
    )  # fmt: skip


def _eps(text: str) -> float:
    try:
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return math.nan


def curves(runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    """Return the curves of the runs that have several eps, the first LINES of them; None where there is none."""
    chosen = [(run.record, name) for run, name in zip(runs, names, strict=True) if run.record.curve][:LINES]
    if not chosen:
        return None
    series, rows = [], []
    places: dict[float, str] = {}
    for place, (record, name) in enumerate(chosen):
        clean = record.clean_accuracy
        points = [Point(0.0, clean.value, f"{name}, clean: {percent(clean.value)}", clean.low, clean.high)]
        for eps, r in record.curve.items():
            points.append(Point(r.eps, r.value, f"{name}, eps {eps}: {percent(r.value)}", r.low, r.high))
            rows.append((name, record.threat.norm, eps, percent(r.value), interval(r.low, r.high)))
        places |= {r.eps: eps for eps, r in record.curve.items()}
        series.append(Series(name, points, tone(place), shape(place), band=True))
    norms = ", ".join(sorted({record.threat.norm for record, _ in chosen}))
    return Chart(
        "curves", "Robust accuracy over eps", f"{plural(len(series), 'run')} with several eps.",
        measured(f"eps ({norms})", places), shares("robust accuracy"), series, legend=series,
        headings=("run", "norm", "eps", "robust accuracy", "95% interval"), rows=rows,
    )  # fmt: skip


def histogram(record: EvaluationRecord, values: np.ndarray[Any, Any], label: str) -> Chart:
    """Return a histogram of distances (M,), in the units of eps."""
    eps = record.threat.eps
    axis = linear(0.0, max(float(values.max()), eps), f"{label} ({record.threat.norm})")
    edges = np.linspace(axis.low, axis.high, BINS + 1)
    counts, _ = np.histogram(values.clip(axis.low, axis.high), edges)
    bins = list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))
    median = float(np.median(values))
    return Chart(
        "distances", f"Histogram of {label}", f"{plural(len(values), 'sample')}; the median is {number(median)}.",
        axis, count_scale(int(counts.max()), "samples"),
        bars=[Bar(low, high, 0, n, "broken", f"{number(low)} to {number(high)}: {n}") for low, high, n in bins if n],
        rules=[Rule(f"eps {record.threat.eps_text}", x=eps), Rule(f"median {number(median)}", x=median)],
        height=200, headings=("from", "to", "samples"), rows=[(number(low), number(high), whole(n)) for low, high, n in bins],
    )  # fmt: skip


def board(record: EvaluationRecord, rank: RankResult, entries: Sequence[LeaderboardEntry]) -> Chart:
    """Return the published models around a run; only what was measured as they were stands among them."""

    def published(name: str, tone: str, shape: str, extra: bool) -> Series:
        points = [
            Point(e.clean_acc or 0.0, e.robust_acc or 0.0, f"{e.model_id}: clean {e.clean_acc:.2f}%, robust {e.robust_acc:.2f}%")
            for e in entries if e.extra_data is extra
        ]  # fmt: skip
        return Series(name, points, tone, shape, line=False)

    clean, robust = record.clean_accuracy, record.robust_accuracy
    tip = f"{record.model.name}: clean {percent(clean.value)}, robust {percent(robust.value)}"
    label, key = standing(rank)
    tip += "" if rank.autoattack is not None else f" ({label})"
    own = Point(100 * clean.value, 100 * robust.value, tip, 100 * robust.low, 100 * robust.high, label=label)
    xs = [entry.clean_acc or 0.0 for entry in entries] + [own.x]
    ys = [entry.robust_acc or 0.0 for entry in entries] + [own.low or own.y, own.high or own.y]
    title = f"RobustBench {rank.dataset} {rank.threat_model} {rank.leaderboard_eps or ''}".strip()
    return Chart(
        "leaderboard", f"{title}: clean against robust accuracy",
        f"{len(entries)} published models. This run: clean {percent(clean.value)}, robust {percent(robust.value)}.",
        _per_cent(linear(min(xs), max(xs), "clean accuracy", text=_points, margin=0.03)),
        _per_cent(linear(max(min(ys), 0.0), max(ys), "robust accuracy", text=_points)),
        [
            published("published", "c0", "circle", False),
            published("published, extra training data", "c1", "triangle", True),
            Series(key, [own], "own", "diamond" if rank.autoattack is not None else "ring", line=False),
        ],
        height=340,
    )  # fmt: skip


def _points(value: float) -> str:
    return f"{round(value, 6):g}%"


def _per_cent(axis: Axis) -> Axis:
    """Keep a scale of percentages within 0 and 100."""
    low, high = max(axis.low, 0.0), min(axis.high, 100.0)
    return replace(axis, low=low, high=high, ticks=tuple(tick for tick in axis.ticks if low <= tick[0] <= high))


def standing(rank: RankResult) -> tuple[str, str]:
    """Return what the mark of the run is called, and its key."""
    if rank.autoattack is not None:
        return "this run", "this run, with its 95% interval"
    if rank.at_most is not None:
        return "this run, a bound", "this run by a weaker attack: its robust accuracy is this or less"
    return "this run, not comparable", f"this run, not comparable: {rank.reasons[0].rstrip('.')}"


def board_entries(rank: RankResult) -> list[LeaderboardEntry]:
    """Return the published models of a run's leaderboard that have both accuracies."""
    table = load().boards.get((rank.dataset or "", rank.threat_model), ())
    return [entry for entry in table if entry.robust_acc is not None and entry.clean_acc is not None]


def plot_curve(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `curve`."""
    chart = curves(runs, labels(runs)) if len(runs) > 1 else curve(runs[0].record) if runs[0].record.curve else None
    if chart is None:
        raise UserError(
            "No run has robust accuracy over several eps. Evaluate with --eps 2/255,4/255,8/255.", code="no-data"
        )
    return chart


def has_curve(runs: Sequence[Run]) -> bool:
    """Say whether `curve` is what one wants to see of runs."""
    return any(run.record.curve for run in runs)


def _by_row(name: str, names: Sequence[str], series: Sequence[Series], label: str = "", **parts: Any) -> Chart:
    return Chart(name, "", "", shares(label), rows_axis(names), series, height=40 + ROW * max(len(names), 2), **parts)


def plot_accuracy(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `accuracy`: a row for each run, clean and robust, with the robust interval."""
    pairs = [(run.record.clean_accuracy, run.record.robust_accuracy) for run in runs]
    clean = [Point(c.value, i) for i, (c, _) in enumerate(pairs)]
    robust = [Point(r.value, i, "", r.low, r.high) for i, (_, r) in enumerate(pairs)]
    series = [
        Series("clean", clean, "grey", "ring", line=False),
        Series("robust, with its 95% interval", robust, "robust", line=False, sideways=True),
    ]
    return _by_row("accuracy", labels(runs), series)


def several(runs: Sequence[Run]) -> bool:
    """Say whether there is more than one run."""
    return len(runs) > 1


def plot_classes(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `classes`: a row for each class, clean and robust."""
    classes = [c for c in runs[0].record.per_class if c.n and c.robust_accuracy is not None]
    if not classes:
        raise UserError("The record holds no accuracies by class.", code="no-data")
    spans = [Bar(c.robust_accuracy, c.clean_accuracy or 0.0, i - 0.06, i + 0.06, "line") for i, c in enumerate(classes)]
    series = [
        Series("clean", [Point(c.clean_accuracy or 0.0, i) for i, c in enumerate(classes)], "grey", "ring", line=False),
        Series("robust", [Point(c.robust_accuracy, i) for i, c in enumerate(classes)], "robust", line=False),
    ]
    return _by_row("classes", [c.name for c in classes], series, bars=spans)


def plot_cascade(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `cascade`: which attack broke how many of the samples that it met."""
    record = runs[0].record
    if not record.attacks:
        raise UserError("The record holds no attacks.", code="no-data")
    n, bars = max(record.n, 1), []
    for i, attack in enumerate(record.attacks):
        robust_share = (attack.n_attacked - attack.n_broken - attack.n_undecided) / n
        broken = robust_share + attack.n_broken / n
        bars.append(Bar(0.0, robust_share, i - 0.32, i + 0.32, "robust"))
        bars.append(
            Bar(
                robust_share,
                broken,
                i - 0.32,
                i + 0.32,
                "broken",
                label=whole(attack.n_broken) if attack.n_broken else "",
            )
        )
    legend = [
        Series("held", (), "robust", "square", line=False), Series("broken", (), "broken", "square", line=False),
    ]  # fmt: skip
    names = [attack_label(attack) for attack in record.attacks]
    return _by_row("cascade", names, (), f"share of {whole(record.n)} samples", bars=bars, legend=legend)


def plot_leaderboard(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `leaderboard`: the run among the published models."""
    run = runs[0]
    rank = position(run.record, run.samples)
    entries = board_entries(rank)
    if not entries:
        raise UserError(rank.sentence(), code="no-data")
    chart = board(run.record, rank, entries)
    *others, own = chart.series
    remark = "" if rank.autoattack is not None else " (a bound)" if rank.at_most is not None else " (not comparable)"
    mark = [replace(own.points[0], label="")]
    return replace(chart, series=[*others, replace(own, name=run.name + remark, points=mark)])


def plot_examples(runs: Sequence[Run], width: str) -> str:
    """Return the figure `examples` as SVG, 100 units a column: clean image, adversarial example, magnified difference."""
    run = runs[0]
    if run.samples is None:
        raise UserError("Examples need the run's samples.parquet.", code="no-data")
    samples = read_samples(run.record, run.samples)
    pictures = find_pictures(run.folder, len(samples))
    if isinstance(pictures, str):
        raise UserError(pictures, code="no-data")
    rows = np.flatnonzero(samples.outcome == "broken")[: EXAMPLES[width]]
    if not len(rows):
        raise UserError("No attack broke a sample of this run: there is no example to show.", code="no-data")
    lines, _ = side_by_side(run.record, pictures.adversarial(rows), pictures.clean_images(rows))
    names = [*run.record.data.class_names] or [str(i) for i in range(run.record.model.num_classes)]
    height, columns, parts = len(lines) * 100 + 30, EXAMPLES[width], []
    style = 'text-anchor="middle" font-family="Liberation Sans, Arial, Helvetica, sans-serif" font-size="11"'
    for column, row in enumerate(rows):
        x = column * 100 + 3
        for line, images in enumerate(lines):
            parts.append(
                f'<image x="{x}" y="{line * 100 + 18}" width="94" height="94" href="{_png(images[column])}" '
                'style="image-rendering:pixelated"/>'
            )
        for y, label in ((12, samples.label[row]), (height - 4, samples.after[row])):  # the true class, taken for
            parts.append(f'<text x="{x + 47}" y="{y}" {style}>{escape(shortened(names[int(label)], 15))}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * 100} {height}">{"".join(parts)}</svg>'


def _png(image: np.ndarray[Any, Any]) -> str:
    """Return an image (C, H, W) in [0, 1] as a data address, its pixels enlarged so that no viewer smooths them."""
    pixels = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, 256 // max(picture.size))
    content = io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
