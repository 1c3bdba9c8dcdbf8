"""The recheck: the referee judges claimed adversarial examples again, on the model that the verifier loads; no attack runs.

Three kinds of fields: what can be computed from examples, data and model is computed again; what follows from other fields
is derived (see `derive`); the rest is only stated, and said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import margin
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.clean import check_outputs
from robustdup.evaluation.context import Context
from robustdup.evaluation.expected import judged_afresh, not_above
from robustdup.evaluation.referee import Answers, Verdict, exact_fp32, judge, judge_images, violation_counts
from robustdup.evaluation.steadiness import examine
from robustdup.evidence.bundle import EXAMPLES, check_manifest, other_manifest, refused
from robustdup.evidence.certificates import check_certificates
from robustdup.evidence.derive import compare, contradictions, derive
from robustdup.evidence.fields import fields_of, sample_fields
from robustdup.evidence.match import Match
from robustdup.evidence.replay import NAMED, Replay, replay, stages_of, threat_at
from robustdup.evidence.verification import Verification
from robustdup.models.adapt import inner, order_of
from robustdup.models.load import count_parameters, fingerprint
from robustdup.records import UNION, EvaluationRecord, Threat, load_record
from robustdup.records.samples import CERTIFIED_MARGIN
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel
from robustdup.union import union_name

# What float32 may round to the other side, as another machine adds in another order: of the largest margin, and of the logits.
ROUNDING, OF_LOGITS = 1e-4, 2**-21
LARGEST_BATCH = 4096  # rows that a stranger's record may have a model called with
DRAWS = (20, 100)  # fewest and most calls by which a model that answers at random is judged here
DEVIATIONS = 4.0  # standard deviations that two expected accuracies over fresh draws may differ by


@dataclass(frozen=True)
class Judged:
    """What the referee says here: of the final examples, of the clean images, and of the model itself.

    `verdicts` are those in each ball of a union, of which `verdict` is made; otherwise `verdict` alone.
    """

    verdict: Verdict
    verdicts: list[Verdict]
    answers: Answers
    draws: int
    randomized: bool
    batch_dependent: bool
    num_classes: int
    rounding: float

    @property
    def wavering(self) -> bool:
        """Whether the model does not repeat itself: it answers at random, or by who shares a batch."""
        return self.randomized or self.batch_dependent

    @property
    def correct(self) -> Tensor:
        """(n,) float64: share of right answers with the examples in place, never above that on the clean images."""
        if self.wavering:
            return torch.minimum(self.verdict.correct_share, self.answers.correct_share)
        return (~self.answers.is_adv & ~self.verdict.is_adv).double()


def recheck_bundle(folder: Path, context: Context, data: ImageDataset, *, same_data: bool = False) -> Verification:
    """Judge every example of a bundle, and hold its claims and the numbers of its record against what is seen.

    Args:
        folder: the bundle.
        context: holds the verifier's own model.
        data: the verifier's own images, with labels.
        same_data: whether the data was loaded by the name that the bundle gives, so that its names must agree.

    Raises:
        UserError: where the bundle was changed, or where data or weights are not those that it speaks of.
    """
    manifest, record = check_manifest(folder), load_record(folder)
    model = context.original.model
    for name, named, here in (
        ("data", record.data.fingerprint, data.fingerprint),
        ("weights", record.model.fingerprint, fingerprint(model)),
    ):
        if named != here:
            raise refused(f"the {name} here are not those of the bundle ({here[:12]}, not {named[:12]}).")
    if record.model.judge_draws < 1:
        raise refused(f"its record judges by {record.model.judge_draws} draws.")
    if record.model.judged_in_batches_of is not None:
        if not 0 < record.model.judged_in_batches_of <= LARGEST_BATCH:
            raise refused(f"its record judges in batches of {record.model.judged_in_batches_of}.")
        context.original.micro_batch = record.model.judged_in_batches_of
    adv_images = _bundled_examples(folder, data)
    names = list(stages_of(record)) if record.threat.norm == UNION else [record.threat.eps_text]
    balls = {name: threat_at(record, name) for name in names}
    for ball in balls.values():
        check_ball(data.images, ball)
    replayed = replay(folder, record, data)
    draws = min(max(record.model.judge_draws, DRAWS[0]), DRAWS[1])
    judged = judge_here(context, data, adv_images, list(balls.values()), draws=draws, seed=context.seed + 1)
    judged = replace(judged, verdict=_in_own_balls(judged.verdicts, list(balls), replayed))
    unfounded, rounding = ([], 0) if judged.wavering else _unfounded(context, data, adv_images, replayed, judged)
    stated = record.model_dump()
    proven, unproven = check_certificates(folder, record, model, data, balls.get(record.threat.eps_text), replayed)
    rows = (replayed.clean_correct & ~replayed.broken & ~replayed.undecided).double()
    correct = torch.where(replayed.undecided, 0.0, judged.correct) if judged.wavering else rows
    seen_fields, unseen = compare(stated, _seen(record, context, data, judged, same_data=same_data))
    derived_fields, misstated = compare(stated, derive(record, replayed, correct))
    problems = [
        *_outside(data, judged.verdict),
        *unfounded,
        *unproven,
        *replayed.problems,
        *misstated,
        *unseen,
        *_accuracies(record, context, data, adv_images, replayed, judged, correct, rounding),
        *contradictions(record),
        *other_manifest(manifest, record),
    ]
    problems = list(dict.fromkeys(problems))
    judged_fields = ["clean_accuracy.value", "robust_accuracy.value", "robust_accuracy_8bit"]
    rechecked = [*seen_fields, *(f"record.{name}" for name in judged_fields)]
    verification = summarise(judged, list(balls.values()), undecided=replayed.undecided)
    if record.certification is not None:
        rechecked += ["record.certification.n_certified", "record.certification.accuracy"]
    classes = fields_of(stated, rechecked, derived_fields, sample_fields(random=judged.wavering))
    if replayed.has_certificates:
        classes["rechecked"] += [
            f"samples[clean].{CERTIFIED_MARGIN.name}",
            "certificates.position",
            "certificates.slopes",
        ]
        classes["consistent"] += ["certificates.margin"]
    return verification.model_copy(
        update={
            "n_certified": int(proven.sum()),
            "at_least": float(proven.double().mean()) if record.certification is not None else None,
            "accepted": not problems,
            "problems": problems,
            "within_rounding": rounding,
            **classes,
        }
    )


def _in_own_balls(verdicts: list[Verdict], names: list[str], replayed: Replay) -> Verdict:
    """Return one verdict in which each example of a union was judged in the ball in which it is said to have been found."""
    which = torch.tensor([names.index(row["eps"]) if row and row["eps"] in names else 0 for row in replayed.kept])
    chosen = {}
    for name in verdicts[0].tensors():
        parts = torch.stack([getattr(verdict, name) for verdict in verdicts])
        chosen[name] = parts[which, torch.arange(len(which))]
    return replace(verdicts[0], **chosen)


def _bundled_examples(folder: Path, data: ImageDataset) -> Tensor:
    """Return the final examples of a bundle (n, C, H, W), which are of exactly these samples with these labels."""
    try:
        tensors = load_file(folder / EXAMPLES)
    except (SafetensorError, OSError, ValueError) as error:
        raise refused(f"{EXAMPLES} cannot be read: {str(error)[:200]}") from None
    if sorted(tensors) != ["images", "index", "labels"]:
        raise refused(f"{EXAMPLES} holds {sorted(tensors)}, not images, labels and index.")
    if {tensors["index"].dtype, tensors["labels"].dtype} != {torch.int64}:
        raise refused("the labels and indices of its examples are no whole numbers of 64 bits.")
    if tensors["index"].tolist() != data.index.tolist():
        raise refused("its examples are not of the samples that its record names.")
    if tensors["labels"].tolist() != data.labels.tolist():
        raise refused("the labels of its examples are not those of the data.")
    images = tensors["images"]
    if images.shape != data.images.shape or images.dtype != torch.float32:
        raise refused(
            f"its examples are {images.dtype} of shape {tuple(images.shape)}, the images torch.float32 of shape "
            f"{tuple(data.images.shape)}."
        )
    return images


def check_ball(images: Tensor, threat: ThreatModel) -> None:
    """Raise UserError for a ball that means nothing: one in which random noise lies, for half of the images (n, C, H, W)."""
    noise = SampleRng(0, torch.arange(len(images))).fold("noise").uniform(images.shape[1:]).to(images)
    inside = threat.distance(images, noise) <= threat.radius
    if float(inside.double().mean()) >= 0.5:
        raise UserError(
            f"A ball of {threat} is as large as the space of images: random noise lies in it. What holds there says nothing.",
            code="vacuous-ball",
        )


def judge_here(
    context: Context, data: ImageDataset, adv_images: Tensor, balls: Sequence[ThreatModel], *, draws: int, seed: int
) -> Judged:
    """Ask the verifier's own model about clean images and examples; whether it answers at random is found out here.

    Args:
        context: holds the model.
        data: images with labels.
        adv_images: the examples, in the order of the data.
        balls: the threat model; several are those of a union.
        draws: calls of a model that answers at random; another is called once.
        seed: of the global random state while the model is asked.
    """
    original = context.original
    images, examples, labels = (t.to(context.device) for t in (data.images, adv_images, data.labels))
    few = slice(0, context.micro_batch)
    with exact_fp32(), isolated(original.model), torch.no_grad():
        logits = original(images[few]).double()
    check_outputs(logits, data.labels)
    first = judge_images(original, images, labels, seed=context.seed)
    steady = examine(original, images, labels, first, seed=context.seed)
    randomized = steady.randomized
    draws = draws if randomized else 1
    verdicts = [judge(original, images, examples, labels, ball, draws=draws, seed=seed) for ball in balls]
    return Judged(
        verdict=verdicts[0],
        verdicts=verdicts,
        answers=judge_images(original, images, labels, draws=draws, seed=seed),
        draws=draws,
        randomized=randomized,
        batch_dependent=steady.batch_dependent,
        num_classes=logits.shape[1],
        rounding=_rounding_of(logits, labels[few]),
    )


def _rounding_of(logits: Tensor, labels: Tensor) -> float:
    """Return up to which margin a claim may fail by rounding, from some logits (n, K) float64.

    By the size of the margins: of a model that divides its logits by a million, all would be below any fixed number. A
    constant that is added to all logits, or to a class that is ruled out, adds next to nothing.
    """
    margins = margin(logits, labels)
    decisive = logits.gather(1, labels[:, None])[:, 0], logits.gather(1, labels[:, None])[:, 0] - margins

    def largest(values: Tensor) -> float:
        finite = values[values.isfinite()].abs()
        return float(finite.max()) if len(finite) else 0.0

    return ROUNDING * largest(margins) + OF_LOGITS * max(map(largest, decisive))


def summarise(judged: Judged, balls: Sequence[ThreatModel], *, undecided: Tensor | None = None) -> Verification:
    """Return what was seen, as a verification without problems; `undecided` (n,) are samples that a bundle leaves open."""
    n, wrong = len(judged.correct), judged.answers.is_adv
    broken = ~wrong & judged.verdict.is_adv
    undecided = torch.zeros(n, dtype=torch.bool) if undecided is None else undecided
    return Verification(
        accepted=True,
        n=n,
        threat=Threat(
            norm=UNION if len(balls) > 1 else balls[0].norm,
            eps=balls[0].radius,
            eps_text=union_name(balls) if len(balls) > 1 else balls[0].eps_text,
        ),
        clean_accuracy=float(judged.answers.correct_share.mean()),
        robust_accuracy=float(torch.where(undecided, 0.0, judged.correct).mean()),
        at_most=float(judged.correct.mean()),
        n_misclassified=int(wrong.sum()),
        n_broken=int(broken.sum()),
        n_left=n - int((wrong | broken).sum()),
        n_undecided=int(undecided.sum()),
        randomized=judged.randomized,
        violations=int((judged.verdict.violation != 0).sum()),
        violation_kinds=violation_counts(judged.verdict.violation),
    )


def _seen(
    record: EvaluationRecord, context: Context, data: ImageDataset, judged: Judged, *, same_data: bool
) -> dict[str, Any]:
    """Return what of a record is seen here, on the verifier's own data and model, in the shape of a record."""
    seen: dict[str, Any] = {"fingerprint": data.fingerprint, "image_shape": list(data.images.shape[1:])}
    if data.selection != "given" or record.data.selection == "given":  # from tensors alone the split cannot be known
        seen |= {"n_total": data.n_total, "selection": data.selection}
    if same_data:
        seen |= {"class_names": data.class_names}
    model = context.original.model
    return {
        "n": len(data),
        "data": seen,
        "model": {
            "architecture": type(inner(model)).__name__,
            "fingerprint": fingerprint(model),
            "num_classes": judged.num_classes,
            "class_order": order_of(model),
            "parameters": count_parameters(model),
            "randomized": judged.randomized,
            "batch_dependent": judged.batch_dependent,
            **({} if judged.randomized else {"judge_draws": 1}),
        },
    }


# --- what the examples show of each sample ---


def _outside(data: ImageDataset, verdict: Verdict) -> list[str]:
    rows = (verdict.violation != 0).nonzero()[:NAMED, 0].tolist()
    return [f"Sample {int(data.index[row])}: the example lies outside the threat model." for row in rows]


def _unfounded(
    context: Context, data: ImageDataset, adv_images: Tensor, replayed: Replay, judged: Judged
) -> tuple[list[str], int]:
    """Return which claims of single samples do not hold, in words, and how many fail within rounding."""
    problems: list[str] = []
    verdict, answers, room = judged.verdict, judged.answers, judged.rounding

    def name(rows: Tensor, problem: str) -> None:
        problems.extend(f"Sample {int(data.index[row])}{problem}" for row in rows.nonzero()[:NAMED, 0].tolist())

    close = verdict.margin.abs() <= room
    failing = replayed.broken & ~verdict.is_adv
    name(failing & ~close, " is claimed to be broken, but the model classifies it right.")
    hidden = ~replayed.broken & replayed.clean_correct & verdict.is_adv
    name(hidden & ~close, " is claimed to be robust, but its example breaks it.")
    clean = _stated(replayed.clean, "margin")
    wrong = replayed.clean_correct == answers.is_adv
    wrong &= answers.margin.abs() > room
    wrong |= _far(clean, answers.margin, room)
    wrong |= _other_class(context, data.images, data.labels, replayed.clean, answers.prediction, room)
    name(wrong, ": the clean prediction is not the one that the record states.")
    kept = torch.tensor([row is not None for row in replayed.kept])
    rows = [row or {} for row in replayed.kept]
    name(
        kept & _far(_stated(rows, "margin"), verdict.margin, room), ": the margin of its example is not the one stated."
    )
    reach = 1e-6 + 1e-5 * verdict.distance.abs()
    name(
        kept & _far(_stated(rows, "distance"), verdict.distance, reach),
        ": its example lies at another distance than stated.",
    )
    other = _other_class(context, verdict.adv_images, data.labels, rows, verdict.prediction, room)
    name(kept & other, ": the prediction on its example is not the one stated.")
    moved = (adv_images - data.images).abs().flatten(1).amax(dim=1) > 1e-5
    name(~kept & moved, ": its example is none that an attack is said to have found.")
    return problems, int(((failing | hidden) & close).sum())


def _stated(rows: list[dict[str, Any]], name: str) -> Tensor:
    values = [row.get(name) for row in rows]
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _far(stated: Tensor, here: Tensor, room: float | Tensor) -> Tensor:
    """Tell which stated numbers (n,) are not those here, within room; infinite ones must be the same."""
    return ~((stated == here) | ((stated - here).abs() <= room))


def _other_class(
    context: Context, images: Tensor, labels: Tensor, rows: list[dict[str, Any]], here: Tensor, room: float
) -> Tensor:
    """Tell which stated predictions are not the model's, where no other class is as near as rounding."""
    stated = torch.tensor([-1 if (value := row.get("prediction")) is None else value for row in rows])
    other = stated != here
    for row in other.nonzero()[:, 0].tolist():
        with exact_fp32(), isolated(context.original.model), torch.no_grad():
            logits = context.original(images[row : row + 1].to(context.device))[0].double().cpu()
        known = 0 <= int(stated[row]) < len(logits)
        other[row] = not known or not bool(logits[stated[row]] >= logits.max() - room)
    return other


# --- accuracies ---


def _accuracies(
    record: EvaluationRecord, context: Context, data: ImageDataset, adv_images: Tensor, replayed: Replay, judged: Judged,
    correct: Tensor, rounding: int,
) -> list[str]:  # fmt: skip
    """Hold the stated accuracies against those that the referee finds here, with room for rounding or for fresh draws."""
    n = len(correct)
    in_place = torch.where(replayed.undecided, 0.0, judged.correct)
    shares = [("clean", judged.answers.correct_share), ("robust", in_place), ("8-bit", judged.correct)]
    room = {name: rounding / n + 1e-9 for name, _ in shares}
    if judged.randomized:
        room = {name: _spread(share, judged.draws, record.model.judge_draws) for name, share in shares}
    rounded, near = _rounded(context, data, adv_images, replayed, judged, in_place if judged.wavering else correct)
    numbers = (
        ("a clean accuracy of", record.clean_accuracy.value, float(judged.answers.correct_share.mean()), room["clean"]),
        ("a robust accuracy of", record.robust_accuracy.value, float(in_place.mean()), room["robust"]),
        ("an 8-bit robust accuracy of", record.robust_accuracy_8bit, float(rounded.mean()), room["8-bit"] + near / n),
    )
    return [
        f"The record states {name} {'nothing' if stated is None else f'{stated:.6g}'}; the evidence shows {shown:.6g}."
        for name, stated, shown, allowed in numbers
        if stated is None or not abs(stated - shown) <= allowed
    ]


def _rounded(
    context: Context, data: ImageDataset, adv_images: Tensor, replayed: Replay, judged: Judged, correct: Tensor
) -> tuple[Tensor, int]:
    """Return the share of right answers after rounding to 8 bits (n,), and how many of these are as near as rounding."""
    rounded, rows = correct.clone(), replayed.broken.nonzero()[:, 0]
    if not len(rows):
        return rounded, 0
    if judged.batch_dependent:  # the company matters: all of them together, as the run judged them
        images = (adv_images * 255).round() / 255
        rounded, _ = not_above(judged.answers.correct_share, judged_afresh(context, images, data.labels))
        return torch.where(replayed.undecided, 0.0, rounded), 0
    images = (adv_images[rows].to(context.device) * 255).round() / 255
    answers = judge_images(
        context.original, images, data.labels[rows].to(context.device), draws=judged.draws, seed=context.seed + 2
    )
    rounded[rows] = answers.correct_share
    return torch.where(replayed.undecided, 0.0, rounded), int((answers.margin.abs() <= judged.rounding).sum())


def _spread(share: Tensor, draws: int, stated_draws: int) -> float:
    """Return how far the mean of expected shares (n,) may lie from the same over other draws, beyond all chance."""
    smooth = (share * draws + 1) / (draws + 2)
    variance = float((smooth * (1 - smooth)).sum()) * (1 / draws + 1 / stated_draws) / len(share) ** 2
    return DEVIATIONS * math.sqrt(variance) + 1e-9


# --- examples of other tools ---


def recheck_examples(context: Context, matched: Match, threat: ThreatModel, *, draws: int = DRAWS[0]) -> Verification:
    """Judge adversarial examples from any tool.

    Args:
        context: holds the verifier's own model.
        found: the examples, matched with the verifier's own samples.
        threat: the threat model.
        draws: calls of a model that answers at random.

    Raises:
        UserError: for a ball in which anything lies, or a model that does not know the labels.
    """
    check_ball(matched.data.images, threat)
    judged = judge_here(context, matched.data, matched.adv_images, [threat], draws=draws, seed=context.seed)
    return summarise(judged, [threat]).model_copy(update={"notes": list(matched.notes)})
