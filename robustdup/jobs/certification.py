"""Certificates before an evaluation: what cannot be certified is refused early, and a run that goes on proves nothing twice."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from robustdup.certification.graph import read_network
from robustdup.certification.proofs import Certificates, certify_samples, other_precisions, probe
from robustdup.config import EvalConfig, parse_attacks
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.certified import CERTIFICATES, Certified, load_certified, save_certified
from robustdup.models.load import count_parameters, fingerprint
from robustdup.threat import ThreatModel

NORMS = ("Linf", "L2", "L1")
COSTLY = "autoattack"  # thousands of passes for a sample that it does not break
MANY = 256  # samples from which certificates are tried unasked
LARGE = 5_000_000  # parameters of a network that is not looked at
PROBE = 16  # samples that say whether they pay
SHARE = 0.5  # of these, the share that CROWN has to prove


def certify_first(
    config: EvalConfig, model: nn.Module, data: ImageDataset, threats: Sequence[ThreatModel], state: Path | None
) -> Certified | None:
    """Certify the samples of an evaluation at its largest eps, or take what is saved of a run that goes on.

    Args:
        config: the evaluation, with its limit of time. Where it leaves `certify` open, a few samples, spread over all, say
            whether it pays: counts decide, not a clock.
        model: the model that is judged.
        data: the images, with labels.
        threats: the threat models, smallest first.
        state: folder of the run's state; None keeps nothing.

    Returns:
        The certificates; None where nobody asked and it does not pay.

    Raises:
        UserError: not-certifiable for what cannot be certified at all; not-boundable, with the layer.
    """
    asked, threat = config.certify is not None, threats[-1]
    if config.certify is False or not (asked or _may_pay(config, model, data)):
        return None
    about = {
        "data": data.fingerprint, "weights": fingerprint(model), "threat": str(threat),
        "limit": str(config.certify_seconds), "branch": str(config.certify_branch),
    }  # fmt: skip
    path = None if state is None else state / CERTIFICATES
    if path is not None and path.is_file():
        with contextlib.suppress(UserError):  # damaged ones are proven again
            saved = load_certified(path, about)
            if saved is not None:
                return replace(saved, asked=asked)
    try:
        check_certifiable(config, model, threat)
        network = _copied(model)
        operations = read_network(network, data.images[:4].float())
        chosen = torch.arange(PROBE) * len(data) // PROBE
        if not asked and probe(operations, data.images[chosen].float(), data.labels[chosen], threat) < SHARE:
            return None
    except Exception:  # whatever keeps a model from being bounded, where nobody asked for it
        if asked:
            raise
        return None
    certificates = certify_samples(
        network, data.images.float(), data.labels, threat, seconds=config.certify_seconds,
        branch_seconds=config.certify_branch, operations=operations,
    )  # fmt: skip
    certified = _kept(certificates)
    if not asked:
        remark = f"Tried unasked, since a probe of {PROBE} samples promised much; --no-certify leaves it out."
        certified = replace(certified, asked=False, notes=(remark, *certified.notes))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_certified(path, certified, about)
    return certified


def _may_pay(config: EvalConfig, model: nn.Module, data: ImageDataset) -> bool:
    """Say whether an evaluation is one whose samples cost so much that certificates are worth a probe."""
    attacks = [name for name, _ in parse_attacks(config.attacks)]
    return COSTLY in attacks and len(data) >= MANY and count_parameters(model) <= LARGE


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu().float().eval()
    except Exception as error:
        raise _refused(f"the model cannot be copied ({type(error).__name__})") from error


def _kept(certificates: Certificates) -> Certified:
    """Return what is kept of certificates: those that were accepted, row by row."""
    position = certificates.certified.nonzero().squeeze(1)
    kept = [certificates.slopes[row] for row in position.tolist()]
    slopes = {
        number: torch.stack([torch.from_numpy(parts[number]) for parts in kept]) for number in (kept[0] if kept else ())
    }
    methods = Counter(certificates.methods[row] for row in position.tolist())
    return Certified(
        position,
        certificates.margins[position],
        slopes,
        dict(methods),
        certificates.seconds,
        tuple(certificates.notes),
        certificates.trees,
    )


def check_certifiable(config: EvalConfig, model: nn.Module, threat: ThreatModel) -> None:
    """Raise UserError (not-certifiable) for what cannot be certified, in words and before anything runs."""
    if config.threat is not None:
        raise _refused("certificates are for one ball: write --norm and --eps in place of --threat")
    if threat.norm not in NORMS:
        raise _refused(f"bounds are for {', '.join(NORMS)}, not for {threat.norm}")
    if config.individual or config.min_distance:
        name = "individual" if config.individual else "min-distance"
        raise _refused(f"--{name} runs attacks on all samples, and certified ones are not attacked")
    if config.mode != "eval":
        raise _refused("--mode as-is may leave layers in training mode, whose answers depend on the batch")
    if kinds := other_precisions(model):
        raise _refused(f"the weights are {kinds}, and rounding is counted for float32 alone")


def _refused(reason: str) -> UserError:
    return UserError(f"--certify cannot be used here: {reason}. Leave it out.", code="not-certifiable")
