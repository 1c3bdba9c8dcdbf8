"""The recheck: the referee judges claimed adversarial examples again, on the model that the verifier loads; no attack runs."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from robustdup.attacks.passes import Passes
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.context import Context
from robustdup.evaluation.referee import Answers, Verdict, judge, judge_images, violation_counts
from robustdup.evidence.bundle import EXAMPLES, Claims, check_manifest, read_claims, read_examples, refused
from robustdup.models.load import fingerprint
from robustdup.records import EvaluationRecord, Part, Threat, load_record
from robustdup.threat import ThreatModel

ROUNDING = 1e-4  # a margin that float32 may round to the other side: another machine adds in another order
NAMED = 3  # samples of each problem that are named


class Verification(Part):
    """What the referee says of claimed examples. Accuracies are over the n samples."""

    accepted: bool = Field(description="Whether nothing speaks against the claims.")
    n: int = Field(description="Samples.")
    threat: Threat = Field(description="The threat model.")
    clean_accuracy: float = Field(description="Share of samples classified correctly as they are.")
    robust_accuracy: float = Field(
        description="Share of samples classified correctly with the examples in their place."
    )
    n_broken: int = Field(description="Claimed or given examples that hold.")
    n_undecided: int = Field(default=0, description="Samples that the bundle says are undecided.")
    violations: int = Field(description="Examples outside the threat model, whose projections were judged.")
    violation_kinds: dict[str, int] = Field(
        default_factory=dict, description="What they violated: not_finite, box, ball."
    )
    within_rounding: int = Field(default=0, description="Claims that fail only within float32 rounding.")
    problems: list[str] = Field(default_factory=list, description="What does not fit, in words.")
    seconds: float = Field(default=0.0, description="Seconds that it took.")


def recheck_bundle(folder: Path, context: Context, data: ImageDataset) -> Verification:
    """Judge every example of a bundle, and hold its claims and the numbers of its record against what is seen.

    Args:
        folder: the bundle.
        context: holds the verifier's own model.
        data: the verifier's own images, with labels.

    Raises:
        UserError: where the bundle was changed, or where data or weights are not those that it speaks of.
    """
    check_manifest(folder)
    record = load_record(folder)
    for name, stated, here in (
        ("data", record.data.fingerprint, data.fingerprint),
        ("weights", record.model.fingerprint, fingerprint(context.original.model)),
    ):
        if stated != here:
            raise refused(f"the {name} here are not those of the bundle ({here[:12]}, not {stated[:12]}).")
    adv_images, _, index = read_examples(folder / EXAMPLES)
    claims = read_claims(folder, record.threat.eps_text)
    if index is None or index.tolist() != data.index.tolist() or claims.index != data.index.tolist():
        raise refused("its examples are not of the samples that its record names.")
    if claims.hashes != list(data.hashes):
        raise refused("the clean images are not those that its samples name.")
    if adv_images.shape != data.images.shape:
        raise refused(f"its examples have shape {tuple(adv_images.shape)}, the images {tuple(data.images.shape)}.")
    threat = ThreatModel(record.threat.norm, record.threat.eps_text)
    images, adv_images, labels = (t.to(context.device) for t in (data.images, adv_images, data.labels))
    verification = recheck(
        context.original, images, adv_images, labels, threat, claims=claims, draws=record.model.judge_draws,
        seed=context.seed + 1,
    )  # fmt: skip
    problems = [*verification.problems, *_misstated(record, verification, claims, threat)]
    return verification.model_copy(update={"accepted": not problems, "problems": problems})


def recheck(
    original: Passes,
    clean: Tensor,
    adv_images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    claims: Claims | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Verification:
    """Judge examples by the referee alone; with `claims` also whether they hold.

    A claim that fails by a margin within float32 rounding is counted apart. For a randomised model (`draws` above 1) the
    accuracies are expected values, as in the record.

    Args:
        original: the model, images (N, C, H, W) -> logits (N, K).
        clean: clean images (N, C, H, W) in [0, 1].
        adv_images: the examples, of the same shape.
        labels: true classes (N,).
        threat: the threat model.
        claims: what a bundle says of them.
        draws: calls of the model, for one that answers at random.
        seed: of the global random state while the model is asked.
    """
    verdict = judge(original, clean, adv_images, labels, threat, draws=draws, seed=seed)
    answers = judge_images(original, clean, labels, draws=draws, seed=seed)
    problems: list[str] = []
    rounding, undecided = 0, torch.zeros(len(labels), dtype=torch.bool)
    if claims is not None:
        undecided = torch.tensor(claims.undecided)
        problems, rounding = _unfounded(claims, verdict, answers, deterministic=draws == 1)
    correct = verdict.correct_share if draws > 1 else (~answers.is_adv & ~verdict.is_adv).double()
    return Verification(
        accepted=not problems,
        n=len(labels),
        threat=Threat(norm=threat.norm, eps=threat.radius, eps_text=threat.eps_text),
        clean_accuracy=float(answers.correct_share.mean()),
        robust_accuracy=float(torch.where(undecided, 0.0, correct).mean()),
        n_broken=int((~answers.is_adv & verdict.is_adv).sum()),
        n_undecided=int(undecided.sum()),
        violations=int((verdict.violation != 0).sum()),
        violation_kinds=violation_counts(verdict.violation),
        within_rounding=rounding,
        problems=problems,
    )


def _unfounded(claims: Claims, verdict: Verdict, answers: Answers, *, deterministic: bool) -> tuple[list[str], int]:
    """Return which claims do not hold, in words, and how many fail within rounding."""
    problems: list[str] = []
    claimed = torch.tensor(claims.broken)

    def name(rows: Tensor, problem: str) -> None:
        problems.extend(f"Sample {claims.index[row]}{problem}" for row in rows.nonzero()[:NAMED, 0].tolist())

    close = verdict.margin.abs() <= ROUNDING
    rounding = 0
    if deterministic:
        failing = claimed & ~verdict.is_adv
        rounding = int((failing & close).sum())
        name(failing & ~close, " is claimed to be broken, but the model classifies it right.")
        wrong = (torch.tensor(claims.clean_correct) == answers.is_adv) & (answers.margin.abs() > ROUNDING)
        name(wrong, ": the clean prediction is not the one that the record states.")
    name(claimed & (verdict.violation != 0), ": the example lies outside the threat model.")
    return problems, rounding


def _misstated(record: EvaluationRecord, verification: Verification, claims: Claims, threat: ThreatModel) -> list[str]:
    """Say which numbers of a record are not those that its samples and examples show."""
    random = record.model.randomized
    allowed = verification.within_rounding / max(verification.n, 1) + (0.05 if random else 1e-9)
    # The samples' clean outcomes were rechecked one by one; an expected accuracy comes from fresh draws.
    shares = sum(claims.clean_correct) / max(len(claims.clean_correct), 1)
    clean = verification.clean_accuracy if random else shares
    numbers = (
        ("an eps of", record.threat.eps, threat.radius, 1e-12),
        ("a number of samples of", record.n, verification.n, 0),
        ("a number of undecided samples of", record.n_undecided, verification.n_undecided, 0),
        ("a clean accuracy of", record.clean_accuracy.value, clean, 0.05 if random else 1e-9),
        ("a robust accuracy of", record.robust_accuracy.value, verification.robust_accuracy, allowed),
    )
    return [
        f"The record states {name} {stated:.6g}; the evidence shows {shown:.6g}."
        for name, stated, shown, room in numbers
        if abs(stated - shown) > room
    ]


def recheck_examples(
    context: Context, data: ImageDataset, adv_images: Tensor, labels: Tensor | None, index: Tensor | None,
    threat: ThreatModel,
) -> Verification:  # fmt: skip
    """Judge adversarial examples from any tool, in the order of the samples or by their index.

    Args:
        context: holds the verifier's own model.
        data: the verifier's own images, with labels.
        adv_images: the examples (n, C, H, W).
        labels: their classes (n,), where the file holds them: they must agree with the data.
        index: their rows in the dataset (n,), where the file holds them.
        threat: the threat model.

    Raises:
        UserError: where shapes, labels or index do not fit.
    """
    images, truth = data.images, data.labels
    if index is not None:
        rows = _rows(index, data)
        images, truth = images[rows], truth[rows]
    if adv_images.shape != images.shape:
        raise UserError(
            f"The file holds examples of shape {tuple(adv_images.shape)}; the samples have {tuple(images.shape)}.",
            code="other-samples",
        )
    if labels is not None and not torch.equal(labels, truth):
        raise UserError(
            "The labels in the file are not those of the data. Is the order the same?", code="other-samples"
        )
    images, adv_images, truth = (tensor.to(context.device) for tensor in (images, adv_images, truth))
    return recheck(context.original, images, adv_images, truth, threat, seed=context.seed)


def _rows(index: Tensor, data: ImageDataset) -> Tensor:
    rows = {number: row for row, number in enumerate(data.index.tolist())}
    missing = [number for number in index.tolist() if number not in rows]
    if missing:
        raise UserError(
            f"The file holds an example of sample {missing[0]}, which is not among the {len(rows)} samples.",
            code="other-samples",
        )
    return torch.tensor([rows[number] for number in index.tolist()])
