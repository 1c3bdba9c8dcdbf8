"""Networks of the zoo that are trained: ordinary ones of all objectives, and ones that training itself has masked.

All learn the 8x8 digits in seconds: `trained(name, folder)` makes the weights once, and loads them after that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robustdup

QUICK = {
    "data": "builtin:digits", "model": "small-cnn(width=8)", "epochs": 12, "lr": 0.005, "eps": "0.15", "validation": 0,
    "evaluate": "none", "attack": "pgd(steps=5)", "threads": 1,
}  # fmt: skip
RESNET = "small-resnet(width=8)"
PROVEN = {"eps": "0.06", "eps_schedule": "0:0,0.2:0,0.7:0.06", "epochs": 30, "lr": 0.002, "warmup": 0.3}
PLAIN = {"objective": "standard", "epochs": 10}
ORDINARY: dict[str, dict[str, Any]] = {
    "standard": PLAIN,
    "pgd-at": {},
    "trades": {"objective": "trades(beta=6)"},
    "mart": {"objective": "mart"},
    "free": {"objective": "free(replays=4)"},
    "n-fgsm": {"objective": "n_fgsm"},
    "fgsm-pgi": {"objective": "fgsm_pgi"},
    "ibp": {**PROVEN, "objective": "ibp(kappa=0)"},
    "crown-ibp": {**PROVEN, "objective": "crown_ibp"},
    "morel": {"objective": "morel"},
    "pgd-at-awp": {"update": "awp(gamma=0.005)"},
    "trades-awp": {"objective": "trades(beta=6)", "update": "awp(gamma=0.005)"},
    "pgd-at-resnet": {"model": RESNET},
    "trades-resnet": {"model": RESNET, "objective": "trades(beta=3)"},
    "standard-resnet": {**PLAIN, "model": RESNET},
    "n-fgsm-wide": {"objective": "n_fgsm", "model": "small-cnn(width=24)"},
    "pgd-at-small-eps": {"eps": "0.05"},
    "trades-small-eps": {"objective": "trades(beta=6)", "eps": "0.08"},
    "pgd-at-l2": {"norm": "L2", "eps": "0.5"},
    "pgd-at-averaged": {"ema": 0.99},
    "pgd-at-copies": {"duplicate": {"scheme": "uniform", "dose": 0.3}},
    "pgd-at-noisy-labels": {"label_smoothing": 0.1},
    "mart-wide": {"objective": "mart", "model": "small-cnn(width=16)"},
    "mixup": {**PLAIN, "mix": "mixup(alpha=0.2)"},
}  # fmt: skip
FGSM = {"attack": "fgsm", "epochs": 40}
OVERFITTED: dict[str, dict[str, Any]] = {
    "fgsm-overfitted": {**FGSM, "eps": "0.3"},
    "fgsm-overfitted-wide": {**FGSM, "eps": "0.25", "model": "small-cnn(width=24)"},
    "fgsm-overfitted-resnet": {**FGSM, "eps": "0.25", "model": RESNET, "epochs": 25},
    "fgsm-large-rate": {**FGSM, "eps": "0.2", "lr": 0.02},
    "smoothed-labels": {**PLAIN, "label_smoothing": 0.5},
    "smoothed-labels-fgsm": {**FGSM, "eps": "0.2", "label_smoothing": 0.4},
    "decayed": {**PLAIN, "weight_decay": 2.0, "epochs": 20},
    "decayed-fgsm": {**FGSM, "eps": "0.2", "weight_decay": 1.0},
}  # fmt: skip

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train_by_recipe(recipe: dict[str, Any], folder: Path) -> nn.Module:
    """Train as `robustdup train` does, unless the folder holds the network; return it in eval mode."""
    if not (folder / "record.json").is_file():
        robustdup.train(out=folder, **{**QUICK, **recipe})
    return robustdup.load_model(f"run:{folder}@last").eval()


class Winners(nn.Module):
    """Keep the largest fifth of all values of a sample, and no other: https://arxiv.org/abs/1905.10510."""

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, ...) -> the same shape."""
        flat = values.flatten(1)
        lowest = flat.topk(max(1, flat.shape[1] // 5), dim=1).values[:, -1:]
        return (flat * (flat >= lowest)).view_as(values)


class Binary(nn.Module):
    """The sign of each value, with the gradient of the identity in training alone."""

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, ...) -> the same shape."""
        return values.sign() + (values - values.detach() if self.training else 0 * values)


class Steep(nn.Module):
    """A sigmoid that is steep in evaluation, and ten times less in training."""

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, ...) -> the same shape, in [0, 1]."""
        return torch.sigmoid((5.0 if self.training else 200.0) * values)


class Bits(nn.Module):
    """Round images to four levels, in training too: what is behind has learnt them."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the same shape."""
        return (images * 3).round() / 3


def _dense(activation: Callable[[], nn.Module], first: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        nn.Identity() if first is None else first, nn.Flatten(), nn.Linear(64, 96), activation(), nn.Linear(96, 64),
        activation(), nn.Linear(64, 10),
    )  # fmt: skip


def _plain(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def _on_noise(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model((images + 0.15 * torch.randn_like(images)).clamp(0, 1)), labels)


def _large_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        model(images) / 50, labels
    )  # at temperature 50, and used at 1: https://arxiv.org/abs/1511.04508


def _flat(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), images, create_graph=True)
    return loss.mean() + 0.3 * slope.flatten(1).abs().sum(dim=1).mean()  # https://arxiv.org/abs/1711.09404


def _distilled(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    teacher: nn.Module = model.teacher[0]  # type: ignore[index, assignment]
    with torch.no_grad():
        soft = (teacher(images) / 40).softmax(dim=1)
    return F.cross_entropy(model(images) / 40, soft)


OWN: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "hot": (lambda: _dense(nn.ReLU), _large_logits),
    "distilled": (lambda: _dense(nn.ReLU), _distilled),
    "flat": (lambda: _dense(nn.Softplus), _flat),
    "winners-trained": (lambda: _dense(Winners), _on_noise),
    "binary": (lambda: _dense(Binary), _on_noise),
    "steep-trained": (lambda: _dense(Steep), _on_noise),
    "bits-trained": (lambda: _dense(nn.ReLU, Bits()), _on_noise),
}


def train_own(name: str, file: Path) -> nn.Module:
    """Train a network of `OWN` for some seconds, unless the file holds its weights; return it in eval mode."""
    make, loss = OWN[name]
    torch.manual_seed(0)
    model = make()
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval().requires_grad_(False)
    data = robustdup.load_data("builtin:digits", split="train")
    if loss is _distilled:
        model.teacher = [_fit(_dense(nn.ReLU), _large_logits, data.images, data.labels)]  # type: ignore[assignment]
    _fit(model, loss, data.images, data.labels)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model


def _fit(model: nn.Module, loss: Loss, images: Tensor, labels: Tensor, epochs: int = 60) -> nn.Module:
    optimiser = torch.optim.Adam(model.train().parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), 64):
            optimiser.zero_grad()
            loss(model, images[rows], labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model.eval().requires_grad_(False)
