"""From a cascade to the parts of a record: results by attack and by class, and the table of samples."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustdup.attacks.passes import Count
from robustdup.evaluation.calls import Call
from robustdup.evaluation.cascade import CascadeResult, CleanSamples, StageResult
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.referee import VIOLATION_NAMES, Verdict, violation_counts
from robustdup.projections import COUNTS
from robustdup.records import SAMPLES_SCHEMA, AttackResult, ClassResult, Distances, MinDistance, Outcome, UnionBall
from robustdup.threat import ThreatModel

CURVE_POINTS = 64


def outcomes(samples: CleanSamples, result: CascadeResult) -> Tensor:
    """Return what became of each sample in a cascade: an Outcome (N,) uint8, NOT_ATTACKED where the clean image is wrong.

    A model that does not repeat itself is asked afresh; NOT_ATTACKED is what it gets wrong in all draws.
    """
    outcome = torch.full((len(samples.labels),), Outcome.ROBUST, dtype=torch.uint8)
    if samples.certified is not None:
        outcome[samples.certified] = Outcome.CERTIFIED
    outcome[result.undecided] = Outcome.UNDECIDED
    outcome[result.broken] = Outcome.BROKEN
    outcome[samples.clean.correct_share == 0] = Outcome.NOT_ATTACKED
    return outcome


def attack_results(
    result: CascadeResult, samples: CleanSamples, *, individual: bool = False, before: Sequence[CascadeResult] = ()
) -> list[AttackResult]:
    """Return one result a stage, in order; accuracies are after all stages so far, or of each alone if `individual`.

    `before` are the cascades in the balls before this one, of a union.
    """
    correct = ~samples.clean.is_adv
    broken, undecided = torch.zeros_like(correct), torch.zeros_like(correct)
    for stage in (stage for earlier in before for stage in earlier.stages):
        broken |= stage.outcome == Outcome.BROKEN
        undecided |= stage.outcome == Outcome.UNDECIDED
    attacks = []
    for stage in result.stages:
        if individual:
            broken, undecided = torch.zeros_like(correct), torch.zeros_like(correct)
        broken |= stage.outcome == Outcome.BROKEN
        undecided |= stage.outcome == Outcome.UNDECIDED
        after = float((correct & ~broken & ~undecided).sum()) / max(len(correct), 1)
        if samples.afresh is not None:
            after = _expected_alone(stage, samples.afresh) if individual else stage.expected_after or 0.0
        attacks.append(_attack_result(stage, result.threat, after).model_copy(update={"ball": result.ball}))
    return attacks


def ball_results(results: Sequence[CascadeResult], samples: CleanSamples) -> list[UnionBall]:
    """Return what became of the samples in each ball of a union, before anything is united.

    A model that does not repeat itself is asked afresh: its accuracy in a ball after others counts theirs too.
    """
    balls, is_correct = [], ~samples.clean.is_adv
    so_far, open_so_far = is_correct.double(), torch.zeros_like(is_correct)
    for result in results:
        nobody = torch.full(is_correct.shape, Outcome.NOT_ATTACKED, dtype=torch.uint8)
        outcome = torch.stack([nobody, *(stage.outcome for stage in result.stages)])
        broken = (outcome == Outcome.BROKEN).any(dim=0)
        undecided = (outcome == Outcome.UNDECIDED).any(dim=0) & ~broken
        attacked = (outcome != Outcome.NOT_ATTACKED).any(dim=0)
        left_out = is_correct & ~attacked
        standing = (is_correct & attacked & ~broken & ~undecided).double()
        so_far = torch.where(broken, 0.0, so_far)
        open_so_far = (open_so_far | undecided) & (so_far > 0)
        if result.expected is not None:
            standing, so_far = torch.where(undecided, 0.0, result.expected), torch.minimum(result.expected, so_far)
            left_out = torch.zeros_like(left_out)
        unknown = int((left_out | undecided).sum())
        balls.append(
            UnionBall(
                norm=result.threat.norm,
                eps=result.threat.radius,
                eps_text=result.threat.eps_text,
                n_attacked=int(attacked.sum()),
                n_broken=int(broken.sum()),
                n_undecided=int(undecided.sum()),
                n_open=int(left_out.sum()),
                robust_accuracy=accuracy(standing.numpy(), undecided=unknown),
                at_most=float(standing.mean()) + unknown / max(len(is_correct), 1),
                robust_accuracy_after=accuracy(
                    torch.where(open_so_far, 0.0, so_far).numpy(), undecided=int(open_so_far.sum())
                ),
            )
        )
    return balls


def _expected_alone(stage: StageResult, afresh: Tensor) -> float:
    """Return the accuracy that one stage alone leaves of a model that does not repeat itself; `afresh` (N,) without it."""
    share = afresh.clone()
    for call in stage.calls:
        judged = torch.zeros(()) if call.verdict is None else call.verdict.correct_share
        share[call.positions] = torch.minimum(share[call.positions], judged.to(share))
    return float(share.mean())


def _attack_result(stage: StageResult, threat: ThreatModel, after: float) -> AttackResult:
    spec = stage.stage.spec
    passes = sum((call.attack_passes for call in stage.calls), Count())
    verdicts = [call.verdict for call in stage.calls if call.verdict is not None]
    violation = _cat(verdicts, "violation", torch.uint8)
    is_adv, raw_is_adv = _cat(verdicts, "is_adv", torch.bool), _cat(verdicts, "raw_is_adv", torch.bool)
    excess = _cat(verdicts, "excess", torch.float64)[violation != 0]
    return AttackResult(
        name=spec.name,
        options=stage.stage.options,
        source=spec.source,
        kind=spec.kind,
        knowledge=spec.knowledge,
        evidence=threat.norm in spec.norms and not spec.undemonstrated,
        n_attacked=int((stage.outcome != Outcome.NOT_ATTACKED).sum()),
        n_broken=int((stage.outcome == Outcome.BROKEN).sum()),
        n_undecided=int((stage.outcome == Outcome.UNDECIDED).sum()),
        n_unchanged=int(_cat(verdicts, "unchanged", torch.bool).sum()),
        seconds=sum(call.seconds for call in stage.calls),
        forward_passes=passes.forward,
        backward_passes=passes.backward,
        padding_rows=passes.padding,
        violations=int((violation != 0).sum()),
        violation_kinds=violation_counts(violation),
        worst_excess=float(excess.max()) if len(excess) else 0.0,
        rejected_claims=int(((violation != 0) & raw_is_adv & ~is_adv).sum()),
        robust_accuracy_after=after,
        distances=_distances(verdicts) if spec.kind == "minimum-norm" else None,
        broken_after=_broken_after(stage.calls),
        errors=sorted({call.error for call in stage.calls if call.error}),
        warning=spec.warning,
    )


def _cat(verdicts: list[Verdict], name: str, dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=dtype), *(getattr(verdict, name) for verdict in verdicts)])


def _distances(verdicts: list[Verdict]) -> Distances:
    distances = _cat(verdicts, "raw_distance", torch.float64)[_cat(verdicts, "raw_is_adv", torch.bool)]
    if not len(distances):
        return Distances(n=0, median=None, mean=None)
    return Distances(n=len(distances), median=float(distances.quantile(0.5)), mean=float(distances.mean()))


def _broken_after(calls: Sequence[Call]) -> list[tuple[int, int]]:
    """Add up (passes per sample, samples broken) over calls, as running totals at up to `CURVE_POINTS` passes."""
    counts: Counter[int] = Counter()
    for call in calls:
        for passes, count in call.broken_after:
            counts[passes] += count
    rising = sorted(counts)
    totals = list(zip(rising, itertools.accumulate(counts[passes] for passes in rising), strict=True))
    if len(totals) <= CURVE_POINTS:
        return totals
    kept = sorted({round(i * (len(totals) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
    return [totals[i] for i in kept]


def min_distance(samples: CleanSamples, results: Sequence[CascadeResult]) -> Tensor:
    """Return the smallest distance that was seen to break each sample (N,), 0 where the clean image does, inf if none."""
    nearest = torch.stack([result.nearest for result in results]).amin(dim=0)
    return torch.where(samples.clean.is_adv, 0.0, nearest)


def distance_summary(nearest: Tensor, threat: ThreatModel, robust_accuracy: float) -> MinDistance:
    """Return median, mean and the accuracy left over eps: at 20 steps up to twice eps, and at eps itself;
    counts at whole numbers.

    At eps it is the verdict, `robust_accuracy` in [0, 1], and on either side no curve of one model can cross it. A
    distance counts within a radius as the referee's does: up to its tolerance.
    """
    eps, eps_text = threat.radius, threat.eps_text
    finite = nearest[nearest.isfinite()]
    n = max(len(nearest), 1)
    radii = [eps * step / 10 for step in range(1, 21) if step != 10]
    if threat.norm in COUNTS:  # whole numbers, as many as there are
        radii = sorted({float(math.floor(radius)) for radius in radii} - {0.0, eps})
    grid = {f"{radius:.6g}": radius for radius in radii} | {eps_text: eps}
    curve = {}
    for text, radius in sorted(grid.items(), key=lambda item: item[1]):
        left = float((nearest > radius + threat.tolerance).sum()) / n
        curve[text] = robust_accuracy if text == eps_text else (max if radius < eps else min)(left, robust_accuracy)
    return MinDistance(
        n=len(nearest),
        n_found=len(finite),
        median=float(nearest.quantile(0.5)) if len(finite) > len(nearest) / 2 else None,
        mean=float(finite.mean()) if len(finite) else None,
        curve=curve,
    )


def class_results(
    labels: Tensor, names: Sequence[str], num_classes: int, clean: Tensor, robust: Tensor
) -> list[ClassResult]:
    """Return accuracies per class; `clean` and `robust` are shares of correct answers (N,) in [0, 1]."""
    classes = []
    for label in range(max(num_classes, len(names))):
        members = labels == label
        n = int(members.sum())
        classes.append(
            ClassResult(
                label=label,
                name=names[label] if label < len(names) else str(label),
                n=n,
                clean_accuracy=float(clean[members].mean()) if n else None,
                robust_accuracy=float(robust[members].mean()) if n else None,
            )
        )
    return classes


def sample_rows(
    samples: CleanSamples, hashes: Sequence[str], results: Sequence[CascadeResult], nearest: Tensor | None = None
) -> dict[str, list[Any]]:
    """Return the columns of `samples.parquet`: every sample on its clean image, then a row per sample and stage.

    `nearest` (N,) are the smallest distances that broke a sample, where they were asked for.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLES_SCHEMA.names}
    clean, n = samples.clean, len(samples.labels)
    everyone = torch.arange(n)
    _common(columns, samples, hashes, everyone, "", "clean", -1)
    share = clean.correct_share if samples.afresh is None else samples.afresh
    columns["outcome"] += ["misclassified" if right <= 0.5 else "correct" for right in share.tolist()]
    columns["prediction"] += clean.prediction.tolist()
    columns["margin"] += clean.margin.tolist()
    columns["distance"] += [0.0] * n
    columns["violation"] += [""] * n
    columns["forward_passes"] += [1] * n
    columns["backward_passes"] += [0] * n
    columns["correct_share"] += share.tolist()
    columns["min_distance"] += [None] * n if nearest is None else nearest.tolist()
    for result in results:
        for number, stage in enumerate(result.stages):
            total = Count()
            for call in stage.calls:
                total = total + call.attack_passes
                _common(columns, samples, hashes, call.positions, result.name, stage.stage.spec.name, number)
                _judged(columns, call, total)
    return columns


def _common(
    columns: dict[str, list[Any]],
    samples: CleanSamples,
    hashes: Sequence[str],
    rows: Tensor,
    eps: str,
    attack: str,
    stage: int,
) -> None:
    columns["position"] += rows.tolist()
    columns["index"] += samples.index[rows].tolist()
    columns["label"] += samples.labels[rows].tolist()
    columns["image_sha256"] += [hashes[row] for row in rows.tolist()]
    columns["eps"] += [eps] * len(rows)
    columns["attack"] += [attack] * len(rows)
    columns["stage"] += [stage] * len(rows)


def _judged(columns: dict[str, list[Any]], call: Call, total: Count) -> None:
    n, verdict = len(call.positions), call.verdict
    columns["forward_passes"] += [total.forward] * n
    columns["backward_passes"] += [total.backward] * n
    columns["min_distance"] += [None] * n
    if verdict is None:
        columns["outcome"] += [Outcome.UNDECIDED.word] * n
        columns["violation"] += [""] * n
        for name in ("prediction", "margin", "distance", "correct_share"):
            columns[name] += [None] * n
        return
    columns["outcome"] += [(Outcome.BROKEN if is_adv else Outcome.ROBUST).word for is_adv in verdict.is_adv.tolist()]
    columns["prediction"] += verdict.prediction.tolist()
    columns["margin"] += verdict.margin.tolist()
    columns["distance"] += verdict.distance.tolist()
    columns["violation"] += [_violation_text(bits) for bits in verdict.violation.tolist()]
    columns["correct_share"] += verdict.correct_share.tolist()


def _violation_text(bits: int) -> str:
    return "+".join(name for bit, name in VIOLATION_NAMES.items() if bits & bit)
