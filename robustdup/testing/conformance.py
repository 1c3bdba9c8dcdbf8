"""The conformance test: does an attack keep the contract, and does it beat noise on a network that it can break?

The network is the built-in standard digits classifier behind three channels and 16x16 pixels, which is not robust. An
attack is run on a few images: as it is, on a few of them again (twice), and with a quarter of eps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.noise import ball_noise
from robustdup.attacks.passes import Passes
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as load_digits
from robustdup.errors import unknown
from robustdup.evaluation.referee import judge
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.plugins import AttackSpec, Registry
from robustdup.rng import SampleRng
from robustdup.threat import NORMS, ThreatModel

EPS = {"Linf": "0.15", "L2": "2.5", "L1": "30"}  # noise of this size breaks next to nothing, PGD nearly everything
LARGER = (2, 4)
POINTS = 20
AGAIN = (7, 3, 12, 0, 9)  # rows of the second and third run, in another order and company
NOISE_DRAWS = 10


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `code` names it, `ok` says whether it is as it should be, `message` what was seen."""

    code: str
    ok: bool
    message: str


@dataclass(frozen=True)
class ConformanceReport:
    """What the conformance test found of an attack in a norm.

    `demonstrated`: it broke more points than noise of equal norm did (`n_broken` against `n_noise` of `n`), at the
    radius `eps`: the usual one, or one of its multiples in `LARGER` where the attack does not beat noise within less. `seconds`
    and passes (rows) are those of the first run, on all `n` points.
    """

    attack: str
    norm: str
    findings: list[Finding] = field(default_factory=list)
    demonstrated: bool = False
    n: int = 0
    n_broken: int = 0
    n_noise: int = 0
    eps: str = ""
    seconds: float = 0.0
    forward_passes: int = 0
    backward_passes: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        return all(finding.ok for finding in self.findings)

    @property
    def evidence(self) -> str:
        """What was seen when the attack was compared with noise."""
        if not self.n:
            return "; ".join(finding.message for finding in self.findings if not finding.ok)
        return f"broke {self.n_broken} of {self.n} points at eps {self.eps}, noise of equal norm {self.n_noise}"


class RgbDigits(nn.Module):
    """The built-in standard digits classifier for images (N, 3, 16, 16) in [0, 1] -> logits (N, 10).

    It holds what careless attacks change: a frozen and an unfrozen parameter, BatchNorm statistics in eval mode, and one
    module in train mode (a dropout of nothing).
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(3, affine=False)
        self.idle = nn.Dropout(0.0)
        self.digits = load_builtin("digits-standard", ModelOptions())
        self.eval()
        self.idle.train()
        first = next(self.digits.parameters())
        first.requires_grad_(False)
        self.digits.get_parameter("head.weight").grad = torch.zeros_like(self.digits.get_parameter("head.weight"))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the grey, halved images."""
        grey = self.idle(self.scale(images)).mean(dim=1, keepdim=True)
        return self.digits(nn.functional.avg_pool2d(grey, 2))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def conformance_points() -> tuple[Tensor, Tensor, Tensor]:
    """Return images (20, 3, 16, 16), labels (20,) and row numbers: test digits that the network gets right, two a class."""
    rows = load_digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(len(rows)))
    images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).expand(-1, 3, -1, -1).contiguous()
    with torch.no_grad():
        right = RgbDigits()(images).argmax(dim=1) == labels
    chosen = torch.cat([(right & (labels == k)).nonzero()[: POINTS // 10, 0] for k in range(10)])
    return images[chosen], labels[chosen], chosen


def check_attack(
    spec: AttackSpec,
    *,
    norm: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    registry: Registry | None = None,
) -> ConformanceReport:
    """Run the conformance test on one attack in one of its norms (the first, if not named); a second for a fast attack.

    `options` go over `spec.quick`. `registry` resolves the names of registered losses. An attack that raises is a
    finding, not an error. Raises UserError only for a norm or an option that the attack does not have.
    """
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
    images, labels, index = conformance_points()
    again = torch.tensor(AGAIN)
    bounded = spec.kind == "bounded"

    def run(rows: Tensor, threat: ThreatModel, entropy: int) -> _Run:
        rng = SampleRng(seed, index[rows]).fold(spec.name)
        return _run(spec, images[rows], labels[rows], threat, rng, options, entropy)

    first = run(torch.arange(len(images)), threat, 1)
    findings = _state_findings(first) + _result_findings(first, images, threat, bounded)
    if any(not finding.ok and finding.code in ("raises", "type", "shape", "dtype", "device") for finding in findings):
        return ConformanceReport(spec.name, norm, findings, seconds=first.seconds)
    adv_images = first.adv_images.detach()
    part, repeat = run(again, threat, 2), run(again, threat, 3)
    findings += _repeat_findings(spec, adv_images[again], part, repeat)
    if bounded:
        quarter = threat.with_eps(threat.eps / 4)
        findings.append(_eps_finding(images[again], part, run(again, quarter, 4), quarter))
    broken, noise_broken = _against_noise(spec, images, labels, adv_images, threat, norm, seed)
    shown_at = threat
    for factor in LARGER:  # a weak attack may need a larger ball to show anything
        if broken > noise_broken or norm not in NORMS or spec.kind == "unbounded":
            break
        larger = threat.with_eps(threat.eps * factor)
        rerun = run(torch.arange(len(images)), larger, 5) if bounded else first
        if rerun.error or not isinstance(rerun.adv_images, Tensor) or rerun.adv_images.shape != images.shape:
            break
        shown_at = larger
        broken, noise_broken = _against_noise(spec, images, labels, rerun.adv_images.detach(), larger, norm, seed)
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
    passes = Passes(model, POINTS if spec.batching == "pool" else None)
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
    changed = {name: f"it changed {what}" for name, what in _NAMES.items() if not _same(before[name], after[name])}
    for what, old, new in zip(("images", "labels", "rng.index"), given, (*handed[:2], handed[2].index), strict=True):
        if old.shape != new.shape or not torch.equal(old, new.detach()) or new.requires_grad:
            changed["inputs"] = f"it changed its argument {what} in place"
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
        "global_rng": [repr(random.getstate()), repr(np.random.get_state(legacy=False)), torch.get_rng_state()],
        "flags": [
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic,
        ],
    }  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _state_findings(run: _Run) -> list[Finding]:
    names = {**_NAMES, "inputs": "its arguments"}
    return [
        Finding(code, code not in run.changed, run.changed.get(code, f"it left {names[code]} alone")) for code in names
    ]


def _result_findings(run: _Run, images: Tensor, threat: ThreatModel, bounded: bool) -> list[Finding]:
    """Look at what came back: first whether it is a batch of images at all, then whether it lies where it may."""
    if run.error:
        return [Finding("raises", False, f"it raised {run.error}")]
    adv = run.adv_images
    if not isinstance(adv, Tensor):
        return [Finding("type", False, f"it returned a {type(adv).__name__}, not a tensor")]
    findings = [
        Finding(code, got == wanted, f"{code} {got}" + ("" if got == wanted else f", expected {wanted}"))
        for code, got, wanted in (
            ("shape", tuple(adv.shape), tuple(images.shape)),
            ("dtype", adv.dtype, images.dtype),
            ("device", adv.device, images.device),
        )
    ]
    if not all(finding.ok for finding in findings):
        return findings
    findings.append(Finding("detached", not adv.requires_grad, "detached" if not adv.requires_grad else "not detached"))
    adv = adv.detach()
    found = threat.violations(images, adv)
    low, high = float(adv.nan_to_num(0, 0, 0).min()), float(adv.nan_to_num(0, 0, 0).max())
    findings += [
        _rows_finding("not_finite", found.not_finite, "hold NaN or infinity"),
        _rows_finding("box", found.box, f"leave [0, 1]: pixels from {low:.9g} to {high:.9g}"),
    ]
    if bounded:
        farthest = float(threat.distance(images, adv.nan_to_num(0, 0, 0)).max())
        findings.append(_rows_finding("ball", found.ball, f"leave the ball {threat}: distance up to {farthest:.9g}"))
    moved = int((adv != images).flatten(1).any(dim=1).sum())
    findings.append(Finding("unchanged", moved > 0, f"it changed {moved} of {len(images)} images"))
    return findings


def _rows_finding(code: str, rows: Tensor, what: str) -> Finding:
    count = int(rows.sum())
    return Finding(code, count == 0, f"{count} of {len(rows)} images {what}" if count else f"no image: {code}")


def _repeat_findings(spec: AttackSpec, before: Tensor, part: _Run, repeat: _Run) -> list[Finding]:
    """Compare two runs on the same few rows, and those rows in the first run, in another order and company."""
    for run in (part, repeat):
        if run.error or not isinstance(run.adv_images, Tensor):
            return [
                Finding("raises", False, f"on {len(before)} points it raised {run.error or 'nothing, returned none'}")
            ]
    same = _same(part.adv_images.detach(), repeat.adv_images.detach())
    alone = _same(part.adv_images.detach(), before)
    pool = spec.batching == "pool"
    said = "results do not depend on the company of a point" if alone else "results depend on the company of a point"
    if pool and not alone:
        said += ": draw from rng, which belongs to the rows, and use no statistics over the batch"
    elif not pool:
        said += " (information: its batching is not 'pool')"
    return [
        Finding("deterministic", same, "the same rng gives the same images" if same else
                "the same rng gave other images: seed its randomness from rng (rng.call_seed())"),
        Finding("composition", alone or not pool, said),
    ]  # fmt: skip


def _eps_finding(images: Tensor, full: _Run, quarter: _Run, threat: ThreatModel) -> Finding:
    """Check that a quarter of eps is obeyed and changes the result."""
    adv = quarter.adv_images
    if quarter.error or not isinstance(adv, Tensor) or adv.shape != images.shape:
        return Finding("eps", False, f"with a quarter of eps it failed: {quarter.error or type(adv).__name__}")
    outside = int(threat.violations(images, adv.detach()).ball.sum())
    if outside:
        return Finding("eps", False, f"with a quarter of eps {outside} of {len(images)} images leave the ball {threat}")
    same = _same(adv.detach(), full.adv_images.detach())
    return Finding("eps", not same, "a quarter of eps changed nothing" if same else "it obeys eps")


def _against_noise(
    spec: AttackSpec, images: Tensor, labels: Tensor, adv_images: Tensor, threat: ThreatModel, norm: str, seed: int
) -> tuple[int, int]:
    """Count the points broken by the attack, and by any of ten draws of noise of equal norm, on the judge's own network.

    Equal norm is eps; for an attack that knows no eps, or whose norm no threat model has, each point's own distance.
    """
    model, rng = RgbDigits(), SampleRng(seed, torch.arange(len(images))).fold("conformance noise")
    free = spec.kind == "unbounded" or norm not in NORMS
    adv = torch.where(adv_images.isfinite(), adv_images, images).clamp(0, 1)

    def drawn(draw: int) -> Tensor:
        if norm == "L0":
            return _sparse_noise(images, adv, rng, draw)
        delta = ball_noise(images, threat, rng, draw=draw)
        delta = delta.sign() * threat.radius if threat.norm == "Linf" else threat.sphere_scale(delta)
        if free:
            ratio = threat.distance(images, adv) / threat.radius
            delta = delta * ratio.view(-1, 1, 1, 1).to(delta.dtype)
        return (images + delta).clamp(0, 1)

    def broken(adv: Tensor) -> Tensor:
        verdict = judge(model, images, adv, labels, threat, bounded=not free)
        return verdict.raw_is_adv if free else verdict.is_adv

    by_noise = torch.stack([broken(drawn(draw)) for draw in range(NOISE_DRAWS)]).any(dim=0)
    return int(broken(adv_images).sum()), int(by_noise.sum())


def _sparse_noise(images: Tensor, adv: Tensor, rng: SampleRng, draw: int) -> Tensor:
    """Set as many values of each image as the attack changed, chosen at random, to random values."""
    flat = images.flatten(1)
    count = (adv.flatten(1) != flat).sum(dim=1, keepdim=True)
    rank = rng.fold("places").uniform(flat.shape[1:], draw=draw).argsort(dim=1).argsort(dim=1)
    return torch.where(rank < count, rng.fold("values").uniform(flat.shape[1:], draw=draw), flat).view_as(images)
