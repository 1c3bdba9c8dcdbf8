"""What the figures for papers have in common: widths, colours that colour-blind readers tell apart, type."""

from __future__ import annotations

from typing import Any, Literal

Width = Literal["one", "two"]
WIDTHS: dict[str, float] = {"one": 3.25, "two": 6.75}  # inches, as the columns of most conferences

# Okabe and Ito's colours, https://jfly.uni-koeln.de/color/, without yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
ROBUST, BROKEN, GREY = "#0072B2", "#D55E00", "#8B949E"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD", "lines.linewidth": 1.2, "lines.markersize": 4, "savefig.dpi": 300,
    "pdf.fonttype": 42, "svg.hashsalt": "robustdup", "text.parse_math": False,
}  # fmt: skip


def percent_axis(axis: Any) -> None:
    """Write a share in per cent."""
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6) + 0:.3g}%".replace("-", "−"))


def shortened(text: str, length: int) -> str:
    """Return text on one line of at most `length` letters, cut in the middle: names often differ at their ends."""
    one_line = " ".join(text.split())
    if len(one_line) <= length:
        return one_line
    return f"{one_line[: length - length // 2 - 1]}…{one_line[-(length // 2) :]}"
