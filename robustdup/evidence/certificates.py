"""Certificates of a bundle are proven again by the checker, which has no torch: on the verifier's own model and images."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.certification.checker import proven_margin
from robustdup.certification.graph import read_network
from robustdup.certification.matrices import checker_steps
from robustdup.certification.region import region_of
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.certified import CERTIFICATES, Certified, load_certified
from robustdup.evidence.bundle import refused
from robustdup.evidence.replay import NAMED, Replay
from robustdup.records import EvaluationRecord
from robustdup.records.samples import CERTIFIED_MARGIN
from robustdup.threat import ThreatModel

ROOM = 1e-6  # share by which a stated margin may be above the proven one: BLAS libraries add in another order


def check_certificates(
    folder: Path,
    record: EvaluationRecord,
    model: nn.Module,
    data: ImageDataset,
    threat: ThreatModel | None,
    replayed: Replay,
) -> tuple[Tensor, list[str]]:
    """Prove every certificate of a bundle again.

    Args:
        folder: the bundle.
        record: its record.
        model: the verifier's own model.
        data: the verifier's own images, with labels.
        threat: the threat model of the result; None for a union of norms, which has no certificates.
        replayed: the rows of the bundle.

    Returns:
        Which samples (n,) bool are proven here, and what does not hold, in words.

    Raises:
        UserError: where the file of certificates is damaged, or the model cannot be bounded.
    """
    claimed, proven = replayed.certified, torch.zeros(len(data), dtype=torch.bool)
    path = folder / CERTIFICATES
    if not path.is_file():
        missing = bool(claimed.any()) or record.certification is not None
        return proven, [f"It claims certificates, and holds no {CERTIFICATES}."] if missing else []
    if threat is None:
        return proven, ["It claims certificates for a union of norms."]
    if record.certification is None:
        return proven, ["It holds certificates that its record does not speak of."]
    try:
        certified = load_certified(path)
    except UserError:
        raise refused(f"{CERTIFICATES} is damaged.") from None
    assert certified is not None  # nothing was asked of what it speaks
    rows = certified.position.tolist()
    if rows != claimed.nonzero()[:, 0].tolist():
        return proven, ["Its certificates are not of the samples that its rows call certified."]
    problems = []
    for place, (row, margin) in enumerate(zip(rows, _margins(certified, model, data, threat), strict=True)):
        stated = [float(certified.margin[place]), float(replayed.clean[row][CERTIFIED_MARGIN.name])]
        proven[row] = margin > 0
        if not margin > 0:
            problems.append(f"Sample {int(data.index[row])}: its certificate proves nothing.")
        elif max(stated) > margin * (1 + ROOM) or min(stated) <= 0 or stated[0] != stated[1]:
            problems.append(f"Sample {int(data.index[row])}: its certificate proves another margin than is stated.")
    return proven, problems[:NAMED]


def _margins(certified: Certified, model: nn.Module, data: ImageDataset, threat: ThreatModel) -> list[float]:
    """Return the margin that the checker proves of each certified sample."""
    rows = certified.position
    if not len(rows):
        return []
    network = copy.deepcopy(model).cpu().float().eval()
    operations = read_network(network, data.images[:4])
    sizes = {i: (len(rows), math.prod(part.shape)) for i, part in enumerate(operations) if part.kind == "rectifier"}
    if {number: tuple(slope.shape) for number, slope in certified.slopes.items()} != sizes:
        return [-math.inf] * len(rows)
    steps, region = checker_steps(operations), region_of(data.images[rows].float(), threat)
    return [
        proven_margin(
            steps, region.images[place].double().flatten().numpy(), int(data.labels[row]), norm=region.norm,
            radius=region.radius,
            slopes={number: slope[place].double().numpy() for number, slope in certified.slopes.items()},
            trees=certified.trees.get(row),
        )
        for place, row in enumerate(rows.tolist())
    ]  # fmt: skip
