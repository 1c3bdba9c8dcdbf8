"""How often the gate finds a known drop, and how often it fails where there is none.

    python -m benchmarks.gate --population 4000 --draws 20000

Small networks whose robust accuracy is known in closed form are evaluated on a population by PGD, which is exact on them.
The new one loses a known share of the population and gains another. Then n samples are drawn many times, and the gate
decides on each draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import robustdup
from robustdup.leaderboard.compare import sample_outcomes
from robustdup.leaderboard.gate import ALPHA, is_drop
from robustdup.statistics import drop_power

EPS = 0.05
HALF = 4  # pixels a side of the picture
MARGIN = Fraction(1, 100)


class Halves(nn.Module):
    """A sample of class 0 is as right as its left half is brighter than a bar, one of class 1 by its right half.

    The bars are of their own, so that samples of class 0 can be lost and samples of class 1 gained, as many as one likes.
    """

    def __init__(self, bar_left: float, bar_right: float) -> None:
        super().__init__()
        self.bars = torch.tensor([bar_left, bar_right])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 4): left half, right half, and both bars where their half is lit at all."""
        pixels = images.flatten(1)
        left, right = pixels[:, :HALF].mean(1), pixels[:, HALF:].mean(1)
        lit = left > right
        far = torch.full_like(left, -9.0)
        bar_left, bar_right = (torch.full_like(left, float(bar)) for bar in self.bars)
        return torch.stack(
            [torch.where(lit, left, far), torch.where(lit, far, right),
             torch.where(lit, bar_left, far), torch.where(lit, far, bar_right)], dim=1,
        )  # fmt: skip


def population(n: int) -> tuple[Tensor, Tensor]:
    """Return n images (n, 1, 1, 2 HALF), half of each class, whose lit half is between 0.3 and 0.9, and their labels."""
    labels = torch.arange(n) % 2
    brightness = torch.linspace(0.3, 0.9, n // 2).repeat_interleave(2)
    images = torch.zeros(n, 1, 1, 2 * HALF)
    images[labels == 0, ..., :HALF] = brightness[labels == 0].view(-1, 1, 1, 1)
    images[labels == 1, ..., HALF:] = brightness[labels == 1].view(-1, 1, 1, 1)
    return images, labels


def bar_for(share: float) -> float:
    """Return the bar under which a share of a class is not robust: its brightness less eps is not above it."""
    return 0.3 + 0.6 * share - EPS


def robust(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray[Any, Any]:
    """Return which samples (n,) bool an evaluation leaves robust."""
    result = robustdup.evaluate(
        model, images, labels, eps=str(EPS), attacks="pgd(steps=5)", diagnostics=False, progress=False
    )
    import pyarrow as pa

    return np.asarray(sample_outcomes(result.record, pa.table(result.samples)).robust == 1)


def measure(n_population: int, draws: int, sizes: Sequence[int], gained: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each n and share gained: how often the gate fails with a drop of 2 points, and without one."""
    images, labels = population(n_population)
    old = robust(Halves(bar_for(0.3), bar_for(0.3)), images, labels)
    rows = []
    for share in gained:
        fails = {}
        for drop in (0.02, 0.0):
            new = robust(Halves(bar_for(0.3 + 2 * (share + drop)), bar_for(0.3 - 2 * share)), images, labels)
            lost, won = float((old & ~new).mean()), float((new & ~old).mean())
            fails[drop] = (lost, won)
        for n in sizes:
            row: dict[str, Any] = {"n": n, "gained": share, "differ": fails[0.02][0] + fails[0.02][1]}
            for drop, name in ((0.02, "power"), (0.0, "false_alarms")):
                lost, won = fails[drop]
                counts = np.random.default_rng(0).multinomial(n, [lost, won, 1 - lost - won], size=draws)
                kinds, often = np.unique(counts[:, :2], axis=0, return_counts=True)
                failed = sum(
                    int(times) for (a, b), times in zip(kinds.tolist(), often, strict=True) if is_drop(a, b, n, MARGIN)
                )
                row |= {"true_drop_" + name: lost - won, name: failed / draws}
                row["exact_" + name] = drop_power(n, lost - won, won, margin=float(MARGIN), alpha=ALPHA)
            rows.append(row)
    return rows


def main() -> None:
    """Read the command line and print a line of JSON for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--population", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--gained", type=float, nargs="+", default=[0.0, 0.0025, 0.005, 0.01, 0.02, 0.04])
    given = parser.parse_args()
    for row in measure(given.population, given.draws, given.sizes, given.gained):
        print(json.dumps({name: round(value, 4) for name, value in row.items()}))


if __name__ == "__main__":
    main()
