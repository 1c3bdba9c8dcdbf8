"""Transfer between runs: each run's adversarial images are shown to the models of the others; no attack runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustdup.config import EvalConfig, validate
from robustdup.device import choose_device
from robustdup.errors import UserError
from robustdup.evaluation.context import Context, make_context
from robustdup.evaluation.engine import ADVERSARIAL_FILE
from robustdup.evaluation.referee import judge_images
from robustdup.jobs.evaluation import engine_options
from robustdup.jobs.trust import check_trust
from robustdup.leaderboard.compare import SampleOutcomes, in_both, sample_outcomes
from robustdup.models.adapt import Adaptation, adapted
from robustdup.models.load import fingerprint, load_model
from robustdup.models.normalisation import parse_normalisation
from robustdup.plugins import load_plugins
from robustdup.records import RECORD_FILE, EvaluationRecord, find_record, load_record, load_samples
from robustdup.records.origin import file_made_here

JUDGED_AT_ONCE = 512  # images


@dataclass(frozen=True)
class _Saved:
    """A run as it lies on the disk: its record, what became of its samples, and its adversarial images by index."""

    record: EvaluationRecord
    outcomes: SampleOutcomes
    images: Tensor
    places: Mapping[int, int]


def transfer(runs: Sequence[str], *, trust: bool = False) -> list[list[float | None]]:
    """Return how the adversarial images of each run do on the models of all: a row a run, a column a model.

    Each cell is the share of the samples that the row's attacks broke, and that the column's model classifies right on the
    clean image, on which the adversarial image misleads the column's model; None where there are none.

    Args:
        runs: run folders that kept their adversarial images.
        trust: whether code that a run of somebody else names may run.

    Raises:
        UserError: a run without images, a model that cannot be loaded anew or has other weights now.
    """
    saved = [_read(run) for run in runs]
    contexts = [_context(run, part.record, trust=trust) for run, part in zip(runs, saved, strict=True)]
    return [
        [_share(source, target, context) for target, context in zip(saved, contexts, strict=True)] for source in saved
    ]


def _read(run: str) -> _Saved:
    folder = find_record(run).parent
    record = load_record(run)
    try:
        tensors = load_file(folder / ADVERSARIAL_FILE)
        images, index = tensors["images"], tensors["index"].tolist()
    except (OSError, SafetensorError, KeyError):
        raise UserError(
            f"{run!r} keeps no adversarial images, which transfer is about (eval --no-save-images).", code="no-images"
        ) from None
    outcomes = sample_outcomes(record, load_samples(folder))
    return _Saved(record, outcomes, images, {number: place for place, number in enumerate(index)})


def _context(run: str, record: EvaluationRecord, *, trust: bool) -> Context:
    """Return what the model of a run is judged on, loaded anew. Raises UserError where it is not the one that was judged."""
    settings: dict[str, Any] = dict(record.config)
    if settings.get("model", "python") == "python":
        raise UserError(f"The model of {run!r} was an object in memory: it cannot be loaded anew.", code="bad-option")
    if not file_made_here(find_record(run).parent / RECORD_FILE):
        check_trust(settings, origin=f"The run in {run!r}", trust=trust, only=("model", "allow_pickle", "plugin"))
    config = validate(EvalConfig, {**settings, "device": "auto", "workers": None, "out": None})
    model = load_model(config.model, registry=load_plugins(config.plugin), allow_pickle=config.allow_pickle)
    order = None if record.model.class_order is None else tuple(record.model.class_order)
    fitted = adapted(model, Adaptation(normalise=parse_normalisation(config.normalize), order=order))
    device = choose_device(config.device)
    context = make_context(fitted, None, device, engine_options(config, device))
    if fingerprint(context.original.model) != record.model.fingerprint:
        raise UserError(f"The model of {run!r} has other weights now than the run had.", code="other-weights")
    context.draws = record.model.judge_draws if record.model.randomized else 1
    return context


def _share(source: _Saved, target: _Saved, context: Context) -> float | None:
    """Return the share of the source's adversarial images that mislead the target, among those that could."""
    in_source, in_target = in_both(source.outcomes, target.outcomes)
    if (source.outcomes.image[in_source] != target.outcomes.image[in_target]).any():
        raise UserError(
            f"The runs {source.record.run_id} and {target.record.run_id} have other images on samples of the same index.",
            code="not-comparable",
        )
    broken = source.outcomes.clean[in_source] & (source.outcomes.robust[in_source] == 0)
    rows = in_source[broken & target.outcomes.clean[in_target]]
    if not len(rows):
        return None
    places = torch.tensor([source.places[int(source.outcomes.index[row])] for row in rows])
    labels = torch.from_numpy(source.outcomes.label[rows].astype(np.int64))
    wrong = 0.0
    for part, true_labels in zip(torch.split(places, JUDGED_AT_ONCE), torch.split(labels, JUDGED_AT_ONCE), strict=True):
        images, true_labels = source.images[part].to(context.device), true_labels.to(context.device)
        answers = judge_images(context.original, images, true_labels, draws=context.draws, seed=context.seed + 1)
        wrong += float(answers.is_adv.sum())
    return wrong / len(rows)
