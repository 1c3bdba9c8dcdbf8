"""What somebody said of pairs: this is a duplicate, that is none. It is honoured, and it says what recall really is."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robustdup.errors import UserError, user_path
from robustdup.statistics import wilson
from robustdup_detect.pairlist import Pairs, joined

FEWEST = 20  # confirmed near pairs from which a recall is told
_YES, _NO = frozenset({"1", "true", "yes", "y", "duplicate"}), frozenset({"0", "false", "no", "n", "different"})
_HOW = "It has the columns a, b (rows or files) and duplicate (true or false), one pair a line"


@dataclass(frozen=True)
class Decisions:
    """Pairs of rows (a, b) that are duplicates, and that are none."""

    same: frozenset[tuple[int, int]] = frozenset()
    different: frozenset[tuple[int, int]] = frozenset()

    def __len__(self) -> int:
        return len(self.same) + len(self.different)

    def moved(self, move: Callable[[int, int], tuple[int, int]]) -> Decisions:
        """Return the decisions on other names of the pairs."""
        same, different = (frozenset(move(*pair) for pair in pairs) for pairs in (self.same, self.different))
        return Decisions(same, different)


def read_decisions(file: str, paths_a: Sequence[str], paths_b: Sequence[str], *, within: bool) -> Decisions:
    """Read a CSV file of decisions; `paths_a`, `paths_b` are the files of the rows on each side. Raises UserError.

    The columns are `a`, `b` (or row_a, row_b, path_a, path_b) and `duplicate`.
    """
    path = user_path(file)
    if not path.is_file():
        raise UserError(f"There is no file {file!r} of decisions. {_HOW}.", code="missing-file")
    rows_of = [{name: row for row, name in enumerate(names) if name} for names in (paths_a, paths_b)]
    sizes = len(paths_a), len(paths_b)
    decided: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    with path.open(
        newline="", encoding="utf-8-sig"
    ) as opened:  # as spreadsheets write them, with a mark before and with ;
        mark = ";" if ";" in opened.readline() else ","
        opened.seek(0)
        for line, content in enumerate(csv.DictReader(opened, delimiter=mark, skipinitialspace=True), start=2):
            place = f"{file}, line {line}"
            pair = [_row(content, side, rows_of[k], sizes[k], place) for k, side in enumerate("ab")]
            if within:
                pair.sort()
            if within and pair[0] == pair[1]:
                raise UserError(f"{place}: a and b are the same image. {_HOW}.", code="bad-file")
            word = str(content.get("duplicate") or "").strip().lower()
            if word not in _YES | _NO:
                raise UserError(f"{place}: duplicate is {word!r}, and must be true or false. {_HOW}.", code="bad-file")
            decided[word in _YES].add((pair[0], pair[1]))
    both = decided[True] & decided[False]
    if both:
        raise UserError(f"{file}: the pair {min(both)} is said to be a duplicate and none.", code="bad-file")
    return Decisions(frozenset(decided[True]), frozenset(decided[False]))


def _row(content: Mapping[str, Any], side: str, rows: Mapping[str, int], n: int, place: str) -> int:
    value = next((content[name] for name in (side, f"row_{side}", f"path_{side}") if content.get(name)), None)
    if value is None:
        raise UserError(f"{place}: no {side}. {_HOW}.", code="bad-file")
    value = value.strip()
    if value in rows:
        return rows[value]
    if value.isdigit() and int(value) < n:
        return int(value)
    raise UserError(f"{place}: {value!r} is neither a file of the data nor a row below {n}.", code="bad-file")


def decide(pairs: Pairs, decisions: Decisions) -> tuple[Pairs, Any]:
    """Return the pairs as they were decided, and which of them (P,) somebody decided on.

    Pairs that are none are left out; those that were not found are added, with a score of 0.
    """
    both = list(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    kept = torch.tensor([pair not in decisions.different for pair in both], dtype=torch.bool)
    missing = sorted(decisions.same - set(both))
    a, b = (torch.tensor([pair[side] for pair in missing], dtype=torch.int64) for side in (0, 1))
    n = len(missing)
    added = Pairs(
        a, b, torch.zeros(n), torch.zeros(n, dtype=torch.bool), torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(n, 1)
    )
    result = joined([pairs[kept], added])
    decided = [pair in decisions.same for pair in zip(result.a.tolist(), result.b.tolist(), strict=True)]
    return replace(result), np.array(decided, dtype=bool)


def known_recall(pairs: Pairs, decisions: Decisions) -> tuple[float, float, float, int] | None:
    """Return the share of the confirmed near pairs that a search found, its 95% interval, and their number.

    Identical pictures say nothing and are left out. None where too few pairs are confirmed.
    """
    scores = dict(zip(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True), pairs.score.tolist(), strict=True))
    near = [pair for pair in decisions.same if scores.get(pair, 0.0) != 1.0]
    if len(near) < FEWEST:
        return None
    n_found = sum(pair in scores for pair in near)
    low, high = wilson(n_found, len(near))
    return n_found / len(near), low, high, len(near)
