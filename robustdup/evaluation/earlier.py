"""Adversarial images of an earlier run as the first stage of another: the referee judges them, one pass a sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustdup.data.dataset import image_hashes
from robustdup.errors import UserError
from robustdup.evaluation.calls import PlannedStage
from robustdup.plugins import AttackSpec
from robustdup.records import load_record, load_samples
from robustdup.records.columns import numbers, texts
from robustdup.rng import SampleRng
from robustdup.threat import NORMS, ThreatModel

NAME = "replay"
EXAMPLES = "adversarial.safetensors"


@dataclass(frozen=True)
class EarlierRun:
    """Adversarial images of a run folder or bundle: `rows` are their places in the file, by the hash of the clean image."""

    path: Path
    rows: dict[str, int]
    shape: tuple[int, ...]
    title: str

    def replaced(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) with the adversarial one of the earlier run in the place of each that it knows."""
        adv_images = images.detach().cpu().clone()
        try:
            with safe_open(self.path, framework="pt") as file:
                part = file.get_slice("images")
                for place, digest in enumerate(image_hashes(images)):
                    row = self.rows.get(digest)
                    if row is not None:
                        image = part[row : row + 1][0]
                        adv_images[place] = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        except (SafetensorError, OSError, KeyError) as error:
            raise _unusable(str(self.path), f"its images cannot be read ({error})") from None
        return adv_images.to(images)


def read_earlier(place: str) -> EarlierRun:
    """Read what a run folder or bundle holds, but for the images. Raises UserError (unusable-replay), with the reason."""
    folder = Path(place)
    try:
        record, table = load_record(folder), load_samples(folder)
    except UserError as error:
        raise _unusable(place, str(error)) from None
    path = next((path for path in (folder / EXAMPLES, folder / "images" / EXAMPLES) if path.is_file()), None)
    if path is None:
        raise _unusable(place, "it keeps no adversarial images (eval --no-save-images)")
    try:
        with safe_open(path, framework="pt") as file:
            shape = tuple(file.get_slice("images").get_shape())
        is_clean = texts(table, "attack").where(lambda name: name == "clean")
        hashes, positions = texts(table, "image_sha256").at(is_clean.nonzero()[0]), numbers(table, "position")[is_clean]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise _unusable(place, f"it is damaged ({error})") from None
    rows = {str(digest): int(row) for digest, row in zip(hashes, positions, strict=True)}
    if len(shape) != 4 or any(not 0 <= row < shape[0] for row in rows.values()):
        raise _unusable(place, f"its images, of shape {shape}, are not those of its {len(positions)} samples")
    return EarlierRun(
        path, rows, shape[1:], f"{record.run_id} ({record.model.spec}, {record.threat.norm} {record.threat.eps_text})"
    )


def first_stage(run: EarlierRun) -> PlannedStage:
    """Return the stage that tries the adversarial images of an earlier run, put into the ball where it is smaller."""

    def replay(model: Any, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng) -> Tensor:
        adv_images = run.replaced(images)
        outside = (adv_images != images).flatten(1).any(1)
        return torch.where(outside.view(-1, 1, 1, 1), threat.project(images, adv_images), images)

    spec = AttackSpec(
        name=NAME, function=replay, norms=NORMS, knowledge="transfer", batching="pool", cost=(0.0, 0.0),
        source="native", undemonstrated="It tries what an earlier run found, and looks for nothing.",
        description="The adversarial images of an earlier run.",
    )  # fmt: skip
    return PlannedStage(spec, {}, {})


def overlap(run: EarlierRun, hashes: list[str], shape: tuple[int, ...]) -> str:
    """Say of how many samples the earlier run has an image. Raises UserError (unusable-replay) where of none."""
    known = sum(digest in run.rows for digest in hashes)
    if not known or run.shape != shape:
        raise _unusable(
            str(run.path.parent), f"none of its {len(run.rows)} clean images is among the {len(hashes)} of this run"
        )
    return f"Adversarial images of an earlier run, {run.title}, are tried first: it has one for {known} of {len(hashes)} samples."


def _unusable(place: str, reason: str) -> UserError:
    return UserError(f"--replay {place!r} cannot be used: {reason.rstrip('.')}.", code="unusable-replay")
