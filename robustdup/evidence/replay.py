"""What `samples.parquet` claims: read strictly, and replayed, so that who was attacked, broken and kept follows from its rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from robustdup.data.dataset import ImageDataset
from robustdup.errors import plain
from robustdup.evaluation.referee import VIOLATION_NAMES
from robustdup.evidence.bundle import refused
from robustdup.inflation import check_parquet
from robustdup.records import SAMPLES_FILE, SAMPLES_SCHEMA, UNION, AttackResult, EvaluationRecord, Outcome, load_samples
from robustdup.records.samples import CERTIFIED_MARGIN
from robustdup.threat import ThreatModel
from robustdup.union import ball_name, parse_balls

Row = dict[str, Any]
ATTACKED = (Outcome.ROBUST.word, Outcome.BROKEN.word, Outcome.UNDECIDED.word)
CLEAN = {"eps": "", "attack": "clean", "violation": "", "distance": 0.0, "forward_passes": 1, "backward_passes": 0}
NAMED = 3  # samples of each problem that are named


@dataclass(frozen=True)
class EpsReplay:
    """One eps of a run, or one ball of a union: its rows by stage, what they broke and left undecided, the worst rows.

    `share` and `margin` are those of the worst row of each sample. In a union whose balls go on from one another, all of
    this counts the balls before it too.
    """

    threat: ThreatModel
    stages: list[list[Row]]
    broken: Tensor
    undecided: Tensor
    worst: list[Row | None]
    share: list[float]
    margin: list[float]


@dataclass(frozen=True)
class Replay:
    """What the rows of a bundle say, by position: the clean rows, each eps rising (or ball of a union), and what does not fit.

    `broken` (n,) holds the samples broken at any eps, `undecided` (n,) those left at the largest. `kept` is the row of which
    the bundle holds the example, None where that is the clean image.
    """

    clean: list[Row]
    by_eps: dict[str, EpsReplay]
    broken: Tensor
    undecided: Tensor
    kept: list[Row | None]
    problems: list[str] = field(default_factory=list)

    @property
    def clean_correct(self) -> Tensor:
        """(n,) bool: classified right as they are, by what the rows say."""
        return torch.tensor([row["outcome"] == "correct" for row in self.clean])

    @property
    def certified(self) -> Tensor:
        """(n,) bool: said to be proven, so that no attack ran on them."""
        return torch.tensor([is_certified(row) for row in self.clean])

    @property
    def has_certificates(self) -> bool:
        """Whether the rows have a column of certificates."""
        return bool(self.clean) and CERTIFIED_MARGIN.name in self.clean[0]

    @property
    def clean_share(self) -> Tensor:
        """(n,) float64: share of the draws in which the clean image was classified right."""
        return torch.tensor([row["correct_share"] for row in self.clean], dtype=torch.float64)


def is_certified(row: Row) -> bool:
    """Say whether a row on a clean image says that the sample is proven to be robust."""
    margin = row.get(CERTIFIED_MARGIN.name)
    return margin is not None and margin > 0


def stages_of(record: EvaluationRecord) -> dict[str, list[AttackResult]]:
    """Return the stages of a record by the text of their eps, rising; of a union by the names of its balls, in order."""
    return dict(record.curve_attacks) or {record.threat.eps_text: record.attacks}


def threat_at(record: EvaluationRecord, text: str) -> ThreatModel:
    """Return the threat model that the stages at one eps, or in one ball of a union, work in. Raises UserError."""
    if record.threat.norm != UNION:
        return ThreatModel(record.threat.norm, text)
    balls = parse_balls(text)
    if len(balls) != 1:
        raise refused(f"{text!r} is not one ball of a union.")
    return balls[0]


def goes_on(record: EvaluationRecord) -> bool:
    """Tell whether the balls of a union were attacked only on what those before them left."""
    return record.threat.norm == UNION and not record.config.get("each_norm") and not record.individual


def _check_order(record: EvaluationRecord, stages: Mapping[str, object]) -> None:
    """Raise UserError where the stages are not those of the threat model that is stated: its balls, or rising eps."""
    if record.threat.norm == UNION:
        named = [ball_name(ball) for ball in parse_balls(record.threat.eps_text)]
        if list(stages) != named or len(named) < 2:
            raise refused("the balls of its union are not those that its stages name.")
        return
    radii = [ThreatModel(record.threat.norm, text).eps for text in stages]
    if list(stages)[-1] != record.threat.eps_text or any(a >= b for a, b in itertools.pairwise(radii)):
        raise refused("the eps of its curve do not rise to the one of its result.")


def replay(folder: Path, record: EvaluationRecord, data: ImageDataset) -> Replay:
    """Read the rows of a bundle and replay its cascade: nothing of a stage follows but from the stages before it.

    Raises UserError where rows are missing, doubled or invented, or do not speak of these samples.
    """
    stages = stages_of(record)
    rows = read_rows(folder, most=len(data) * (1 + sum(map(len, stages.values()))))
    _check_order(record, stages)
    clean = _clean_rows(rows, data)
    by_stage = _attack_rows(rows, clean, stages)
    problems = _odd_rows(rows, record)
    by_eps: dict[str, EpsReplay] = {}
    last: EpsReplay | None = None
    for text, attacks in stages.items():
        parts = [by_stage[text, i] for i in range(len(attacks))]
        start = last if last is not None and goes_on(record) else None
        last = by_eps[text] = _replay_eps(threat_at(record, text), attacks, parts, clean, record, problems, start)
    assert last is not None
    broken, undecided, kept = last.broken.clone(), last.undecided.clone(), list(last.worst)
    for (
        smaller
    ) in by_eps.values():  # what breaks a sample within a smaller ball, or in another, breaks it within the last
        for position in (smaller.broken & ~broken).nonzero()[:, 0].tolist():
            kept[position] = smaller.worst[position]
        broken |= smaller.broken
        undecided |= smaller.undecided if record.threat.norm == UNION else torch.zeros_like(broken)
    return Replay(clean, by_eps, broken, undecided & ~broken, kept, problems)


def read_rows(folder: Path, most: int | None = None) -> list[Row]:
    """Return the rows of samples.parquet. Raises UserError for other columns than it has, and for more rows than `most`."""
    path = folder / SAMPLES_FILE
    try:
        check_parquet(path)
        with pq.ParquetFile(path.absolute()) as file:
            n_rows = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise refused(f"{SAMPLES_FILE} cannot be read: {plain(error, 200)}") from None
    if most is not None and n_rows > most:
        raise refused(f"{SAMPLES_FILE} has {n_rows:,} rows; its record speaks of {most:,} at most.")
    table = load_samples(folder)
    for name in table.column_names:
        if name not in SAMPLES_SCHEMA.names and table.schema.field(name) != CERTIFIED_MARGIN:
            raise refused(f"samples.parquet has a column {name!r}, which no version writes.")
    for known in SAMPLES_SCHEMA:
        if known.name not in table.column_names or table.schema.field(known.name).type != known.type:
            raise refused(f"samples.parquet has no column {known.name!r} of type {known.type}.")
    return list(table.to_pylist())


def survivors(folder: Path) -> Tensor:
    """Return which samples (n,) bool a bundle says are right and survived everything; its rows were replayed before."""
    rows = read_rows(folder)
    n = sum(row["stage"] == -1 for row in rows)
    wrong = {row["position"] for row in rows if row["outcome"] not in ("correct", Outcome.ROBUST.word)}
    return ~_mask(wrong, n)


def _clean_rows(rows: Sequence[Row], data: ImageDataset) -> list[Row]:
    """Return the rows on clean images by position: one for each sample, of exactly these samples."""
    clean = sorted(
        (row for row in rows if row["stage"] == -1), key=lambda row: (row["position"] is None, row["position"])
    )
    if [row["position"] for row in clean] != list(range(len(data))):
        raise refused(f"samples.parquet does not hold each of the {len(data)} samples once on its clean image.")
    if [row["index"] for row in clean] != data.index.tolist():
        raise refused("its examples are not of the samples that its record names.")
    if [row["image_sha256"] for row in clean] != list(data.hashes):
        raise refused("the clean images are not those that its samples name.")
    if [row["label"] for row in clean] != data.labels.tolist():
        raise refused("the labels in samples.parquet are not those of the data.")
    for row in clean:
        if row["outcome"] not in ("correct", "misclassified") or any(
            row[name] != value for name, value in CLEAN.items()
        ):
            raise refused(f"the row of sample {row['index']} on its clean image is none that a run writes.")
        if row["margin"] is None or row["prediction"] is None or row["correct_share"] is None:
            raise refused(f"the row of sample {row['index']} on its clean image says nothing of it.")
    return clean


def _attack_rows(
    rows: Sequence[Row], clean: Sequence[Row], stages: Mapping[str, Sequence[AttackResult]]
) -> dict[tuple[str, int], list[Row]]:
    """Return the rows of attacks by (eps, stage), in order of position. Raises UserError for rows of nothing."""
    by_stage: dict[tuple[str, int], list[Row]] = {(text, i): [] for text in stages for i in range(len(stages[text]))}
    seen = set()
    for row in rows:
        if row["stage"] == -1:
            continue
        place = (row["eps"], row["stage"])
        if place not in by_stage or row["attack"] != stages[row["eps"]][row["stage"]].name:
            raise refused(
                f"samples.parquet has a row of the attack {row['attack']!r}, stage {row['stage']} at eps {row['eps']!r}, which "
                "its record does not have."
            )
        if row["position"] is None or not 0 <= row["position"] < len(clean):
            raise refused("samples.parquet has a row of a sample that is not there.")
        own = clean[row["position"]]
        if any(row[name] != own[name] for name in ("index", "label", "image_sha256")):
            raise refused(f"a row of sample {own['index']} has another index, label or image than its clean image.")
        if row["outcome"] not in ATTACKED:
            raise refused(f"a row of sample {own['index']} has the unknown outcome {row['outcome']!r}.")
        if (*place, row["position"]) in seen:
            raise refused(f"sample {own['index']} has two rows of one attack.")
        seen.add((*place, row["position"]))
        by_stage[place].append(row)
    return {place: sorted(those, key=lambda row: row["position"]) for place, those in by_stage.items()}


def _odd_rows(rows: Sequence[Row], record: EvaluationRecord) -> list[str]:
    """Name rows whose parts contradict each other, a few of each kind."""
    threats = {text: threat_at(record, text) for text in stages_of(record)}
    radii = {text: threat.radius + 2 * threat.tolerance for text, threat in threats.items()}
    odd: dict[str, list[int]] = {}
    for row in rows:
        contradiction = _contradiction(row, random=record.model.wavering, radii=radii)
        if contradiction:
            odd.setdefault(contradiction, []).append(row["index"])
    return [f"Sample {index}: {text}." for text, places in odd.items() for index in places[:NAMED]]


def _contradiction(row: Row, *, random: bool, radii: Mapping[str, float]) -> str:
    """Say in words what in a row contradicts itself; nothing where it does not."""
    judged = [row[name] for name in ("prediction", "margin", "distance", "correct_share")]
    if row["outcome"] == Outcome.UNDECIDED.word:
        return "" if judged == [None] * 4 and not row["violation"] else "it is undecided, and yet judged"
    if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in judged):
        return "a row is judged, and yet says nothing"
    if not 0 <= row["correct_share"] <= 1:
        return "a share of right answers lies outside [0, 1]"
    wrong = row["outcome"] in ("misclassified", Outcome.BROKEN.word)
    margin = row.get(CERTIFIED_MARGIN.name)
    if margin is not None and (row["stage"] >= 0 or wrong or not margin > 0):
        return "a certificate of what cannot have one"
    if wrong != (row["correct_share"] <= 0.5):
        return "outcome and share of right answers contradict each other"
    if row["stage"] >= 0 and row["min_distance"] is not None:
        return "a row of an attack has a smallest distance"
    if random:
        return ""
    if row["correct_share"] not in (0, 1):
        return "a model that answers the same each time is right in a part of the draws"
    if math.isfinite(row["margin"]) and (
        (row["prediction"] != row["label"]) != wrong
        or (row["margin"] > 0 and wrong)
        or (row["margin"] < 0 and not wrong)
    ):
        return "prediction, margin and outcome contradict each other"
    if not 0 <= row["distance"] <= radii.get(row["eps"], 0.0):
        return "a distance lies outside the ball"
    if row["violation"] and not set(row["violation"].split("+")) <= set(VIOLATION_NAMES.values()):
        return "a violation of an unknown kind"
    return ""


def _replay_eps(
    threat: ThreatModel, attacks: Sequence[AttackResult], stages: list[list[Row]], clean: list[Row],
    record: EvaluationRecord, problems: list[str], start: EpsReplay | None = None,
) -> EpsReplay:  # fmt: skip
    n = len(clean)
    share, margin = [row["correct_share"] for row in clean], [row["margin"] for row in clean]
    worst: list[Row | None] = [None] * n
    broken, undecided = set[int](), set[int]()
    if start is not None:
        share, margin, worst = list(start.share), list(start.margin), list(start.worst)
        broken, undecided = (set(mask.nonzero()[:, 0].tolist()) for mask in (start.broken, start.undecided))
    candidates = [row["position"] for row in clean if row["outcome"] == "correct" and not is_certified(row)]
    for attack, rows in zip(attacks, stages, strict=True):
        everyone = record.individual or (record.min_distance is not None and attack.kind == "minimum-norm")
        left = [position for position in candidates if everyone or position not in broken]
        if not record.model.wavering and not _are_due([row["position"] for row in rows], left, margin):
            place = f"In {ball_name(threat)}" if attack.ball else f"At eps {threat.eps_text}"
            problems.append(
                f"{place}, {attack.name} was run on {len(rows)} samples, which are not those that the attacks "
                f"before it left ({len(left)})."
            )
        for row in rows:
            position = row["position"]
            if row["outcome"] == Outcome.UNDECIDED.word:
                undecided.add(position)
                continue
            if (row["correct_share"], row["margin"]) < (share[position], margin[position]):
                share[position], margin[position], worst[position] = row["correct_share"], row["margin"], row
            if row["outcome"] == Outcome.BROKEN.word:
                broken.add(position)
    return EpsReplay(threat, stages, _mask(broken, n), _mask(undecided - broken, n), worst, share, margin)


def _are_due(attacked: list[int], left: list[int], margin: list[float]) -> bool:
    """Tell whether a stage had to run on these: on all that are left, or on those of them nearest to being broken."""
    if attacked == left:
        return True
    if not attacked or not set(attacked) <= set(left):
        return False
    nearest = sorted(left, key=lambda position: margin[position])[: len(attacked)]
    return attacked == sorted(nearest)


def _mask(positions: set[int], n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[sorted(positions)] = True
    return mask
