"""How the two built-in digits classifiers were trained: `python -m robustdup.models.digits_recipe [--out FOLDER]`.

Both are a `SmallCNN` trained on the first 1,297 images of scikit-learn's digits; the last 500 are never seen. The
robust one is trained on PGD examples (https://arxiv.org/abs/1706.06083) in Linf with eps = 0.15, on 8x8 images in [0, 1].

Seen on the 500 test images, clean and under 40 steps of PGD from one random start, at Linf eps of 8/255, 0.1 and 0.15:
digits-standard 93.4% clean, then 86.6%, 47.6%, 15.4%; digits-robust 96.6% clean, then 94.8%, 84.8%, 68.4%.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.models.small import SmallCNN

TRAIN_ROWS = 1297
TRAIN_EPS = {"digits-standard": 0.0, "digits-robust": 0.15}
MEAN, STD = (0.3059,), (0.3755,)  # of the training images


def digits_classifier() -> SmallCNN:
    """Return the untrained network of the built-in digits classifiers: images (N, 1, 8, 8) -> logits (N, 10)."""
    return SmallCNN(channels=1, size=8, classes=10, width=16, mean=MEAN, std=STD)


def training_digits() -> tuple[Tensor, Tensor]:
    """Return the training images (1297, 1, 8, 8) in [0, 1] and labels (1297,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images[:TRAIN_ROWS]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target[:TRAIN_ROWS]).long()


def pgd_examples(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, steps: int, generator: torch.Generator
) -> Tensor:
    """Return Linf PGD examples of the cross-entropy from a random start, within `eps` of `images` and in [0, 1]."""
    start = torch.empty_like(images).uniform_(-eps, eps, generator=generator)
    adv_images = (images + start).clamp(0, 1)
    for _ in range(steps):
        adv_images.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(adv_images), labels, reduction="sum"), adv_images)
        adv_images = adv_images.detach() + 2.5 * eps / steps * grad.sign()
        adv_images = torch.minimum(torch.maximum(adv_images, images - eps), images + eps).clamp(0, 1)
    return adv_images


def train(eps: float, *, epochs: int = 60, batch_size: int = 64, steps: int = 7, seed: int = 0) -> SmallCNN:
    """Return a trained digits classifier in eval mode; eps = 0 is standard training. Deterministic for a seed."""
    images, labels = training_digits()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_classifier()
    updates = epochs * -(-len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=updates)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in [order[start : start + batch_size] for start in range(0, len(order), batch_size)]:
            batch = images[rows]
            if eps > 0:
                batch = pgd_examples(model, batch, labels[rows], eps, steps=steps, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train both classifiers and write NAME.safetensors into the folder."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="where to write")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order
    for name, eps in TRAIN_EPS.items():
        save_file(train(eps).state_dict(), folder / f"{name}.safetensors")
        print(f"{folder / name}.safetensors")


if __name__ == "__main__":
    main()
