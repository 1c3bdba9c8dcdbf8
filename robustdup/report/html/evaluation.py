"""The page of one evaluation: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from robustdup.errors import RobustdupError, UserError
from robustdup.leaderboard import RankResult, position
from robustdup.records import RECORD_FILE, EvaluationRecord, bound_text, doubt_text, proven_text
from robustdup.records.origin import file_made_here
from robustdup.report.format import images_taken, interval, missing, number, percent, plural, short, whole
from robustdup.report.html.board import board_section
from robustdup.report.html.evaluation_sections import (
    OUTCOME_NAMES,
    cascade_section,
    classes_section,
    confusion_section,
    curve_section,
    diagnostics_section,
    distances_section,
    gallery_section,
    union_section,
)
from robustdup.report.html.page import Figure, Notice, Page, Section, Segment, reproduce_section
from robustdup.report.runs import Run
from robustdup.report.samples import OUTCOMES, Samples, read_samples

TONES = dict(zip(OUTCOMES, ("stands", "broken", "undecided", "wrong"), strict=True))


def title(record: EvaluationRecord) -> str:
    """Return what to call an evaluation: its model."""
    return record.model.name


def evaluation_page(run: Run, name: str) -> Page:
    """Return the page of an evaluation."""
    record = run.record
    samples, notes = _samples(run)
    rank = _rank(run)
    files: dict[str, bytes] = {}
    sections = [
        union_section(record),
        cascade_section(record),
        curve_section(record),
        classes_section(record),
        confusion_section(record, samples),
        distances_section(record, samples),
        diagnostics_section(record),
        gallery_section(run, samples, name, files),
        board_section(record, rank),
        _reproduce(run),
    ]
    context = {
        "record": record,
        "subtitle": _subtitle(record),
        "notices": [*_notices(record), *(Notice("warning", note) for note in [*run.notes, *notes])],
        "figures": _figures(record, _rank_text(rank)),
        "sentence": _sentence(record, samples),
        "segments": _segments(record, samples),
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, title(record), "Evaluation", "evaluation.html.j2", context, files)


def _samples(run: Run) -> tuple[Samples | None, list[str]]:
    if run.samples is None:
        return None, []
    try:
        return read_samples(run.record, run.samples), []
    except (UserError, KeyError, ValueError, TypeError) as error:
        return None, [f"The table of samples does not fit this record: {error}"]


def _rank(run: Run) -> RankResult | str:
    try:
        return position(run.record, run.samples, made_here=file_made_here(run.folder / RECORD_FILE))
    except (RobustdupError, KeyError, ValueError) as error:
        return f"No rank: {error}"


def _rank_text(rank: RankResult | str) -> tuple[str, str]:
    """The rank as (a few words, what they mean)."""
    if isinstance(rank, str):
        return "No rank", rank
    board = f"{rank.dataset} {rank.threat_model} {rank.leaderboard_eps}"
    if rank.made_here is False:
        board = f"Stated, not checked: the record was not made here. {board}"
    if rank.autoattack is not None:
        best, worst, total = rank.autoattack.best, rank.autoattack.worst, rank.autoattack.n_entries + 1
        if best == worst:
            return f"{best} of {total}", f"{board}, by AutoAttack"
        return (
            f"{best} to {worst} of {total}",
            f"{board}, by AutoAttack; the value itself is at {rank.autoattack.place}",
        )
    if rank.at_most is not None:
        return (
            f"At best {rank.at_most.best} of {rank.at_most.n_entries + 1}",
            f"{board}; a bound, not a rank: {rank.reasons[0]}",
        )
    return "No rank", rank.reasons[0] if rank.reasons else rank.sentence()


def _subtitle(record: EvaluationRecord) -> list[str]:
    data = record.data
    return [
        f"{data.spec}, {data.split}: {images_taken(data.selection, record.n, data.n_total)}",
        record.threat.text,
        f"{record.model.architecture}, {short(record.model.parameters)} parameters",
        record.created[:10],
    ]


def partial(record: EvaluationRecord) -> list[str]:
    """Return what is missing for a whole result, in words; empty where nothing is."""
    reasons = []
    if record.status != "complete":
        reasons.append("no attack finished a single call")
    if record.n_undecided:
        reasons.append(f"{plural(record.n_undecided, 'sample')} undecided, because an attack did not finish on them")
    if record.n_not_attacked:
        reasons.append(f"{plural(record.n_not_attacked, 'sample')} not attacked")
    return reasons


def _notices(record: EvaluationRecord) -> Iterator[Notice]:
    missing_parts = partial(record)
    doubt = doubt_text(record)
    if doubt:
        yield Notice(
            "serious", f"Robust accuracy {bound_text(record)}, {doubt}.", "An upper bound that is not to be believed."
        )
    if missing_parts:
        yield Notice("serious", f"Partial result: {'; '.join(missing_parts)}.", "No rank is given while any remain.")
    serious = [sign for sign in record.diagnostics if sign.severity == "serious"]
    for sign in serious:
        yield Notice("serious", sign.message, sign.advice)
    if any(missing(a.value) for a in (record.clean_accuracy, record.robust_accuracy)):
        yield Notice("serious", "An accuracy of this record is not a number.")
    warnings = sum(sign.severity == "warning" for sign in record.diagnostics)
    if warnings:
        yield Notice("warning", f"{plural(warnings, 'warning')} about this evaluation: see Diagnostics.")
    if record.model.randomized:
        yield Notice(
            "info",
            f"The model is randomised: accuracies are expected values over {record.model.judge_draws} fresh draws, which had "
            "no part in choosing the images.",
        )


def _figures(record: EvaluationRecord, rank: tuple[str, str]) -> list[Figure]:
    clean, robust = record.clean_accuracy, record.robust_accuracy
    doubt = doubt_text(record)
    proven = f"; {proven_text(record)}" if record.certification is not None else ""
    return [
        Figure(
            "Robust accuracy", bound_text(record) if doubt else percent(robust.value), robust.value, "robust_accuracy.value",
            f"an upper bound, {doubt}" if doubt else f"95% interval {interval(robust.low, robust.high)}{proven}", big=True,
        ),
        Figure(
            "Clean accuracy", percent(clean.value), clean.value, "clean_accuracy.value",
            f"95% interval {interval(clean.low, clean.high)}",
        ),
        Figure("RobustBench", rank[0], None, "", rank[1]),
    ]  # fmt: skip


def _sentence(record: EvaluationRecord, samples: Samples | None) -> str:
    threat = record.threat.short
    if record.model.randomized or record.model.batch_dependent or samples is None or len(samples) != record.n:
        return (
            f"On {plural(record.n, 'image')}, clean accuracy {percent(record.clean_accuracy.value)} falls to "
            f"{bound_text(record) if doubt_text(record) else percent(record.robust_accuracy.value)} under attack within {threat}."
        )
    right = record.n - samples.count("wrong already")
    broken, stands, undecided = (samples.count(outcome) for outcome in ("broken", "stands", "undecided"))
    text = (
        f"Of {plural(record.n, 'image')} the model classifies {whole(right)} correctly. "
        f"Attacks within {threat} change {whole(broken)} of these answers; "
    )
    left = "none stands" if stands == 0 else f"{whole(stands)} {'stands' if stands == 1 else 'stand'}"
    if record.certification is not None:
        left += f", {whole(record.certification.n_certified)} of them by proof"
    return text + left + (f", and {plural(undecided, 'sample is', 'samples are')} undecided." if undecided else ".")


def _segments(record: EvaluationRecord, samples: Samples | None) -> list[Segment]:
    """What became of the samples, as parts of a bar; empty where it is not known sample by sample."""
    if samples is None or not len(samples) or record.model.randomized or record.model.batch_dependent:
        return []
    counts = {outcome: samples.count(outcome) for outcome in OUTCOMES}
    return [Segment(OUTCOME_NAMES[o], n, n / len(samples), TONES[o]) for o, n in counts.items() if n]


def _reproduce(run: Run) -> Section:
    record = run.record
    env = record.environment
    facts = {
        "Run": record.run_id,
        "Finished": record.created,
        "Seed": str(record.seed),
        "Model weights": record.model.fingerprint,
        "Images and labels": record.data.fingerprint,
        "Device": f"{env.device} ({env.device_name}), {plural(env.threads, 'thread')}, {plural(env.workers, 'worker')}",
        "Precision": f"attacks {env.attack_precision}, referee {env.judge_precision}" + (", TF32" if env.tf32 else ""),
        "Tolerance": number(record.tolerance, 2),
        "Passes": f"{whole(record.passes.attacks_forward)} forward and {whole(record.passes.attacks_backward)} backward by "
        f"attacks, {whole(record.passes.referee)} by the referee",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    if record.data.revision:
        facts["Data revision"] = record.data.revision
    return reproduce_section(record.command, facts, record.interval_about)
