"""A small trained network that attacks can break, and the plugin's own registry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import robustdup_torchattacks
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustdup import Registry, SampleRng, ThreatModel

EPS = {"Linf": "0.15", "L2": "1.5", "L1": "12", "L0": "1.5"}


@dataclass(frozen=True)
class Task:
    """A classifier, images that it gets right, and their labels."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    def rows(self, n: int) -> Task:
        """Keep the first n points."""
        return Task(self.model, self.images[:n], self.labels[:n])

    def rng(self, seed: int = 0) -> SampleRng:
        """Return the generator of these points."""
        return SampleRng(seed, torch.arange(len(self.images)))

    def broken(self, adv: Tensor) -> Tensor:
        """(N,) bool: misclassified."""
        with torch.no_grad():
            return self.model(adv).argmax(dim=1) != self.labels


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def task() -> Task:
    """Digits as RGB 8 x 8, ten classes, a network with BatchNorm and Dropout in eval mode."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(5):
            for rows in torch.randperm(1500).split(100):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        right = (model(images[1500:]).argmax(dim=1) == labels[1500:]).nonzero()[:, 0] + 1500
    return Task(model, images[right][:24], labels[right][:24])


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The plugin alone."""
    registry = Registry()
    robustdup_torchattacks.register(registry)
    return registry


@pytest.fixture
def attack(registry):
    """Run an attack by its class name: attack(name, task, norm or threat, **options)."""

    def run(name: str, task: Task, threat="Linf", *, model=None, seed: int = 0, **options) -> Tensor:
        if isinstance(threat, str):
            threat = ThreatModel(threat, EPS[threat])
        spec = registry.attacks[f"torchattacks:{name}"]
        return spec.function(
            task.model if model is None else model, task.images, task.labels, threat, rng=task.rng(seed), **options
        )

    return run
