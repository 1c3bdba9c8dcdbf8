"""What follows from a bundle's own rows: counts, shares, intervals, tables. A record must state exactly that.

Nothing here asks a model. What is derived has the shape of a record with only the fields that follow, so that the fields
that are compared are also the list of those that were.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustdup.config import parse_attacks
from robustdup.errors import UserError
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.record import interval_text
from robustdup.evaluation.summary import class_results, distance_summary
from robustdup.evidence.replay import EpsReplay, Replay, Row, is_certified, stages_of, threat_at
from robustdup.records import UNION, DataInfo, EvaluationRecord, ModelInfo, Outcome
from robustdup.threat import ThreatModel
from robustdup.union import parse_balls

ROOM = 1e-9  # of derived numbers, which are sums and quotients of the same numbers


@dataclass(frozen=True)
class Exactly:
    """A mapping or list that must have exactly these members; others may have more than is compared."""

    content: Any


def derive(record: EvaluationRecord, replay: Replay, correct: Tensor) -> dict[str, Any]:
    """Return what of a record follows from the rows of its bundle, in the shape of a record.

    Args:
        record: the record, for names, which do not follow.
        replay: its rows, replayed.
        correct: (n,) float64: share of right answers on the final examples, 0 where undecided.
    """
    n, union = len(correct), record.threat.norm == UNION
    threats = [of_eps.threat for of_eps in replay.by_eps.values()]
    threat = threats[0] if union else replay.by_eps[record.threat.eps_text].threat
    stages = {text: _stages(record, replay, text) for text in replay.by_eps}
    undecided = int(replay.undecided.sum())
    nearest = [row["min_distance"] for row in replay.clean]
    rows = [row for of_eps in replay.by_eps.values() for stage in of_eps.stages for row in stage]
    reached = {row["position"] for row in rows}
    left_out = sum(
        row["outcome"] == "correct" and row["position"] not in reached and not is_certified(row) for row in replay.clean
    )
    several = len(replay.by_eps) > 1
    derived: dict[str, Any] = {
        "n": n,
        "status": "failed" if rows and all(row["outcome"] == Outcome.UNDECIDED.word for row in rows) else "complete",
        "threat": {"norm": UNION if union else threat.norm, "eps": threat.radius},
        "tolerance": max(ball.tolerance for ball in threats) if union else threat.tolerance,
        "clean_accuracy": _accuracy(replay.clean_share),
        "robust_accuracy": _accuracy(correct, undecided),
        "n_undecided": undecided,
        "n_not_attacked": left_out,
        "interval_about": interval_text(record.data.selection, n, record.data.n_total),
        "attacks": Exactly([stage for of_eps in stages.values() for stage in of_eps.content])
        if union
        else stages[record.threat.eps_text],
        "union": Exactly(_balls(record, replay) if union else []),
        "certification": _certification(record, replay),
        "curve": Exactly(_curve(record, replay, nearest) if several and not union else {}),
        "curve_attacks": Exactly(stages if several else {}),
        "per_class": Exactly(
            [
                part.model_dump()
                for part in class_results(
                    torch.tensor([row["label"] for row in replay.clean]), record.data.class_names, record.model.num_classes,
                    replay.clean_share, correct,
                )
            ]
        ),
        "passes": {
            "clean": n * record.model.judge_draws * (2 if record.model.wavering else 1),
            **{
                f"attacks_{way}": sum(attack[f"{way}_passes"] for of_eps in stages.values() for attack in of_eps.content)
                for way in ("forward", "backward")
            },
        },
    }  # fmt: skip
    derived["min_distance"] = None
    if any(distance is not None for distance in nearest):
        known = torch.tensor([math.nan if distance is None else distance for distance in nearest], dtype=torch.float64)
        value = record.robust_accuracy.value if record.model.wavering else float(correct.mean())
        distances = distance_summary(known, threat, value).model_dump()
        derived["min_distance"] = Exactly({**distances, "curve": Exactly(distances["curve"])})
    if record.model.wavering:  # accuracies are judged afresh: they are compared elsewhere, with room for other draws
        for of_eps in [derived["attacks"], *derived["curve_attacks"].content.values()]:
            of_eps.content[:] = [_without(stage, "robust_accuracy_after") for stage in of_eps.content]
        del derived["curve"]
        judged = ("robust_accuracy", "robust_accuracy_after", "at_most", "n_open")
        derived["union"].content[:] = [
            {key: value for key, value in ball.items() if key not in judged} for ball in derived["union"].content
        ]
        derived["robust_accuracy"] = _accuracy(
            torch.full((n,), record.robust_accuracy.value, dtype=torch.float64), undecided
        )
        derived["per_class"] = Exactly([_without(part, "robust_accuracy") for part in derived["per_class"].content])
    return derived


def _certification(record: EvaluationRecord, replay: Replay) -> Any:
    certified = replay.certified
    if record.certification is None and not bool(certified.any()):
        return None
    return {"n_certified": int(certified.sum()), "accuracy": _accuracy(certified.double())}


def _without(part: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != name}


def _accuracy(correct: Tensor, undecided: int = 0) -> dict[str, float]:
    """Return a share with its Wilson interval."""
    return accuracy(correct.numpy(), undecided=undecided).model_dump()


def _stages(record: EvaluationRecord, replay: Replay, text: str) -> Exactly:
    """Return what follows of the stages at one eps, or in one ball of a union."""
    ball = replay.by_eps[text]
    correct = replay.clean_correct
    broken, undecided = torch.zeros_like(correct), torch.zeros_like(correct)
    union = record.threat.norm == UNION
    for earlier in _before(replay, text) if union else []:
        broken[_rows_of(earlier.stages, Outcome.BROKEN)] = True
        undecided[_rows_of(earlier.stages, Outcome.UNDECIDED)] = True
    stages = []
    for rows in ball.stages:
        if record.individual:
            broken, undecided = torch.zeros_like(correct), torch.zeros_like(correct)
        counts = Counter(row["outcome"] for row in rows)
        broken[_positions(rows, Outcome.BROKEN)] = True
        undecided[_positions(rows, Outcome.UNDECIDED)] = True
        kinds = Counter(kind for row in rows for kind in (row["violation"] or "").split("+") if kind)
        stages.append(
            {
                "ball": text if union else "",
                "n_attacked": len(rows),
                "n_broken": counts[Outcome.BROKEN.word],
                "n_undecided": counts[Outcome.UNDECIDED.word],
                "violations": sum(bool(row["violation"]) for row in rows),
                "violation_kinds": Exactly(dict(kinds)),
                "forward_passes": max((row["forward_passes"] for row in rows), default=0),
                "backward_passes": max((row["backward_passes"] for row in rows), default=0),
                "robust_accuracy_after": float((correct & ~broken & ~undecided).sum()) / len(correct),
            }
        )
    return Exactly(stages)


def _positions(rows: list[Row], outcome: Outcome) -> list[int]:
    return [row["position"] for row in rows if row["outcome"] == outcome.word]


def _before(replay: Replay, text: str) -> list[EpsReplay]:
    """Return the balls of a union before the one of that name."""
    return list(itertools.takewhile(lambda reading: reading is not replay.by_eps[text], replay.by_eps.values()))


def _rows_of(stages: list[list[Row]], outcome: Outcome) -> list[int]:
    return [position for rows in stages for position in _positions(rows, outcome)]


def _balls(record: EvaluationRecord, replay: Replay) -> list[dict[str, Any]]:
    """Return what follows of each ball of a union."""
    is_correct = replay.clean_correct
    so_far, open_so_far = is_correct.double(), torch.zeros_like(is_correct)
    balls = []
    for ball in replay.by_eps.values():
        broken, undecided, attacked = (torch.zeros_like(is_correct) for _ in range(3))
        broken[_rows_of(ball.stages, Outcome.BROKEN)] = True
        undecided[_rows_of(ball.stages, Outcome.UNDECIDED)] = True
        attacked[[row["position"] for rows in ball.stages for row in rows]] = True
        undecided &= ~broken
        left_out = is_correct & ~attacked
        so_far = torch.where(broken, 0.0, so_far)
        open_so_far = (open_so_far | undecided) & (so_far > 0)
        alone = (is_correct & attacked & ~broken & ~undecided).double()
        after, unknown = torch.where(open_so_far, 0.0, so_far), int((left_out | undecided).sum())
        balls.append(
            {
                "norm": ball.threat.norm,
                "eps": ball.threat.radius,
                "eps_text": ball.threat.eps_text,
                "n_attacked": int(attacked.sum()),
                "n_broken": int(broken.sum()),
                "n_undecided": int(undecided.sum()),
                "n_open": int(left_out.sum()),
                "robust_accuracy": _accuracy(alone, unknown),
                "at_most": float(alone.mean()) + unknown / len(is_correct),
                "robust_accuracy_after": _accuracy(after, int(open_so_far.sum())),
            }
        )
    return balls


def _curve(record: EvaluationRecord, replay: Replay, nearest: list[float | None]) -> dict[str, Any]:
    distance = torch.tensor([math.inf if value is None else value for value in nearest], dtype=torch.float64)
    is_correct = replay.clean_correct
    broken = torch.zeros_like(is_correct)
    curve = {}
    for text, ball in replay.by_eps.items():
        broken = broken | ball.broken | (distance <= ball.threat.radius + ball.threat.tolerance)
        undecided = ball.undecided & ~broken
        standing = (is_correct & ~broken & ~undecided).double()
        curve[text] = {
            **_accuracy(standing, int(undecided.sum())),
            "eps": ball.threat.radius,
            "alone": float((is_correct & ~ball.broken & ~ball.undecided).double().mean()),
        }
    return curve


def stated_twice(
    config: Mapping[str, Any], model: ModelInfo, data: DataInfo, *, seed: int, **more: Any
) -> Iterator[tuple[str, str]]:
    """Walk (setting, what is wrong in words) of what a record states otherwise than its own settings do.

    Args:
        config: the settings.
        model: what the record says of the model.
        data: what it says of the data.
        seed: what it says of the seed.
        more: other settings that it states, by name.
    """
    stated = {"model": model.spec, "mode": model.mode, "seed": seed, **more}
    if config.get("data") != "python":
        stated |= {"data": data.spec, "split": data.split, "data_config": data.config}
    for name, value in stated.items():
        if name in config and config[name] != value:
            yield name, f"The record states {name} = {value!r}; its settings say {config[name]!r}."


def contradictions(record: EvaluationRecord) -> Iterator[str]:
    """Name what in a record contradicts its own settings: names, eps, seed, which are only stated all the same."""
    config = record.config
    own = {"attack_model": record.model.attack_model, "individual": record.individual}
    yield from (text for _, text in stated_twice(config, record.model, record.data, seed=record.seed, **own))
    if config.get("threat") is not None or ("eps" in config and "norm" in config):
        asked = _asked(config)
        if asked != {threat_at(record, text) for text in stages_of(record)}:
            settings = config.get("threat") or config["eps"]
            yield f"The record speaks of eps {', '.join(stages_of(record))}; its settings say {settings!r}."
    curves = record.curve_attacks
    whole = [attack for stages in curves.values() for attack in stages]
    if curves and record.attacks != (whole if record.threat.norm == UNION else curves.get(record.threat.eps_text)):
        yield "The attacks of the record are not those that its curve has at the largest eps."
    if record.reliable and record.unreliable_reasons:
        yield "The record states that its result is reliable, and why it is not."
    for name in ("attacks", "curve_attacks", "passes", "environment", "seconds"):
        if not all(number >= 0 for number in _numbers(record.model_dump(include={name}))):
            yield f"The record states a number below zero, or none at all, in {name}."
    for text, stages in stages_of(record).items():
        if any(
            attack.n_unchanged > attack.n_attacked
            or attack.rejected_claims > attack.violations
            or any(
                passes >= later or dropped > by_then
                for (passes, dropped), (later, by_then) in itertools.pairwise(attack.broken_after)
            )
            for attack in stages
        ):
            yield f"The counts of an attack at eps {text} contradict each other."
        for attack in stages:
            options = _asked_options(config, attack.name)
            other = [name for name, value in options.items() if attack.options.get(name, value) != value]
            if other:
                yield f"The record states that {attack.name} ran with another {other[0]} than its settings say."


def _numbers(content: Any) -> Iterator[float]:
    """Walk the numbers of plain data, but for the options of attacks, which may be any."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _numbers(value) if name != "options" else ()
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _numbers(value)
    elif isinstance(content, int | float):
        yield content


def _asked_options(config: Mapping[str, Any], attack: str) -> dict[str, Any]:
    """Return the options of an attack that settings name, as far as they are plain numbers: others may be put otherwise."""
    try:
        written = dict(parse_attacks(str(config.get("attacks", ""))))
    except UserError:
        return {}
    options = {**(config.get("options") or {}).get(attack, {}), **written.get(attack, {})}
    return {name: value for name, value in options.items() if type(value) in (int, bool)}


def _asked(config: Mapping[str, Any]) -> set[ThreatModel]:
    """Return the threat models that settings name."""
    if config.get("threat") is not None:
        return set(parse_balls(str(config["threat"])))
    texts = [text.strip() for text in str(config["eps"]).split(",") if text.strip()]
    return {ThreatModel(str(config["norm"]), text) for text in texts}


def compare(stated: Any, derived: Any, place: str = "record") -> tuple[list[str], list[str]]:
    """Return (fields that were compared, what differs in words); `derived` names the fields of `stated` that follow.

    Args:
        stated: a record as plain data.
        derived: the same with only the fields that are known; see Exactly.
        place: what to call it.
    """
    exact = isinstance(derived, Exactly)
    content = derived.content if isinstance(derived, Exactly) else derived
    if isinstance(content, dict):
        if not isinstance(stated, dict) or (exact and stated.keys() != content.keys()):
            there = sorted(stated) if isinstance(stated, dict) else stated
            return [place], [f"{place} holds {there!r}; the evidence shows {sorted(content)!r}."]
        parts = [compare(stated.get(name), value, f"{place}.{name}") for name, value in content.items()]
    elif isinstance(content, list):
        if not isinstance(stated, list) or len(stated) != len(content):
            return [place], [f"{place} has another length than the evidence shows ({len(content)})."]
        of_records = content and isinstance(content[0], dict | Exactly)  # others are one field, see `fields.leaves`
        member = f"{place}[]" if of_records else place
        parts = [compare(own, value, member) for own, value in zip(stated, content, strict=True)]
    else:
        return [place], [] if _same(stated, content) else [_difference_text(place, stated, content)]
    fields = [field for part, _ in parts for field in part] or [place]
    return list(dict.fromkeys(fields)), [problem for _, problems in parts for problem in problems]


def _same(stated: Any, derived: Any) -> bool:
    if isinstance(stated, bool) or isinstance(derived, bool) or not isinstance(derived, int | float):
        return type(stated) is type(derived) and bool(stated == derived)
    if not isinstance(stated, int | float) or math.isnan(stated):
        return False
    return bool(stated == derived) or abs(stated - derived) <= ROOM * max(1.0, abs(derived))


def _difference_text(place: str, stated: Any, derived: Any) -> str:
    name = place.removeprefix("record.")
    known = {
        "n": "a number of samples of",
        "n_undecided": "a number of undecided samples of",
        "threat.eps": "an eps of",
        "clean_accuracy.value": "a clean accuracy of",
        "robust_accuracy.value": "a robust accuracy of",
    }
    name_text = known.get(name, f"{name} =")
    return f"The record states {name_text} {_text(stated)}; the evidence shows {_text(derived)}."


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]
