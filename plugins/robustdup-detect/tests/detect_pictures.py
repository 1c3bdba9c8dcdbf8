"""Pictures and datasets that tests of detection make, and what is found in them."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from robustdup_detect import run_detection
from robustdup_detect.options import DetectConfig
from robustdup_detect.record import load_pairs

from robustdup.config import validate

NAMES = ["a", "b", "c"]


def pictures(n, *, size=32, seed=0):
    """Pictures of a few soft shapes over a gradient, with texture: different from each other, like photographs."""
    random = torch.Generator().manual_seed(seed)
    parts = [
        F.interpolate(torch.rand(n, 3, cells, cells, generator=random), (size, size), mode="bicubic") * weight
        for cells, weight in ((2, 0.3), (4, 0.3), (8, 0.25), (16, 0.15))
    ]
    return (sum(parts) * 255).round().clamp(0, 255).to(torch.uint8)


def photos(n, seed=0):
    """Pictures of 96 pixels with corners and edges, such as SIFT finds."""
    rng = np.random.default_rng(seed)
    made = pictures(n, size=96, seed=seed).permute(0, 2, 3, 1).numpy().copy()
    for image in made:
        for _ in range(25):
            left, top = rng.integers(0, 88, 2)
            wide, high = rng.integers(4, 24, 2)
            image[top : top + high, left : left + wide] = rng.integers(0, 256, 3)
    return made


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image.permute(1, 2, 0).numpy())
    image.save(content, kind, **options)
    return {"bytes": content.getvalue(), "path": None}


def write(folder, *, split="train", images=(), labels=None):
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    labels = [0] * len(images) if labels is None else labels
    rows = datasets.Dataset.from_dict({"img": list(images), "label": labels}, features=features)
    rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def detect(data, folder, *, resume=False, to=None, **settings):
    config = validate(DetectConfig, {"data": data, "workers": 1, "shard": 20, **settings})
    return run_detection(config, Path(folder), resume=resume, to=to, command="robustdup data detect")


def found(record_folder):
    table = load_pairs(record_folder).to_pydict()
    return {(a, b, kind) for a, b, kind in zip(table["row_a"], table["row_b"], table["kind"], strict=True)}
