"""A small smooth network that learns for seconds to answer as a model does around some images.

For models that no gradient passes through: only their answers are asked for. The images are those of the samples, mixed
with each other and changed within a few radii of the threat model (as in https://arxiv.org/abs/1602.02697).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.rng import seed_torch
from robustdup.threat import ThreatModel

BATCH = 64
SIDE = 32  # pixels that the student looks at in each direction, at most
SHARPNESS = 2.0  # of the probabilities that it learns, in standard deviations of the logits


class Student(nn.Module):
    """Three smooth convolutions and a linear layer: images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, shape: torch.Size, classes: int) -> None:
        super().__init__()
        channels, side = shape[0], max(shape[1:])
        self.shrink = max(1, -(-side // SIDE))
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64 * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits."""
        if self.shrink > 1:
            images = F.avg_pool2d(images, self.shrink, ceil_mode=True)
        return self.head(self.features(2 * images - 1))  # type: ignore[no-any-return]


def fit_student(
    model: nn.Module, images: Tensor, threat: ThreatModel, *, steps: int, seed: int
) -> tuple[Student, float]:
    """Return a student of `model`, and the share of the images on which it gives the model's answer.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K); asked for 64 answers a step.
        images: the images (N, C, H, W) around which it learns.
        threat: how far around.
        steps: of Adam.
        seed: of its weights and of what it looks at.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        answers = model(images[:BATCH])
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)
        student = Student(images.shape[1:], answers.shape[1]).to(images.device)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(steps, 2))
    for _ in range(steps):
        part = _around(images, threat, generator)
        with torch.no_grad():
            logits = model(part)
            spread = logits.std(dim=1, keepdim=True).clamp(min=1e-12)
            target = (SHARPNESS * logits / spread).softmax(dim=1)
        with torch.enable_grad():
            loss = F.cross_entropy(student(part), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    student.eval().requires_grad_(False)
    with torch.no_grad():
        same = student(images[:BATCH]).argmax(dim=1) == answers.argmax(dim=1)
    return student, float(same.double().mean())


def _around(images: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Draw a batch around the images: mixtures of two, changed by up to four radii of noise."""
    first, second = torch.randint(len(images), (2, BATCH), generator=generator)
    share = torch.rand(BATCH, 1, 1, 1, generator=generator).clamp(min=0.5)
    share[: BATCH // 2] = 1.0
    noise = torch.rand(BATCH, *images.shape[1:], generator=generator) * 2 - 1
    signs = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
    noise = torch.where(signs, noise.sign(), noise).to(images)
    pixels = images[0].numel()
    size = {"Linf": threat.radius, "L2": threat.radius / pixels**0.5, "L1": 4 * threat.radius / pixels}[threat.norm]
    reach = 4 * size * torch.rand(BATCH, 1, 1, 1, generator=generator).to(images)
    share = share.to(images)
    mixed = share * images[first.to(images.device)] + (1 - share) * images[second.to(images.device)]
    batch: Tensor = (mixed + reach * noise).clamp(0, 1)
    return batch
