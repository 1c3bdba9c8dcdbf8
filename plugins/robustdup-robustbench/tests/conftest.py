"""A small network, trained here in seconds on scikit-learn's digits: good enough that attacks have work to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def trained(classes: int = 10, channels: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """Return (network in eval mode, test images (N, C, 8, 8), labels (N,)); the same one every time."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, channels, 1, 1) / 16
    labels = torch.tensor(digits.target)
    images, labels = images[labels < classes], labels[labels < classes]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, classes),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(150):
            rows = torch.randint(200, len(images), (128,))
            noisy = images[rows] + 0.1 * torch.randn(128, channels, 8, 8)
            loss = nn.functional.cross_entropy(model(noisy), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return model, images[:200], labels[:200]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For a network this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    return trained()


@pytest.fixture(scope="session")
def four_classes() -> tuple[nn.Module, Tensor, Tensor]:
    return trained(classes=4)


@pytest.fixture(scope="session")
def three_classes() -> tuple[nn.Module, Tensor, Tensor]:
    return trained(classes=3)
