"""The protocol of arXiv 2504.00638 as it was published, flaws included. Nothing else in robustdup uses this code.

Facts from the authors' notebooks, https://github.com/alireza1375/Duplication_CIFAR. What is kept on purpose:

- Standard arm: the percentage p means p // 10 further whole copies at equal epochs, so steps grow with it; one SGD object for
  all doses, so that momentum buffers carry over when the weights are drawn anew; test images are cropped and flipped too.
- Adversarial arm: pixels in [-1, 1]; ten steps of 0.01 clipped at 0.5, and then every value clamped to [0, 1], which turns
  every pixel darker than grey into grey; the clean test images are not clamped. r means r of the images added once.

Added are a seed, so that a run can be repeated, and two measurements without which the others mislead: test images without
augmentation, and test images that are clamped but not attacked. One switch repairs the clamp alone (`clamp = repaired`: to
[-1, 1], the range of the pixels), all else as published, so that what the clamp does can be told from what duplicates do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustdup.config import Config, DataOptions, validate
from robustdup.data.cache import load_pixels
from robustdup.data.selection import choose
from robustdup.data.sources import open_samples
from robustdup.device import choose_device
from robustdup.errors import UserError, unknown
from robustdup.plugins import load_plugins
from robustdup.records import now
from robustdup_study.cell_record import CellOrder, CellResult, Measurement, telling
from robustdup_study.grid import Cell, Grid, PlannedRun, combinations, hash_of
from robustdup_study.recipe import StudyConfig, label, settings

SEMANTICS = 1
BATCH = 128
EVALUATION_ROWS = 1000
ATTACK_STEPS, ATTACK_STEP, ATTACK_CLIP = 10, 0.01, 0.5
LAYOUT = torch.channels_last  # of images and weights: the same arithmetic, in less time
GREY, BLACK = 0.0, -1.0  # of pixels in [-1, 1]
PERCENTS = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


class PaperConfig(Config):
    """One run of the published protocol."""

    arm: Literal["standard", "adversarial"] = Field("standard", description="standard or adversarial training.")
    percents: list[int] = Field(default_factory=lambda: list(PERCENTS), description="Doses, run in this order.")
    epochs: int = Field(30, description="Epochs at every dose.", ge=1)
    data: str = Field("uoft-cs/cifar10", description="Data: a Hub dataset id, a local folder, builtin:digits.")
    split: str = Field("train", description="Split to train on.")
    test_split: str = Field("test", description="Split to test on.")
    n: int | None = Field(None, description="Train on the first N images.", ge=1)
    test_n: int | None = Field(None, description="Test on the first N images.", ge=1)
    seed: int = Field(0, description="Seed; the published runs have none.", ge=0)
    clamp: Literal["published", "repaired"] = Field(
        "published", description="What the attack clamps to: [0, 1] as published, or [-1, 1], the range of the pixels."
    )
    measure_training: bool = Field(
        True, description="Measure accuracies on the training sets too, as published: most of the time of a short run."
    )


def paper_grid(config: StudyConfig) -> Grid:
    """Return the cells of a recipe for this protocol: all doses of the standard arm are one cell, as momentum carries over.

    Factors are `arm`, `percent` and any setting of `PaperConfig`. Raises UserError.
    """
    from robustdup_study.cell import data_fingerprint

    fields = set(PaperConfig.model_fields) - {"seed", "percents"} | {"percent"}
    for name, levels in config.factors.items():
        if name not in fields and not all(isinstance(level, dict) for level in levels):
            raise unknown("factor of the published protocol:", name, fields)
    for key in config.base:
        if key not in fields:
            raise unknown("key of base:", key, fields)
    registry, grid, prints = load_plugins(config.plugin), Grid(), {}
    for seed, (factors, content) in itertools.product(config.seed_list, list(_contents(config))):
        paper = validate(PaperConfig, {**content, "seed": seed})
        if any(not 0 <= percent <= 100 for percent in paper.percents):
            raise UserError(f"percent goes from 0 to 100, got {paper.percents}.", code="bad-value")
        full = paper.model_dump(mode="json")
        place = (paper.data, paper.split, paper.test_split)
        if place not in prints:
            prints[place] = data_fingerprint(dict(zip(("data", "split", "test_split"), place, strict=True)), registry)
        usual = {"clamp": "published", "measure_training": True}  # then left out, as before there was a choice
        plain = {
            key: value
            for key, value in full.items()
            if key not in ("data", "split", "test_split") and usual.get(key, ...) != value
        }
        canonical = {"protocol": "as-published", "semantics": SEMANTICS, "data": prints[place], "paper": plain}
        key = hash_of(canonical)
        grid.cells.setdefault(key, Cell(key, full, canonical))
        grid.runs.append(PlannedRun(factors, seed, key))
    return grid


def _contents(config: StudyConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield factors and settings of each cell: the percentages of the standard arm gathered in one."""
    gathered: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for combination in combinations(config):
        factors = {name: label(level) for name, level in combination.items()}
        content = {**config.base}
        for name, level in combination.items():
            content.update(settings(level) if isinstance(level, dict) else {name: level})
        percent = content.pop("percent", None)
        percents = [0] if percent is None else [int(percent)]
        if content.get("arm", "standard") == "standard":
            factors.pop("percent", None)
            before = gathered.get(repr(factors))
            percents = [*(before[1]["percents"] if before else []), *percents]
        gathered[repr(factors)] = (factors, {**content, "percents": sorted(set(percents))})
    yield from gathered.values()


def run_cell(order: CellOrder) -> CellResult:
    """Run the doses of one arm at one seed."""
    keys = set(PaperConfig.model_fields)
    config = validate(PaperConfig, {key: value for key, value in order.settings.items() if key in keys})
    before = torch.get_num_threads()
    torch.set_num_threads(order.threads or before)
    try:
        measured = run_arm(config, choose_device(order.device), telling(order.key))
    finally:
        torch.set_num_threads(before)
    return CellResult(key=order.key, created=now(), status="complete", measurements=measured, config=order.settings)


def run_arm(
    config: PaperConfig, device: torch.device, progress: Callable[[int, int], None] = lambda step, n_steps: None
) -> list[Measurement]:
    """Train at each dose and return what the notebooks measure, a `Measurement` for each with its `percent`.

    `progress` is told the number of steps done and that of all steps at all doses.
    """
    train, labels, classes = _load(config, config.split, config.n, device)
    test, test_labels, _ = _load(config, config.test_split, config.test_n, device)
    sets = Sets(train, labels, test, test_labels)
    course = _Course(sum(steps_at(config, len(labels), percent) for percent in config.percents), progress)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(config.seed)
        run = _standard_arm if config.arm == "standard" else _adversarial_arm
        return list(run(config, sets, classes, device, course))


def steps_at(config: PaperConfig, n: int, percent: int) -> int:
    """Return the number of steps at a dose of `n` images: whole copies of everything, or so many images once more."""
    entries = n * (1 + percent // 10) if config.arm == "standard" else n + percent * n // 100
    return config.epochs * -(-entries // BATCH)


class _Course:
    """Counts the steps of an arm and tells them."""

    def __init__(self, n_steps: int, progress: Callable[[int, int], None]) -> None:
        self.n_steps, self.done, self._progress = n_steps, 0, progress

    def step(self) -> None:
        self.done += 1
        self._progress(self.done, self.n_steps)


class Sets:
    """Images uint8 or float (N, C, H, W) and labels (N,) of the two splits, on the device."""

    def __init__(self, train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
        self.train, self.labels, self.test, self.test_labels = train, labels, test, test_labels


def _load(config: PaperConfig, split: str, n: int | None, device: torch.device) -> tuple[Tensor, Tensor, int]:
    rows = open_samples(config.data, DataOptions(split=split), load_plugins())
    index, _, _ = choose(rows, n=n, place=f"{config.data} ({split})")
    pixels, labels = load_pixels(rows, index.tolist())
    return pixels.to(device), labels.to(device), len(rows.class_names) or int(labels.max()) + 1


def network(arm: str, channels: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    """Return the network of an arm, for inputs in [-1, 1]: 16 and 32 filters with dropout, or 32 and 64 filters."""
    filters, hidden = (16, 128) if arm == "standard" else (32, 256)
    places = (size[0] // 4) * (size[1] // 4)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(filters, 2 * filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2 * filters * places, hidden), nn.ReLU(),
    ]  # fmt: skip
    if arm == "standard":
        layers.append(nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.Linear(hidden, classes)).to(memory_format=LAYOUT)


def scaled(pixels: Tensor) -> Tensor:
    """Return pixels, bytes or floats in [0, 1], as floats in [-1, 1]: (x - 0.5) / 0.5."""
    unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (unit - 0.5) / 0.5


def crop_and_flip(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [-1, 1], each cropped at random after 4 pixels of black padding, and flipped by half."""
    n, channels, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4), value=-1.0)
    top, left = (torch.randint(0, 9, (n, 1), device=images.device) for _ in range(2))
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    flip = torch.rand(n, 1, device=images.device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    sample = torch.arange(n, device=images.device)
    return padded[
        sample[:, None, None, None], torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None], columns[:, None, None, :],
    ]  # fmt: skip


def attack(model: nn.Module, images: Tensor, labels: Tensor, darkest: float = GREY) -> Tensor:
    """Return the published attack's images for images in [-1, 1]: its last line clamps to [0, 1], that is up to grey.

    `darkest` is the lower end of that clamp: GREY as published, BLACK where it is repaired.
    """
    adv_images = images.clone()
    for _ in range(ATTACK_STEPS):
        adv_images = adv_images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adv_images), labels), adv_images)
        moved = adv_images.detach() + ATTACK_STEP * gradient.sign()
        adv_images = (images + (moved - images).clamp(-ATTACK_CLIP, ATTACK_CLIP)).clamp(darkest, 1)
    return adv_images.detach()


def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, sets: Sets, entries: Tensor, course: _Course,
    *, darkest: float | None,
) -> None:  # fmt: skip
    """Train for an epoch: on adversarial images clamped at `darkest`, or where that is None on augmented ones."""
    model.train()
    for rows in torch.split(entries[torch.randperm(len(entries)).to(entries.device)], BATCH):
        images, labels = scaled(sets.train[rows]).contiguous(memory_format=LAYOUT), sets.labels[rows]
        images = crop_and_flip(images) if darkest is None else attack(model, images, labels, darkest)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        course.step()


def _accuracy(
    model: nn.Module, pixels: Tensor, labels: Tensor, how: Literal["plain", "augmented", "clamped", "attacked"],
    entries: Tensor | None = None, darkest: float = GREY,
) -> float:  # fmt: skip
    """Return the accuracy on all images, or on these entries (an image may be there several times)."""
    model.eval()
    right, rows = 0, torch.arange(len(labels), device=labels.device) if entries is None else entries
    for part in torch.split(rows, EVALUATION_ROWS):
        images, truth = scaled(pixels[part]).contiguous(memory_format=LAYOUT), labels[part]
        if how == "augmented":
            images = crop_and_flip(images)
        elif how == "clamped":
            images = images.clamp(0, 1)
        elif how == "attacked":
            images = attack(model, images, truth, darkest)
        with torch.no_grad():
            right += int((model(images).argmax(dim=1) == truth).sum())
    return right / len(rows)


def _standard_arm(
    config: PaperConfig, sets: Sets, classes: int, device: torch.device, course: _Course
) -> Iterator[Measurement]:
    model = network("standard", sets.train.shape[1], (sets.train.shape[2], sets.train.shape[3]), classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)  # once: momentum stays
    for percent in config.percents:
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        entries = torch.arange(len(sets.labels), device=device).repeat(1 + percent // 10)
        for _ in range(config.epochs):
            _epoch(model, optimizer, sets, entries, course, darkest=None)
        metrics: dict[str, float | None] = {
            "test_clean_acc": _accuracy(model, sets.test, sets.test_labels, "augmented"),
            "clean_accuracy_plain_test": _accuracy(model, sets.test, sets.test_labels, "plain"),
            "steps": steps_at(config, len(sets.labels), percent),
            "unique_samples": len(sets.labels),
        }
        if config.measure_training:
            metrics["train_clean_acc"] = _accuracy(model, sets.train, sets.labels, "augmented", entries)
            metrics["original_clean_acc"] = _accuracy(model, sets.train, sets.labels, "augmented")
        yield Measurement(factors={"percent": percent}, metrics=metrics)


def _adversarial_arm(
    config: PaperConfig, sets: Sets, classes: int, device: torch.device, course: _Course
) -> Iterator[Measurement]:
    darkest = GREY if config.clamp == "published" else BLACK
    for percent in config.percents:
        size = (sets.train.shape[2], sets.train.shape[3])
        model = network("adversarial", sets.train.shape[1], size, classes).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        n = len(sets.labels)
        extra = torch.randperm(n)[: percent * n // 100]
        entries = torch.cat([torch.arange(n), extra]).to(device)
        for _ in range(config.epochs):
            _epoch(model, optimizer, sets, entries, course, darkest=darkest)
        metrics: dict[str, float | None] = {"steps": steps_at(config, n, percent), "unique_samples": n}
        for name, pixels, labels, rows in (
            ("test", sets.test, sets.test_labels, None),
            ("train", sets.train, sets.labels, entries),
            ("original", sets.train, sets.labels, None),
        )[: 3 if config.measure_training else 1]:
            metrics[f"{name}_clean_acc"] = _accuracy(model, pixels, labels, "plain", rows)
            metrics[f"{name}_adv_acc"] = _accuracy(model, pixels, labels, "attacked", rows, darkest)
        metrics["clamped_accuracy"] = _accuracy(model, sets.test, sets.test_labels, "clamped")
        yield Measurement(factors={"percent": percent}, metrics=metrics)
