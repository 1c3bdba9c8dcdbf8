"""Rechecking claimed adversarial examples: a configuration becomes model and data, and the referee judges."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustdup.config import EvalConfig, validate
from robustdup.data.dataset import ImageDataset, from_tensors
from robustdup.device import choose_device
from robustdup.errors import UserError
from robustdup.evaluation.context import Context, make_context
from robustdup.evaluation.referee import judge_images
from robustdup.evidence.bundle import EXAMPLES, check_manifest, refused, verifier_of
from robustdup.evidence.examples import has_pictures, read_examples, read_indices
from robustdup.evidence.match import match, nearest_index
from robustdup.evidence.recheck import recheck_bundle, recheck_examples
from robustdup.evidence.replay import survivors
from robustdup.evidence.signature import with_signature
from robustdup.evidence.verification import Signed, Verification
from robustdup.jobs.evaluation import engine_options, given_data, load_data, parse_threats, run_evaluation
from robustdup.jobs.models import fit_model
from robustdup.jobs.trust import check_trust, trust_networks, without_demands
from robustdup.models.adapt import adapted, order_of
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from robustdup.records import MANIFEST, UNION, EvaluationRecord, load_record
from robustdup.threat import ThreatModel
from robustdup.union import is_union

DATA_SETTINGS = {"data", "split", "data_config", "revision", "image_column", "label_column"}
# Settings of what a model is asked, besides the images.
ASKED = ("normalize", "mode", "class_names", "resize", "crop", "grey")


def is_bundle(place: Path) -> bool:
    """Tell a bundle from examples: a folder is one, unless it holds pictures and no manifest."""
    return place.is_dir() and ((place / MANIFEST).is_file() or not has_pictures(place))


def verify_bundle(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    trust: bool = False,
    again: float = 0.0,
    signer: str | None = None,
) -> Signed:
    """Recheck a bundle with the referee alone: hashes, then every example on a model and data that are loaded here, or given.

    A bundle of another kind of record is rechecked by the plugin that brings it.

    Args:
        folder: the bundle.
        changes: keys of EvalConfig that differ on this machine (data in another place, say).
        model: a model in memory, images (N, C, H, W) in [0, 1] -> logits (N, K), in place of the one that is named.
        images: (N, C, H, W), with a model in memory; None for those that the bundle names, where it has no examples.
        labels: true classes (N,) int64, with images.
        trust: whether code that the bundle names may run: a model in a file, say.
        again: share of the survivors, drawn at random, on which the stated attacks are run again; 0 for none.
        signer: who must have signed it: a public key of OpenSSH, or a file of them.

    Raises:
        UserError: where the bundle was changed, where it names code that the user did not, where norm or eps are others
            than its own, or where data or weights are not those that it speaks of.
    """
    started, own = time.perf_counter(), dict(changes or {})
    if (recheck := verifier_of(check_manifest(folder))) is not None:
        if again:
            raise UserError("No attack ran on this, so that --replay has none to run again.", code="bad-option")
        other: Signed = recheck(folder, own, trust=trust, model=model, images=images, labels=labels)
        return with_signature(other, folder, signer)
    record = load_record(folder)
    # What runs code is taken from the verifier alone: a stranger's bundle must not name files to load or allow pickles.
    settings = without_demands(record.config)
    config = validate(EvalConfig, {**settings, **own})
    if model is not None:
        if images is None or labels is None:
            raise UserError("Give the images with their labels too.", code="missing-argument")
        _check_threat(record, config, own)
        data = given_data(images, labels, config)
        context = _in_stated_order(_context(config, model, data), config, model, data, record.model.class_order)
    else:
        if images is not None or "python" in (config.model, config.data):
            raise UserError(
                "This bundle was made from objects in memory: name what to load with --model and --data, "
                "or call robustdup.verify(folder, model, images, labels).",
                code="bad-option",
            )
        _check_threat(record, config, own)
        check_trust(settings, origin="The bundle", own=own, trust=trust)
        if trust:
            trust_networks(own)
        registry = load_plugins(config.plugin)
        data = load_data(config, registry)
        model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
        context = _context(config, model, data)
    same_data = images is None and not own.keys() & DATA_SETTINGS
    verification = recheck_bundle(folder, context, data, same_data=same_data)
    verification = _with_settings(with_signature(verification, folder, signer), config, own)
    if again:
        verification = _attacked_again(folder, verification, config, model, data, again)
    return _timed(verification, started)


def _attacked_again(
    folder: Path, verification: Verification, config: EvalConfig, model: nn.Module, data: ImageDataset, share: float
) -> Verification:
    """Run the stated attacks on a share of the survivors, which nobody can foresee; one that breaks refuses the bundle."""
    if not 0 < share <= 1:
        raise UserError(f"--replay takes a share of the survivors above 0 and up to 1, got {share}.", code="bad-value")
    left = survivors(folder).nonzero()[:, 0].tolist()
    if not left or not verification.accepted or verification.randomized:
        why = (
            "no sample is left"
            if not left
            else "the model answers at random"
            if verification.randomized
            else "it is refused"
        )
        return verification.model_copy(update={"notes": [*verification.notes, f"No attack was run again: {why}."]})
    rows = sorted(random.SystemRandom().sample(left, math.ceil(share * len(left))))
    some = from_tensors(
        data.images[rows],
        data.labels[rows],
        class_names=data.class_names,
        index=data.index[rows],
        spec=data.spec,
        split=data.split,
    )
    plain = config.model_copy(
        update={"n": None, "sample": None, "out": None, "diagnostics": False, "save_images": False, "certify": False}
    )
    record = run_evaluation(plain, model=model, data=some).record
    broken = round(record.n * (record.clean_accuracy.value - record.robust_accuracy.value)) - record.n_undecided
    update: dict[str, Any] = {"n_replayed": len(rows), "n_replayed_broken": broken}
    if broken:
        problem = f"The stated attacks, run again here, break {broken} of {len(rows)} samples that the bundle says survived them."
        update |= {"accepted": False, "problems": [*verification.problems, problem]}
    return verification.model_copy(update=update)


def _check_threat(record: EvaluationRecord, config: EvalConfig, own: Mapping[str, Any]) -> None:
    """Raise UserError where the user named another norm or eps than that of the bundle: it speaks of its own alone."""
    if not {"norm", "eps"} & own.keys():
        return
    if record.threat.norm == UNION:
        raise UserError(
            f"The bundle speaks of the {record.threat.text}, and of nothing else. Leave out --norm and --eps.",
            code="other-threat",
        )
    stated = ThreatModel(record.threat.norm, record.threat.eps_text)
    norm, eps = own.get("norm", stated.norm), own.get("eps", stated.eps_text)
    asked = parse_threats(config.model_copy(update={"norm": norm, "eps": str(eps)}))[-1]
    if asked != stated:
        raise UserError(
            f"The bundle speaks of {stated}, and of nothing else; you asked for {asked}. Leave out --norm and --eps, or judge "
            f"its examples alone: robustdup verify {EXAMPLES} --model … --data … --norm {asked.norm} --eps {asked.eps_text}.",
            code="other-threat",
        )


def _in_stated_order(
    context: Context, config: EvalConfig, model: nn.Module, data: ImageDataset, order: list[int] | None
) -> Context:
    """Return the context in which outputs stand in the order that a bundle states: images in memory name no classes.

    Raises UserError where the model is not right more often in that order than in its own: who states it would have it fail.
    """
    if order is None or order_of(context.original.model) is not None:
        return context
    logits = context.original(data.images[:1].to(context.device))
    if sorted(order) != list(range(logits.shape[1])):
        raise refused("the order of outputs that it states is none.")
    stated = _context(config, model, data, order)
    images, labels = data.images.to(context.device), data.labels.to(context.device)
    n_right, n_own = (
        int((~judge_images(each.original, images, labels, seed=config.seed).is_adv).sum()) for each in (stated, context)
    )
    if n_right <= n_own:
        raise refused(
            f"it takes the model's outputs in the order {order}, in which it is right on {n_right} of {len(data)} samples; "
            f"as they come it is right on {n_own}."
        )
    return stated


def _with_settings(verification: Verification, config: EvalConfig, own: Mapping[str, Any]) -> Verification:
    """Say by which settings of the bundle, which the verifier did not give, the model is asked: what is proven is of these."""
    usual = validate(EvalConfig, {})
    said = [
        f"{name} = {getattr(config, name)}"
        for name in ASKED
        if name not in own and getattr(config, name) != getattr(usual, name)
    ]
    if not said:
        return verification
    note = f"The bundle has the model asked with {', '.join(said)}: what is proven is of the model with that."
    return verification.model_copy(update={"notes": [*verification.notes, note]})


def verify_examples(
    path: Path, config: EvalConfig, *, scale: str | None = None, indices: str | None = None
) -> Verification:
    """Judge adversarial examples from any tool, in the order of the samples that `config` names, or by their index.

    Args:
        path: a file of examples, or a folder of pictures.
        config: model, data and threat model.
        scale: what the pixels are in (255, cifar10, …); found out where it is clear if not given.
        indices: of which samples the examples are: "0,2,5", a file, or "nearest".

    Raises:
        UserError: where scale, length, order, shapes or labels do not fit the samples.
    """
    started = time.perf_counter()
    examples, threats = read_examples(path), parse_threats(config)
    if is_union(threats):
        raise UserError(
            "A file of examples is judged in one norm: write --norm and --eps, and verify once for each.",
            code="bad-option",
        )
    threat = threats[-1]
    registry = load_plugins(config.plugin)
    asked = config.n if "n" in config.model_fields_set else None  # the usual number of a first look is not asked for
    whole = asked is not None or config.sample is not None
    if indices is not None and indices != "nearest":
        examples = replace(examples, index=read_indices(indices, len(examples)))
    if config.sample is None:
        first = len(examples) if indices is None and examples.index is None else None
        config = config.model_copy(update={"n": asked or first})
    data = load_data(config, registry)
    if indices == "nearest":
        examples = replace(examples, index=nearest_index(examples, data))
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    matched = match(examples, data, threat, scale=scale, whole=whole)
    context = _context(config, model, data)
    return _timed(recheck_examples(context, matched, threat, draws=config.judge_draws), started)


def _context(config: EvalConfig, model: nn.Module, data: ImageDataset, order: list[int] | None = None) -> Context:
    """Return what the referee judges on; `order` is that of the model's outputs, where names do not say it."""
    device = choose_device(config.device)
    fitted = fit_model(model, data, config, device, search=False)
    adaptation = fitted.adaptation
    if order is not None and adaptation.order is None:
        adaptation = replace(adaptation, order=tuple(order))
    return make_context(adapted(model, adaptation), None, device, engine_options(config, device))


def _timed(verification: Verification, started: float) -> Verification:
    return verification.model_copy(update={"seconds": time.perf_counter() - started})
