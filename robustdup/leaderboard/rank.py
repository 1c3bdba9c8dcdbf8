"""Where a record would stand on RobustBench, or why it cannot be said."""

from __future__ import annotations

import pyarrow as pa

from robustdup.leaderboard.autoattack import differences, stronger_than_standard
from robustdup.leaderboard.images import ImageCheck, check_images
from robustdup.leaderboard.table import Leaderboard, LeaderboardEntry, Result, exact_eps, load, plain_name, same_eps
from robustdup.records import Accuracy, EvaluationRecord, doubt_text
from robustdup.statistics import wilson

FULL = {"cifar10": 10_000, "cifar100": 10_000}  # samples after which no interval is needed: the whole test set


class Place(Result):
    """A place among `n_entries` published entries: for the measured value, and for both ends of its 95% interval."""

    place: int
    best: int
    worst: int
    n_entries: int
    next_better: str | None = None
    next_worse: str | None = None

    @property
    def text(self) -> str:
        """The place in words: one number, or the interval with the place of the value itself."""
        total = self.n_entries + 1
        if self.best == self.worst:
            return f"{self.place} of {total}"
        return f"{self.best} to {self.worst} of {total} (the value itself: {self.place})"


class PublishedNumbers(Result):
    """A model of RobustBench's zoo: its published numbers beside the measured ones, all in [0, 1].

    A difference is measured minus published; `inside` says whether the published number lies in the record's interval.
    """

    model_id: str
    eps: str | None
    autoattack: float | None
    external: float | None
    clean: float | None
    robust_difference: float | None
    robust_inside: bool | None
    clean_difference: float | None
    clean_inside: bool | None
    note: str = ""


class RankResult(Result):
    """Where a record would stand. Not `comparable`: no rank, and `reasons` says why.

    `made_here` is False for a record that was not written under this account: then `rests_on` says what the rank rests on.
    `autoattack` ranks AutoAttack with AutoAttack, at exactly the same eps. `robustbench` is RobustBench's own order, in
    which an external evaluation replaces AutoAttack's number. `at_most` is not a rank: a weaker attack than AutoAttack
    overestimates robustness, so that the true place is this one or worse.
    """

    comparable: bool
    reasons: list[str]
    notes: list[str]
    dataset: str | None
    threat_model: str
    eps: str
    leaderboard_eps: str | None
    leaderboard_date: str
    leaderboard_source: str
    n: int
    robust_accuracy: Accuracy
    images: ImageCheck
    autoattack: Place | None = None
    robustbench: Place | None = None
    at_most: Place | None = None
    published: PublishedNumbers | None = None
    made_here: bool | None = None

    @property
    def rests_on(self) -> str:
        """What the result rests on, in words: empty for a run that was made here, or given in memory."""
        if self.made_here is not False:
            return ""
        return (
            "what the record states alone: it was not made here (or was changed since), so that attacks, eps and accuracies "
            "are claims; 'robustdup verify BUNDLE' proves an upper bound"
        )

    def __str__(self) -> str:
        """Return the result in one line."""
        return self.sentence()

    def sentence(self) -> str:
        """Return the result in one line, with what it rests on where that is a record that was not made here."""
        return f"By {self.rests_on}. {self._sentence()}" if self.made_here is False else self._sentence()

    def _sentence(self) -> str:
        board = f"RobustBench {self.dataset} {self.threat_model} {self.leaderboard_eps}"
        if self.autoattack is not None:
            own = f"; {self.robustbench.text} in RobustBench's own order" if self.robustbench else ""
            return (
                f"{board}: place {self.autoattack.text} by AutoAttack{own} "
                f"(table of {self.leaderboard_date}; {self.images.text})."
            )
        if self.at_most is not None:
            return (
                f"{board}: no rank, only a bound: at best place {self.at_most.best} of {self.at_most.n_entries + 1}, "
                f"because {self.reasons[0]}; a weaker attack overestimates robustness."
            )
        return f"No RobustBench rank: {'; '.join(reason.rstrip('.') for reason in self.reasons)}."


def position(
    record: EvaluationRecord, samples: pa.Table | None = None, table: Leaderboard | None = None, *,
    made_here: bool | None = None,
) -> RankResult:  # fmt: skip
    """Return where a record would stand, or why it cannot be compared.

    Args:
        record: the record.
        samples: its samples.parquet; without it the images can only be told by the name of the data.
        table: the published results; those that ship, or were fetched, if not given.
        made_here: whether the record was read from a file that was written under this account; None for one in memory.
    """
    table = table if table is not None else load()
    images = check_images(record, samples)
    doubt = doubt_text(record)
    reasons = [f"the robust accuracy is an upper bound that is not to be believed, {doubt}"] if doubt else []
    reasons += images.reasons
    dataset, norm = images.dataset, record.threat.norm
    board_eps = None
    if dataset is not None and (dataset, norm) not in table.boards:
        there = ", ".join(threat for name, threat in table.boards if name == dataset and threat != "corruptions")
        reasons.append(f"RobustBench has no {norm} leaderboard for {dataset} (it has {there})")
    elif dataset is None and all(norm != threat for _, threat in table.boards):
        reasons.append(f"RobustBench has no {norm} leaderboard")
    elif dataset is not None:
        board_eps = table.eps(dataset, norm)
        if board_eps is not None and not same_eps(record.threat.eps_text, board_eps):
            reasons.append(_other_eps(record.threat.eps_text, board_eps, dataset, norm))
    reasons += _unfit(record)
    attack_reasons = differences(record)
    result = RankResult(
        comparable=not reasons and not attack_reasons,
        reasons=reasons + attack_reasons,
        notes=_notes(record, images),
        dataset=dataset,
        threat_model=norm,
        eps=record.threat.eps_text,
        leaderboard_eps=board_eps,
        leaderboard_date=table.date,
        leaderboard_source=table.source,
        n=record.n,
        robust_accuracy=record.robust_accuracy,
        images=images,
        made_here=made_here,
    )
    if dataset is None or (dataset, norm) not in table.boards:
        return result
    own = zoo_entry(record, table.boards[dataset, norm])
    if own is not None:
        result.published = _published(record, own, attack_reasons)
    if not reasons:
        _fill_places(result, record, [e for e in table.boards[dataset, norm] if e is not own], attack_reasons)
    return result


def zoo_entry(record: EvaluationRecord, board: tuple[LeaderboardEntry, ...]) -> LeaderboardEntry | None:
    """Return the published entry of a model `robustbench:NAME`; None for other models and unknown names."""
    source, colon, rest = record.model.spec.partition(":")
    if not colon or source.lower() != "robustbench":
        return None
    name = plain_name(rest.split("/")[-1])
    return next((entry for entry in board if plain_name(entry.model_id) == name), None)


def place_among(entries: list[tuple[str, float]], accuracy: Accuracy, *, exact: bool) -> Place:
    """Return the place of an accuracy in [0, 1] among (name, percent); `exact`: the interval is not used."""
    values = sorted(entries, key=lambda pair: -pair[1])

    def place(share: float) -> int:
        return 1 + sum(percent > 100 * share + 1e-6 for _, percent in values)

    value = place(accuracy.value)
    better, worse = values[: value - 1], values[value - 1 :]
    return Place(
        place=value,
        best=value if exact else place(accuracy.high),
        worst=value if exact else place(accuracy.low),
        n_entries=len(values),
        next_better=better[-1][0] if better else None,
        next_worse=worse[0][0] if worse else None,
    )


def _predicted(record: EvaluationRecord, dataset: str | None) -> Accuracy:
    """The robust accuracy with the interval that predicts the leaderboard's whole test set.

    The record's interval is about images of this kind at large; the board is about its own test set alone. So Wilson's
    interval is narrowed by the finite-population correction (Cochran, Sampling Techniques, 1977, section 3.6).
    """
    full, accuracy = FULL.get(dataset or ""), record.robust_accuracy
    if full is None or record.n >= full:
        return accuracy
    low, high = wilson(accuracy.value * record.n, record.n, population=full)
    return Accuracy(value=accuracy.value, low=low, high=high)


def _fill_places(
    result: RankResult, record: EvaluationRecord, entries: list[LeaderboardEntry], attack_reasons: list[str]
) -> None:
    accuracy = _predicted(record, result.dataset)
    same = [e for e in entries if e.eps is not None and same_eps(e.eps, record.threat.eps_text)]
    by_autoattack = [(e.model_id, e.autoattack_acc) for e in same if e.autoattack_acc is not None]
    own_order = [(e.model_id, e.robust_acc) for e in entries if e.robust_acc is not None]
    exact = result.n >= FULL.get(result.dataset or "", 10**9)
    if attack_reasons:
        if not stronger_than_standard(record):
            result.at_most = place_among(by_autoattack, accuracy, exact=exact)
        return
    result.autoattack = place_among(by_autoattack, accuracy, exact=exact)
    result.robustbench = place_among(own_order, accuracy, exact=exact)
    left_out = len(entries) - len(same)
    if left_out:
        result.notes.append(f"{left_out} published entries at another eps are left out of the rank by AutoAttack")


def _other_eps(eps: str, board_eps: str, dataset: str, norm: str) -> str:
    ours, theirs = exact_eps(eps), exact_eps(board_eps)
    close = ours is not None and theirs is not None and abs(float(ours - theirs)) < 0.05 * float(theirs)
    hint = f": {eps} is not {board_eps} = {float(theirs):.5f}…" if close and theirs is not None else ""
    return f"eps is {eps}, the {dataset} {norm} leaderboard has {board_eps}{hint}"


def _unfit(record: EvaluationRecord) -> list[str]:
    """What in the record itself forbids a rank, whatever the leaderboard."""
    model, n = record.model, record.n
    same_model = model.attack_model is None or model.attack_model_fingerprint == model.fingerprint
    signs = (
        (record.status != "complete", f"the run is not complete ({record.status}); continue it with --resume"),
        (record.n_undecided, f"{record.n_undecided} of {n} samples are undecided: an attack did not finish on them"),
        (record.n_not_attacked, f"{record.n_not_attacked} of {n} samples were not attacked"),
        (model.randomized, "the model is randomised; RobustBench takes deterministic models only"),
        (model.batch_dependent, "the model's answers depend on which images share a batch"),
        (not same_model, f"another model was attacked ({model.attack_model}) than judged ({model.spec})"),
        (model.mode != "eval", f"the model was not in eval mode ({model.mode})"),
    )
    return [reason for is_so, reason in signs if is_so]


def _notes(record: EvaluationRecord, images: ImageCheck) -> list[str]:
    notes = [images.text] if images.text not in images.reasons else []
    if record.data.selection in ("sample", "stratified"):
        notes.append("a random subset was measured; RobustBench takes the first n")
    serious = [diagnostic.message for diagnostic in record.diagnostics if diagnostic.severity == "serious"]
    return notes + [f"a diagnostic says not to trust the number: {message}" for message in serious]


def _published(record: EvaluationRecord, entry: LeaderboardEntry, attack_reasons: list[str]) -> PublishedNumbers:
    """Compare a zoo model with its published numbers, robust ones only at the same eps."""
    note = ""
    autoattack = None if entry.autoattack_acc is None else entry.autoattack_acc / 100
    clean = None if entry.clean_acc is None else entry.clean_acc / 100
    compared = autoattack  # None where balls differ
    if entry.eps is None or not same_eps(entry.eps, record.threat.eps_text):
        note, compared = f"published at eps {entry.eps}, measured at {record.threat.eps_text}", None
    elif attack_reasons:
        note = "measured with another attack than AutoAttack"
    robust, measured_clean = record.robust_accuracy, record.clean_accuracy
    return PublishedNumbers(
        model_id=entry.model_id,
        eps=entry.eps,
        autoattack=autoattack,
        external=None if entry.external_acc is None else entry.external_acc / 100,
        clean=clean,
        robust_difference=None if compared is None else robust.value - compared,
        robust_inside=None if compared is None else _inside(compared, robust),
        clean_difference=None if clean is None else measured_clean.value - clean,
        clean_inside=None if clean is None else _inside(clean, measured_clean),
        note=note,
    )


def _inside(published: float, accuracy: Accuracy) -> bool:
    """Published numbers are rounded to 0.01%: half of that is allowed."""
    return accuracy.low - 5.1e-5 <= published <= accuracy.high + 5.1e-5
