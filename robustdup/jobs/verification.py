"""Rechecking claimed adversarial examples: the referee alone, no attack."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.config import EvalConfig, validate
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.bench import choose_device, make_bench
from robustdup.evidence.bundle import (
    EXAMPLES,
    Claims,
    Verification,
    check_manifest,
    read_claims,
    read_examples,
    recheck,
)
from robustdup.jobs.evaluation import given_data, load_data, parse_threats
from robustdup.models.load import fingerprint, load_model
from robustdup.plugins import load_plugins
from robustdup.records import EvaluationRecord, load_record
from robustdup.threat import ThreatModel


def verify_bundle(folder: Path, changes: Mapping[str, Any] | None = None) -> Verification:
    """Recheck a bundle with the referee alone: hashes, then every example on the model and data that are loaded here.

    `changes` are keys of EvalConfig that differ on this machine (data in another place, say). Raises UserError where the
    bundle was changed, or where data or weights are not those that it speaks of.
    """
    started = time.perf_counter()
    check_manifest(folder)
    record = load_record(folder)
    # What runs code is taken from the verifier alone: a stranger's bundle must not name files to load or allow pickles.
    own = {"out": None, "device": "auto", "plugin": [], "allow_pickle": False, **(changes or {})}
    config = validate(EvalConfig, {**record.config, **own})
    if "python" in (config.model, config.data):
        raise UserError(
            "This bundle was made from objects in memory: name what to load with --model and --data, "
            "or call robustdup.verify(folder, model, images, labels)."
        )
    registry = load_plugins(config.plugin)
    data = load_data(config, registry)
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    return _verify(folder, record, config, model, data, started)


def verify(
    bundle: str | Path, model: nn.Module, images: Tensor, labels: Tensor, *, device: str = "auto"
) -> Verification:
    """Recheck a bundle on a model and images in memory: images (N, C, H, W) in [0, 1], labels (N,) int64."""
    started = time.perf_counter()
    folder = Path(bundle)
    check_manifest(folder)
    record = load_record(folder)
    config = validate(EvalConfig, {**record.config, "out": None, "device": device})
    data = given_data(images, labels, config)
    return _verify(folder, record, config, model, data, started)


def _verify(
    folder: Path, record: EvaluationRecord, config: EvalConfig, model: nn.Module, data: ImageDataset, started: float
) -> Verification:
    bench = make_bench(config, model, None, choose_device(config.device))
    for what, stated, mine in (
        ("data", record.data.fingerprint, data.fingerprint),
        ("weights", record.model.fingerprint, fingerprint(bench.judged.model)),
    ):
        if stated != mine:
            raise UserError(
                f"The bundle is refused: the {what} here are not those of the bundle ({mine[:12]}, not {stated[:12]})."
            )
    adv, _, index = read_examples(folder / EXAMPLES)
    claims = read_claims(folder, record.threat.eps_text)
    if index is None or index.tolist() != data.index.tolist() or claims.index != data.index.tolist():
        raise UserError("The bundle is refused: its examples are not of the points that its record names.")
    if claims.hashes != list(data.hashes):
        raise UserError("The bundle is refused: the clean images are not those that its samples name.")
    if adv.shape != data.images.shape:
        raise UserError(
            f"The bundle is refused: its examples have shape {tuple(adv.shape)}, the images {tuple(data.images.shape)}."
        )
    threat = ThreatModel(record.threat.norm, record.threat.eps_text)
    found = recheck(
        bench.judged, data.images.to(bench.device), adv.to(bench.device), data.labels.to(bench.device), threat,
        claims=claims, draws=record.model.judge_draws, seed=config.seed + 1,
    )  # fmt: skip
    found.problems.extend(_misstated(record, found, claims, threat))
    return found.model_copy(update={"accepted": not found.problems, "seconds": time.perf_counter() - started})


def _misstated(record: EvaluationRecord, found: Verification, claims: Claims, threat: ThreatModel) -> list[str]:
    """Say which numbers of a record are not those that its samples and examples show."""
    random = record.model.randomized
    allowed = found.within_rounding / max(found.n, 1) + (0.05 if random else 1e-9)
    # The samples' clean outcomes were rechecked one by one; an expected accuracy comes from fresh draws.
    clean = found.clean_accuracy if random else sum(claims.clean_correct) / max(len(claims.clean_correct), 1)
    shown = (
        ("an eps of", record.threat.eps, threat.radius, 1e-12),
        ("a number of points of", record.n, found.n, 0),
        ("a number of undecided points of", record.n_undecided, found.n_undecided, 0),
        ("a clean accuracy of", record.clean_accuracy.value, clean, 0.05 if random else 1e-9),
        ("a robust accuracy of", record.robust_accuracy.value, found.robust_accuracy, allowed),
    )
    return [
        f"The record states {what} {stated:.6g}; the evidence shows {true:.6g}."
        for what, stated, true, room in shown
        if abs(stated - true) > room
    ]


def verify_examples(path: Path, config: EvalConfig) -> Verification:
    """Judge a file of adversarial examples from any tool, in the order of the points that `config` names.

    Labels or an index in the file must agree with the data. Raises UserError where shapes or labels do not fit.
    """
    started = time.perf_counter()
    adv, labels, index = read_examples(path)
    registry = load_plugins(config.plugin)
    if config.n is None and config.sample is None and index is None:
        config = config.model_copy(update={"n": len(adv)})
    data = load_data(config, registry)
    rows = slice(None)
    if index is not None:
        places = {number: row for row, number in enumerate(data.index.tolist())}
        missing = [number for number in index.tolist() if number not in places]
        if missing:
            raise UserError(
                f"The file holds an example of point {missing[0]}, which is not among the {len(places)} points."
            )
        rows = torch.tensor([places[number] for number in index.tolist()])  # type: ignore[assignment]
    images, truth = data.images[rows], data.labels[rows]
    if adv.shape != images.shape:
        raise UserError(f"The file holds examples of shape {tuple(adv.shape)}; the points have {tuple(images.shape)}.")
    if labels is not None and not torch.equal(labels, truth):
        raise UserError("The labels in the file are not those of the data. Is the order the same?")
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    bench = make_bench(config, model, None, choose_device(config.device))
    at = bench.device
    found = recheck(bench.judged, images.to(at), adv.to(at), truth.to(at), parse_threats(config)[-1], seed=config.seed)
    return found.model_copy(update={"seconds": time.perf_counter() - started})
