"""The conformance test: does an attack keep the contract, and does it beat noise on a network that it can break?

The attack is run on a few images: as it is, on a few of them again (twice), and with a quarter of eps.
"""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Passes
from robustdup.errors import unknown
from robustdup.plugins import AttackSpec, Registry, load_plugins
from robustdup.plugins.specs import spec_of
from robustdup.rng import SampleRng
from robustdup.testing.report import ConformanceReport, Finding
from robustdup.testing.trial import SAMPLES, RgbDigits, against_noise, conformance_samples
from robustdup.threat import NORMS, ThreatModel

# Noise of this size breaks next to nothing, PGD nearly everything.
EPS = {"Linf": "0.15", "L2": "2.5", "L1": "30", "L0": "60", "L0-pixels": "40"}
LARGER = (2, 4)
AGAIN = (7, 3, 12, 0, 9)  # rows of the second and third run, in another order and company


def check_attack(
    attack: AttackSpec | str | Callable[..., Any],
    *,
    norm: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    registry: Registry | None = None,
) -> ConformanceReport:
    """Run the conformance test on one attack in one of its norms; a second for a fast attack.

    Args:
        attack: a function marked with `@robustdup.register_attack`, the name of a registered attack, or its spec.
        norm: one of the attack's norms; the first if not given.
        options: options of the attack; they go over those of a quick run.
        seed: of everything random.
        registry: where names of attacks and losses are found; that of the installed plugins if not given.

    Returns:
        A report: `ok`, `findings`, and whether the attack beats noise. An attack that raises is a finding, not an error.

    Raises:
        UserError: for an unknown attack, and for a norm or an option that the attack does not have.
    """
    spec = (registry or load_plugins()).get_attack(attack) if isinstance(attack, str) else spec_of(attack)
    usable = [name for name in spec.norms if name in NORMS]
    if norm is not None and norm not in spec.norms:
        raise unknown(f"norm of attack {spec.name!r}:", norm, spec.norms)
    shown = norm or (spec.norms[0] if spec.norms else "L2")
    threat_norm = shown if shown in NORMS else (usable[0] if usable else "L1")
    checked = spec.check_options({**spec.quick, **(options or {})})
    if registry is not None and checked.get("loss") in registry.losses:
        checked["loss"] = registry.losses[checked["loss"]].function
    if spec.function is None:
        return ConformanceReport(spec.name, shown, [Finding("available", False, spec.reason)])
    with isolated():
        return _check(spec, shown, ThreatModel(threat_norm, EPS[threat_norm]), checked, seed)


@dataclass
class _Run:
    """One call of the attack: what came back, and what it did to the model and the process."""

    adv_images: Any
    changed: dict[str, str]
    passes: Passes
    seconds: float
    error: str = ""


def _check(spec: AttackSpec, norm: str, threat: ThreatModel, options: dict[str, Any], seed: int) -> ConformanceReport:
    images, labels, index = conformance_samples()
    again = torch.tensor(AGAIN)
    bounded = spec.kind == "bounded"

    def run(rows: Tensor, threat: ThreatModel, entropy: int) -> _Run:
        rng = SampleRng(seed, index[rows]).fold(spec.name)
        return _run(spec, images[rows], labels[rows], threat, rng, options, entropy)

    first = run(torch.arange(len(images)), threat, 1)
    findings = _state_findings(first) + _result_findings(spec, first, images, threat)
    if any(not finding.ok and finding.code in ("raises", "type", "shape", "dtype", "device") for finding in findings):
        return ConformanceReport(spec.name, norm, findings, seconds=first.seconds)
    adv_images = first.adv_images.detach()
    part, repeat = run(again, threat, 2), run(again, threat, 3)
    findings += _repeat_findings(spec, adv_images[again], part, repeat)
    if bounded:
        quarter = threat.scaled(Fraction(1, 4))
        findings.append(_eps_finding(spec, images[again], part, run(again, quarter, 4), quarter))
    broken, noise_broken = against_noise(spec, images, labels, adv_images, threat, norm, seed)
    shown_at = threat
    for factor in LARGER:  # a weak attack may need a larger ball to show anything
        if broken > noise_broken or norm not in NORMS or spec.kind == "unbounded":
            break
        larger = threat.scaled(factor)
        rerun = run(torch.arange(len(images)), larger, 5) if bounded else first
        if rerun.error or not isinstance(rerun.adv_images, Tensor) or rerun.adv_images.shape != images.shape:
            break
        shown_at = larger
        broken, noise_broken = against_noise(spec, images, labels, rerun.adv_images.detach(), larger, norm, seed)
    return ConformanceReport(
        spec.name, norm, findings, demonstrated=broken > noise_broken, n=len(images), n_broken=broken,
        n_noise=noise_broken, eps=shown_at.eps_text, seconds=first.seconds,
        forward_passes=first.passes.count.forward, backward_passes=first.passes.count.backward,
    )  # fmt: skip


def _run(
    spec: AttackSpec, images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, options: dict[str, Any],
    entropy: int,
) -> _Run:  # fmt: skip
    """Call the attack on a fresh network, with global random states that differ by `entropy`, and watch what it changes."""
    model = RgbDigits()
    # One shape for all runs: bits hold for one shape, and processors differ in whether they hold for others.
    passes = Passes(model, SAMPLES if spec.batching == "pool" else None)
    given = images.clone(), labels.clone(), rng.index.clone()
    handed = images.clone(), labels.clone(), SampleRng(rng.seed, rng.index.clone(), _key=rng._key)
    with isolated(seed=entropy):
        before = _state(model)
        started = time.perf_counter()
        adv_images, error = None, ""
        try:
            assert spec.function is not None
            adv_images = spec.function(passes, handed[0], handed[1], threat, rng=handed[2], **options)
        except Exception as failure:  # an attack may fail in any way: that is the finding  # noqa: BLE001
            error = f"{type(failure).__name__}: {failure}"
        seconds = time.perf_counter() - started
        after = _state(model)
        torch.set_grad_enabled(True)
    changed = {name: f"it changed {noun}" for name, noun in _NAMES.items() if not _same(before[name], after[name])}
    for noun, old, new in zip(("images", "labels", "rng.index"), given, (*handed[:2], handed[2].index), strict=True):
        if old.shape != new.shape or not torch.equal(old, new.detach()) or new.requires_grad:
            changed["inputs"] = f"it changed its argument {noun} in place"
    if isinstance(adv_images, Tensor) and adv_images.data_ptr() == handed[0].data_ptr() and len(adv_images):
        adv_images = adv_images.clone()
    return _Run(adv_images, changed, passes, seconds, error)


_NAMES = {
    "mode": "the train/eval mode of modules",
    "requires_grad": "requires_grad of the model's parameters",
    "grad": "the .grad of the model's parameters",
    "parameters": "the model's parameters",
    "buffers": "the model's buffers (BatchNorm statistics)",
    "hooks": "the model's hooks",
    "global_rng": "a global random state (random, numpy or torch)",
    "flags": "process-wide settings (grad mode, default dtype, cuDNN flags, threads)",
}


def _state(model: nn.Module) -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "mode": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "global_rng": [random.getstate(), pickle.dumps(np.random.get_state(legacy=False)), torch.get_rng_state()],
        "flags": [
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic,
        ],
    }  # fmt: skip


def _same(before: Any, other: Any) -> bool:
    if isinstance(before, list):
        return len(before) == len(other) and all(map(_same, before, other))
    if isinstance(before, Tensor) and isinstance(other, Tensor):
        return before.shape == other.shape and torch.equal(before, other)
    return type(before) is type(other) and bool(before == other)


def _state_findings(run: _Run) -> list[Finding]:
    names = {**_NAMES, "inputs": "its arguments"}
    return [
        Finding(code, code not in run.changed, run.changed.get(code, f"it left {names[code]} alone")) for code in names
    ]


def _result_findings(spec: AttackSpec, run: _Run, images: Tensor, threat: ThreatModel) -> list[Finding]:
    """Look at what came back: first whether it is a batch of images at all, then whether it lies where it may."""
    if run.error:
        return [Finding("raises", False, f"it raised {run.error}")]
    adv_images = run.adv_images
    if not isinstance(adv_images, Tensor):
        return [Finding("type", False, f"it returned a {type(adv_images).__name__}, not a tensor")]
    findings = [
        Finding(code, got == wanted, f"{code} {got}" + ("" if got == wanted else f", expected {wanted}"))
        for code, got, wanted in (
            ("shape", tuple(adv_images.shape), tuple(images.shape)),
            ("dtype", adv_images.dtype, images.dtype),
            ("device", adv_images.device, images.device),
        )
    ]
    if not all(finding.ok for finding in findings):
        return findings
    findings.append(
        Finding(
            "detached", not adv_images.requires_grad, "detached" if not adv_images.requires_grad else "not detached"
        )
    )
    adv_images = adv_images.detach()
    violations = threat.violations(images, adv_images)
    low, high = float(adv_images.nan_to_num(0, 0, 0).min()), float(adv_images.nan_to_num(0, 0, 0).max())
    findings += [
        _rows_finding("not_finite", violations.not_finite, "hold NaN or infinity"),
        _rows_finding("box", violations.box, f"leave [0, 1]: pixels from {low:.9g} to {high:.9g}"),
    ]
    if spec.kind == "bounded":
        farthest = float(threat.distance(images, adv_images.nan_to_num(0, 0, 0)).max())
        findings.append(
            _rows_finding("ball", violations.ball, f"leave the ball {threat}: distance up to {farthest:.9g}")
        )
    moved = int((adv_images != images).flatten(1).any(dim=1).sum())
    message = f"it changed {moved} of {len(images)} images"
    searched = moved == 0 and _searched(spec, run)
    if searched:
        message += f": it found nothing in {run.passes.count.forward} passes"
    findings.append(Finding("unchanged", moved > 0 or searched, message))
    return findings


def _searched(spec: AttackSpec, run: _Run) -> bool:
    """Say whether unchanged images are an honest answer: a decision-based attack asked the model and found nothing.

    Such an attack has no better image to return than the clean one. It is not demonstrated, but keeps the contract.
    """
    return spec.knowledge == "decision-based" and run.passes.count.forward > 0


def _rows_finding(code: str, rows: Tensor, fault: str) -> Finding:
    count = int(rows.sum())
    return Finding(code, count == 0, f"{count} of {len(rows)} images {fault}" if count else f"no image: {code}")


def _repeat_findings(spec: AttackSpec, before: Tensor, part: _Run, repeat: _Run) -> list[Finding]:
    """Compare two runs on the same few rows, and those rows in the first run, in another order and company."""
    for run in (part, repeat):
        if run.error or not isinstance(run.adv_images, Tensor):
            return [
                Finding("raises", False, f"on {len(before)} samples it raised {run.error or 'nothing, returned none'}")
            ]
    same = _same(part.adv_images.detach(), repeat.adv_images.detach())
    alone = _same(part.adv_images.detach(), before)
    pool = spec.batching == "pool"
    message = (
        "results do not depend on the company of a sample" if alone else "results depend on the company of a sample"
    )
    if pool and not alone:
        message += ": draw from rng, which belongs to the rows, and use no statistics over the batch"
    elif not pool:
        message += " (information: its batching is not 'pool')"
    return [
        Finding("deterministic", same, "the same rng gives the same images" if same else
                "the same rng gave other images: seed its randomness from rng (rng.call_seed())"),
        Finding("composition", alone or not pool, message),
    ]  # fmt: skip


def _eps_finding(spec: AttackSpec, images: Tensor, full: _Run, quarter: _Run, threat: ThreatModel) -> Finding:
    """Check that a quarter of eps is obeyed and changes the result."""
    adv_images = quarter.adv_images
    if quarter.error or not isinstance(adv_images, Tensor) or adv_images.shape != images.shape:
        return Finding("eps", False, f"with a quarter of eps it failed: {quarter.error or type(adv_images).__name__}")
    outside = int(threat.violations(images, adv_images.detach()).ball.sum())
    if outside:
        return Finding("eps", False, f"with a quarter of eps {outside} of {len(images)} images leave the ball {threat}")
    same = _same(adv_images.detach(), full.adv_images.detach())
    if same and _same(adv_images.detach(), images) and _searched(spec, full):
        return Finding("eps", True, "it found nothing, with eps and with a quarter of it")
    return Finding("eps", not same, "a quarter of eps changed nothing" if same else "it obeys eps")
