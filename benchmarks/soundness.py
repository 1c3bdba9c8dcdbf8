"""Whether any sample that is certified can be broken: networks drawn at random, attacks of several kinds on each certificate.

    python -m benchmarks.soundness --samples 20000

A line of JSON for each network and, last, the sums. Networks are untrained or trained, of dense layers or convolutions,
with BatchNorm, leaky rectifiers, max pooling and sums; labels are what the network answers. Radii are searched for at which about
half of the images are certified, so that certificates are near what can be broken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import robustdup
from robustdup.certification.proofs import certify_samples
from robustdup.threat import ThreatModel

SHAPE, CLASSES = (2, 5, 5), 3
NORMS = ("Linf", "L2", "L1")
FIRST_EPS = {"Linf": 0.02, "L2": 0.1, "L1": 0.3}
ATTACKS = ("pgd(restarts=10,steps=20)", "apgd-t", "square(queries=1000)")


class Residual(nn.Module):
    """Convolutions with BatchNorm, a sum around the second, max pooling, a linear head."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(SHAPE[0], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.rectifier = nn.LeakyReLU(slope)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 2, 5, 5) -> logits (N, 3)."""
        x = torch.relu(self.norm(self.first((images - 0.5) / 0.25)))
        x = self.pool(self.rectifier(self.second(x) + x))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def draw_network(seed: int) -> nn.Module:
    """Return a network of a kind, a width and weights that follow from the seed; every second one is trained."""
    torch.manual_seed(seed)
    width = int(torch.randint(4, 13, ()))
    kind = seed // 2 % 4
    if kind == 0:
        model: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(50, 2 * width), nn.ReLU(), nn.Linear(2 * width, CLASSES)
        )
    elif kind == 1:
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(50, 2 * width), nn.LeakyReLU(0.2), nn.Linear(2 * width, width), nn.ReLU(),
            nn.Linear(width, CLASSES),
        )  # fmt: skip
    elif kind == 2:
        model = nn.Sequential(
            nn.Conv2d(2, width, 3), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Conv2d(width, width, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(width, CLASSES),
        )  # fmt: skip
    else:
        model = Residual(width, 0.1)
    with torch.no_grad():
        model.train()(torch.rand(64, *SHAPE))  # so that BatchNorm has statistics
    if seed % 2:
        _train(model)
    return model.eval().requires_grad_(False)


def _train(model: nn.Module) -> None:
    """Train for a while to tell around which of three random images a noisy one was drawn."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    centres = torch.rand(CLASSES, *SHAPE)
    for _ in range(60):
        labels = torch.randint(CLASSES, (64,))
        images = (centres[labels] + 0.3 * torch.randn(64, *SHAPE)).clamp(0, 1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def measure(seed: int, n: int, branch_seconds: float = 0.0) -> dict[str, Any]:
    """Certify n images on the network of a seed and attack each certified one; `broken` is to be 0."""
    started, model = time.process_time(), draw_network(seed)
    norm = NORMS[seed % 3]
    images = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    labels = model(images).argmax(1)
    eps = _radius(model, images[:32], labels[:32], norm)
    threat = ThreatModel(norm, eps)
    certificates = certify_samples(model, images, labels, threat, branch_seconds=branch_seconds)
    row: dict[str, Any] = {
        "seed": seed, "trained": bool(seed % 2), "norm": norm, "eps": eps, "n": n,
        "certified": int(certificates.certified.sum()), "by_cases": certificates.methods.count("branch-and-bound"),
    }  # fmt: skip
    kept, own = images[certificates.certified], labels[certificates.certified]
    broken = torch.zeros(len(kept), dtype=torch.bool)
    for attack in ATTACKS if len(kept) else ():
        adv_images = robustdup.attack(model, kept, own, attack, eps=eps, norm=norm)
        broken |= model(adv_images).argmax(1) != own
    rest, others = images[~certificates.certified], labels[~certificates.certified]
    if len(rest):  # that attacks work here is seen on the samples that are not certified
        adv_images = robustdup.attack(model, rest, others, ATTACKS[0], eps=eps, norm=norm)
        row["broken_of_the_rest"] = int((model(adv_images).argmax(1) != others).sum())
    return {**row, "broken": int(broken.sum()), "cpu_seconds": round(time.process_time() - started, 1)}


def _radius(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> float:
    """Return a radius at which about half of the images are certified."""
    eps, step = FIRST_EPS[norm], 2.0
    for _ in range(6):
        share = float(certify_samples(model, images, labels, ThreatModel(norm, eps)).certified.float().mean())
        eps = round(eps * step if share > 0.5 else eps / step, 5)
        step = step**0.7
    return min(eps, 0.9)


def rows(samples: int, n: int, first: int = 0, branch_seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield a row for each network until so many samples are certified."""
    total, seed = 0, first
    while total < samples:
        row = measure(seed, n, branch_seconds if seed % 8 < 2 else 0.0)
        total, seed = total + row["certified"], seed + 1
        yield row


def main() -> None:
    """Read the command line and print a line of JSON for each network, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=20_000, help="certified samples to reach")
    parser.add_argument("--n", type=int, default=400, help="images for each network")
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--branch", type=float, default=0.2, help="seconds for each open sample of every fourth pair")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sums: dict[str, int] = {}
    for row in rows(given.samples, given.n, given.first, given.branch):
        print(json.dumps(row), flush=True)
        for name in ("n", "certified", "by_cases", "broken", "broken_of_the_rest"):
            sums[name] = sums.get(name, 0) + row.get(name, 0)
    print(json.dumps({"sums": sums}))


if __name__ == "__main__":
    main()
