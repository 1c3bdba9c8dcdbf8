"""Figures for papers, from records alone: sized for one column or two, in colours that colour-blind readers tell apart.

The same record gives the same bytes. Text in PDF files is text, in a font that is embedded (type 42).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.errors import UserError, unknown
from robustdup.leaderboard import load, position
from robustdup.records import write_atomic
from robustdup.report.html.comparison import labels
from robustdup.report.html.gallery import CLEAN, find_pictures
from robustdup.report.plot_style import (
    BROKEN,
    COLOURS,
    GREY,
    MARKERS,
    ROBUST,
    STYLE,
    WIDTHS,
    Width,
    percent_axis,
    shortened,
)
from robustdup.report.runs import EvaluationRun, PluggedRun, Run, TrainingRun, record_kinds
from robustdup.report.samples import read_points
from robustdup.report.terminal import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
EXAMPLES = {"one": 4, "two": 9}


@dataclass(frozen=True)
class Kind:
    """A kind of figure: what it shows, how it is drawn on axes, and how high it is in inches."""

    about: str
    draw: Callable[[Axes, Sequence[Any], Width], None]
    height: Callable[[Sequence[Any], Width], float]
    one_run: bool = False
    of: type = EvaluationRun
    schema: str = ""  # of a kind of record that a plugin brought

    def fits(self, run: Run) -> bool:
        """Say whether a run can be drawn so."""
        return (
            isinstance(run, PluggedRun) and run.kind.schema == self.schema if self.schema else isinstance(run, self.of)
        )


def plot(
    runs: Sequence[Run],
    to: Path,
    *,
    kind: str | None = None,
    width: Width = "one",
    overwrite: bool = False,
) -> Path:
    """Draw runs into a file whose ending names the format (pdf, svg, png), and return its path.

    `kind` is one of KINDS; without one: `training` or `dose` for such runs, `curve` where an evaluation has several eps,
    otherwise `accuracy` for several evaluations and `cascade` for one. Raises UserError for an unknown kind or format, and
    for runs that hold nothing to draw.
    """
    ending = to.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UserError(f"A figure is written as {', '.join(FORMATS)}; {str(to)!r} ends in {to.suffix!r}.")
    if width not in WIDTHS:
        raise unknown("width", width, WIDTHS)
    kinds, chosen = all_kinds(), kind or _usual(runs)
    if chosen not in kinds:
        raise unknown("kind of figure", chosen, kinds)
    unfit = next((run for run in runs if not kinds[chosen].fits(run)), None)
    if unfit is not None:
        fits = ", ".join(name for name, found in kinds.items() if found.fits(unfit)) or "none"
        raise UserError(
            f"A figure of kind {chosen!r} cannot be drawn of {str(unfit.folder)!r}. Kinds that can: {fits}."
        )
    if kinds[chosen].one_run and len(runs) != 1:
        raise UserError(f"A figure of kind {chosen!r} is about one run; {len(runs)} were given.")
    if to.exists() and not overwrite:
        raise UserError(f"{str(to)!r} is there already. Choose another --to, or replace it with --overwrite.")
    write_atomic(to, draw(runs, chosen, width, ending))
    return to


def _usual(runs: Sequence[Run]) -> str:
    if runs and isinstance(runs[0], TrainingRun):
        return "training"
    if runs and isinstance(runs[0], PluggedRun):
        return next(iter(runs[0].kind.figures), "cascade")
    if any(isinstance(run, EvaluationRun) and run.record.curve for run in runs):
        return "curve"
    return "accuracy" if len(runs) > 1 else "cascade"


def draw(runs: Sequence[Run], kind: str, width: Width, ending: str) -> bytes:
    """Return a figure as the content of a file."""
    import matplotlib

    matplotlib.use("agg")  # no window, whatever the environment says
    from matplotlib.figure import Figure

    found = all_kinds()[kind]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure: Figure = Figure(figsize=(WIDTHS[width], found.height(runs, width)), layout="constrained")
        found.draw(figure.add_subplot(), runs, width)
        content = io.BytesIO()
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}[ending]
        figure.savefig(content, format=ending, metadata=metadata)  # type: ignore[arg-type]
    return content.getvalue()


def _curve(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    names = labels(runs)
    drawn = 0
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        record = run.record
        if not record.curve:
            continue
        points = [(0.0, record.clean_accuracy), *((at.eps, at) for at in record.curve.values())]
        eps = [at for at, _ in points]
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(eps, [a.low for _, a in points], [a.high for _, a in points], color=colour, alpha=0.15, lw=0)
        axes.plot(eps, [a.value for _, a in points], color=colour, marker=MARKERS[number % len(MARKERS)], label=name)
        drawn += 1
    if not drawn:
        raise UserError("No run has robust accuracy over several eps. Evaluate with --eps 2/255,4/255,8/255.")
    axes.set_xlabel(f"eps ({', '.join(sorted({run.record.threat.norm for run in runs}))})")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    percent_axis(axes.yaxis)
    if drawn > 1:
        axes.legend()


def _accuracy(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    for row, run in enumerate(runs):
        clean, robust = run.record.clean_accuracy, run.record.robust_accuracy
        axes.plot([robust.low, robust.high], [row, row], color=ROBUST, lw=3, alpha=0.35, solid_capstyle="butt")
        axes.plot(clean.value, row, "o", mfc="white", mec=GREY, label="clean" if row == 0 else None)
        axes.plot(robust.value, row, "o", color=ROBUST, label="robust (95% interval)" if row == 0 else None)
    axes.set_yticks(range(len(runs)), [shortened(name, 40 if width == "two" else 22) for name in labels(runs)])
    _rows(axes, len(runs))
    _legend_below(axes)


def _classes(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    found = [c for c in runs[0].record.per_class if c.n and c.robust_accuracy is not None]
    if not found:
        raise UserError("The record holds no accuracies by class.")
    for row, c in enumerate(found):
        robust, clean = c.robust_accuracy or 0.0, c.clean_accuracy or 0.0
        axes.plot([robust, clean], [row, row], color="#CCCCCC", lw=1.2, zorder=1)
        axes.plot(clean, row, "o", mfc="white", mec=GREY, label="clean" if row == 0 else None)
        axes.plot(robust, row, "o", color=ROBUST, label="robust" if row == 0 else None)
    axes.set_yticks(range(len(found)), [shortened(c.name, 22) for c in found])
    _rows(axes, len(found))
    _legend_below(axes)


def _cascade(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    record = runs[0].record
    if not record.attacks:
        raise UserError("The record holds no attacks.")
    n = max(record.n, 1)
    for row, attack in enumerate(record.attacks):
        held = attack.n_attacked - attack.n_broken - attack.n_undecided
        axes.barh(row, held / n, color=ROBUST, height=0.62, label="held" if row == 0 else None)
        axes.barh(
            row, attack.n_broken / n, left=held / n, color=BROKEN, height=0.62, label="broken" if row == 0 else None
        )
        if attack.n_broken:
            end = ((held + attack.n_broken) / n, row)
            axes.annotate(str(attack.n_broken), end, (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(
        range(len(record.attacks)), [shortened(label(a), 40 if width == "two" else 22) for a in record.attacks]
    )
    _rows(axes, len(record.attacks))
    axes.set_xlabel(f"share of {record.n} points")
    _legend_below(axes)


def _rows(axes: Axes, n: int) -> None:
    """The first row at the top, a scale from 0 to 100% across."""
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.04)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    percent_axis(axes.xaxis)


def _legend_below(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2
    )


def _leaderboard(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    run = runs[0]
    rank = position(run.record, run.samples)
    board = [
        e
        for e in load().boards.get((rank.dataset or "", rank.threat_model), ())
        if e.clean_acc and e.robust_acc is not None
    ]
    if not board:
        raise UserError(rank.sentence())
    for extra, colour, marker, name in ((False, GREY, "o", "published"), (True, COLOURS[4], "^", "with extra data")):
        mine = [(e.clean_acc, e.robust_acc) for e in board if e.extra_data is extra]
        axes.plot([x for x, _ in mine], [y for _, y in mine], marker, color=colour, ms=3, alpha=0.8, label=name)  # type: ignore[arg-type]
    clean, robust = run.record.clean_accuracy, run.record.robust_accuracy
    remark = "" if rank.autoattack is not None else " (a bound)" if rank.at_most is not None else " (not comparable)"
    axes.errorbar(
        100 * clean.value, 100 * robust.value,
        yerr=[[100 * (robust.value - robust.low)], [100 * (robust.high - robust.value)]],
        fmt="D", color=ROBUST, mfc=ROBUST if rank.autoattack is not None else "white", ms=5, capsize=2,
        label=shortened(run.name, 30) + remark,
    )  # fmt: skip
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.grid()
    axes.set_axisbelow(True)
    axes.legend(loc="best")


def _examples(axes: Axes, runs: Sequence[EvaluationRun], width: Width) -> None:
    """Columns of clean image, adversarial example and magnified difference, the first points that were broken."""
    run = runs[0]
    if run.samples is None:
        raise UserError("Examples need the run's samples.parquet.")
    points = read_points(run.record, run.samples)
    pictures = find_pictures(run.folder, len(points))
    if isinstance(pictures, str):
        raise UserError(pictures)
    rows = np.flatnonzero(points.outcome == "broken")[: EXAMPLES[width]]
    if not len(rows):
        raise UserError("No attack broke a point of this run: there is no example to show.")
    adv, clean = pictures.adversarial(rows), pictures.clean_images(rows)
    lines = [adv]
    if clean is not None:
        eps = run.record.threat.eps if run.record.threat.norm == "Linf" else float(np.abs(adv - clean).max())
        lines = [clean, adv, 0.5 + (adv - clean) / (2 * (eps or 1.0))]
    names = [*run.record.data.class_names] or [str(i) for i in range(run.record.model.num_classes)]
    axes.set_axis_off()
    figure = axes.get_figure()
    assert figure is not None
    grid = axes.get_subplotspec().subgridspec(len(lines), len(rows), wspace=0.06, hspace=0.06)  # type: ignore[union-attr]
    for line, images in enumerate(lines):
        for column in range(len(rows)):
            cell = figure.add_subplot(grid[line, column])
            picture = np.nan_to_num(images[column]).clip(0, 1).transpose(1, 2, 0)
            cell.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            cell.set_xticks([])
            cell.set_yticks([])
            for spine in cell.spines.values():
                spine.set_visible(False)
            label_at = {0: points.label, len(lines) - 1: points.after}.get(line)  # true above, taken for below
            if label_at is not None:
                text = shortened(names[int(label_at[rows[column]])], 11)
                below = line == len(lines) - 1
                cell.set_xlabel(text, fontsize=6, labelpad=2) if below else cell.set_title(text, fontsize=6, pad=2)


def _training(axes: Axes, runs: Sequence[TrainingRun], width: Width) -> None:
    """Validation accuracy over epochs: robust with a line, clean dashed."""
    drawn = [run for run in runs if run.record.validation]
    if not drawn:
        raise UserError("No run holds validation accuracies.")
    for number, run in enumerate(drawn):
        points, colour = run.record.validation, COLOURS[number % len(COLOURS)]
        epochs = [point.epoch for point in points]
        name = run.record.run_id if len(drawn) > 1 else "robust"
        axes.plot(epochs, [p.robust_accuracy for p in points], color=colour, label=shortened(name, 24))
        clean = "clean" if number == len(drawn) - 1 else None
        axes.plot(epochs, [p.clean_accuracy for p in points], color=colour, ls="--", lw=0.9, label=clean)
    axes.set_xlabel("epochs")
    axes.set_ylabel("validation accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    percent_axis(axes.yaxis)
    axes.legend()


def _by_rows(count: Callable[[EvaluationRun], int] | None = None) -> Callable[[Sequence[EvaluationRun], Width], float]:
    """A height that grows with the rows: one a run, or what `count` says of the first run."""

    def height(runs: Sequence[EvaluationRun], width: Width) -> float:
        rows = len(runs) if count is None else count(runs[0])
        return min(0.75 + 0.19 * max(rows, 2), 9.0)

    return height


def _fixed(inches: float) -> Callable[[Sequence[EvaluationRun], Width], float]:
    return lambda runs, width: inches


def _tiles(runs: Sequence[EvaluationRun], width: Width) -> float:
    """As high as the rows of pictures: three where the run kept its clean images."""
    lines = 3 if (runs[0].folder / CLEAN).is_file() else 1
    return 0.3 + lines * WIDTHS[width] / EXAMPLES[width]


KINDS: dict[str, Kind] = {
    "curve": Kind("robust accuracy over eps, with 95% intervals", _curve, _fixed(2.2)),
    "accuracy": Kind("clean and robust accuracy of each run, with 95% intervals", _accuracy, _by_rows()),
    "cascade": Kind("which attack broke how many points", _cascade, _by_rows(lambda r: len(r.record.attacks)), True),
    "classes": Kind("clean and robust accuracy by class", _classes, _by_rows(lambda r: len(r.record.per_class)), True),
    "leaderboard": Kind("the run among RobustBench's published models", _leaderboard, _fixed(2.6), True),
    "training": Kind("validation accuracy over epochs", _training, _fixed(2.2), of=TrainingRun),
    "examples": Kind("clean images, adversarial examples and their differences", _examples, _tiles, True),
}


def all_kinds() -> dict[str, Kind]:
    """Return the kinds of figures of robustdup and of installed plugins, by name."""
    kinds = dict(KINDS)
    for schema, kind in record_kinds().items():
        for name, figure in kind.figures.items():
            kinds.setdefault(name, Kind(figure.about, figure.draw, figure.height, figure.one_run, PluggedRun, schema))
    return kinds
