"""RobustBench's published entries as data: a dated table that ships, and a newer one where the user fetched it.

The numbers are facts published at https://github.com/RobustBench/robustbench (folder model_info, MIT licence).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from robustdup.errors import UserError, unknown
from robustdup.exact import exact_number
from robustdup.inflation import read_text
from robustdup.records import write_atomic

SCHEMA = "robustdup.leaderboard"
VERSION = 1
SHIPPED = Path(__file__).parent / "data" / "robustbench.json"
CACHE_FILE = "leaderboard.json"


class Result(BaseModel):
    """What this room answers with: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class LeaderboardEntry(Result):
    """One published entry. Accuracies and mCE are in percent, as published; null where nothing was published.

    `eps` keeps the published text: `8/255` and `0.031` are different radii. `external_acc` is robust accuracy under a
    stronger, external attack. In corruption leaderboards `eps` is what the model was trained for, if anything.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    threat_model: str
    model_id: str
    architecture: str
    eps: str | None = None
    clean_acc: float | None = None
    autoattack_acc: float | None = None
    external_acc: float | None = None
    corruptions_acc: float | None = None
    corruptions_mce: float | None = None
    corruptions_acc_3d: float | None = None
    corruptions_mce_3d: float | None = None
    reported_acc: float | None = None
    extra_data: bool = False
    forward_passes: int = 1
    unreliable: bool = False
    venue: str = ""
    paper_title: str = ""
    paper_url: str = ""

    @property
    def robust_acc(self) -> float | None:
        """The number by which RobustBench sorts, in percent: an external evaluation replaces AutoAttack's number."""
        if self.threat_model == "corruptions":
            return self.corruptions_acc
        return self.external_acc if self.external_acc is not None else self.autoattack_acc

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies an entry: dataset, threat model and the model's name without its spelling variants."""
        return self.dataset, self.threat_model, plain_name(self.model_id)


@dataclass(frozen=True)
class Leaderboard:
    """A dated table of entries; `warning` says why a fetched table could not be used."""

    entries: tuple[LeaderboardEntry, ...]
    source: str
    licence: str
    date: str
    commit: str | None = None
    warning: str = ""

    @cached_property
    def boards(self) -> dict[tuple[str, str], tuple[LeaderboardEntry, ...]]:
        """The entries of each (dataset, threat model)."""
        keys = sorted({(entry.dataset, entry.threat_model) for entry in self.entries})
        return {key: tuple(e for e in self.entries if (e.dataset, e.threat_model) == key) for key in keys}

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets."""
        return sorted({dataset for dataset, _ in self.boards})

    def eps(self, dataset: str, threat_model: str) -> str | None:
        """Return the radius of a leaderboard as text: the one of most of its entries; None for corruptions."""
        counts = Counter(entry.eps for entry in self.boards[dataset, threat_model] if entry.eps is not None)
        return counts.most_common(1)[0][0] if counts and threat_model != "corruptions" else None

    def board(self, dataset: str, threat_model: str) -> tuple[LeaderboardEntry, ...]:
        """Return the entries of one leaderboard. Raises UserError with what there is."""
        name = choose("dataset", dataset, self.datasets)
        threats = sorted({threat for _, threat in self.boards})
        threat = choose("threat model", threat_model, threats)
        if (name, threat) not in self.boards:
            there = ", ".join(t for d, t in self.boards if d == name)
            raise UserError(
                f"RobustBench has no leaderboard for {name} with {threat}. For {name} there is: {there}.",
                code="unknown-leaderboard",
            )
        return self.boards[name, threat]


def plain_name(text: str) -> str:
    """Return a name in lower case without '-' and '_': the published spellings differ from file to file."""
    return text.lower().replace("-", "").replace("_", "")


def choose(noun: str, word: str, allowed: list[str]) -> str:
    """Return the allowed spelling of `word` (case, '-' and '_' do not matter). Raises UserError with a suggestion."""
    by_name = {plain_name(name): name for name in allowed}
    if plain_name(word) in by_name:
        return by_name[plain_name(word)]
    raise unknown(noun, word, allowed)


def exact_eps(text: str) -> Fraction | None:
    """Return a radius as an exact fraction; None where the text is not a number."""
    try:
        return exact_number(text)
    except (ValueError, ArithmeticError):
        return None


def same_eps(first: str, second: str) -> bool:
    """Say whether two radii are the same number: `8/255` and its nearest float are, `8/255` and `0.031` are not."""
    a, b = exact_eps(first), exact_eps(second)
    return a is not None and b is not None and (a == b or float(a) == float(b))


def cache_path() -> Path:
    """Return where a fetched table is kept: under ROBUSTDUP_CACHE, or under ~/.cache/robustdup."""
    folder = os.environ.get("ROBUSTDUP_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "robustdup") / CACHE_FILE


def load(path: str | Path | None = None) -> Leaderboard:
    """Return the table: from `path`, else the fetched one if there is a whole one, else the one that ships.

    Raises UserError where `path` is not a table; a damaged fetched table is left aside and named in `warning`.
    """
    if path is not None:
        return read_table(Path(path))
    fetched = cache_path()
    if not fetched.is_file():
        return read_table(SHIPPED)
    try:
        return read_table(fetched)
    except UserError as error:
        shipped = read_table(SHIPPED)
        warning = (
            f"{error} The table of {shipped.date} that ships is used; 'robustdup leaderboard refresh' writes anew."
        )
        return replace(shipped, warning=warning)


def read_table(path: Path) -> Leaderboard:
    """Read a table from a JSON file. Raises UserError where it is missing, damaged or newer than this robustdup."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise UserError(
            f"The leaderboard table {str(path)!r} cannot be read: {error.strerror or error}.", code="missing-file"
        ) from None
    except ValueError as error:
        raise UserError(
            f"The leaderboard table {str(path)!r} is not a whole JSON file ({error}).", code="damaged-file"
        ) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("entries"), list):
        raise UserError(f"{str(path)!r} is not a leaderboard table.", code="damaged-file")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"The leaderboard table {str(path)!r} has version {version}; this robustdup reads {VERSION}.",
            code="newer-version",
        )
    try:
        entries = tuple(LeaderboardEntry.model_validate(entry) for entry in content["entries"])
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{str(path)!r} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}.", code="damaged-file"
        ) from None
    return Leaderboard(
        entries=entries,
        source=str(content.get("source", "")),
        licence=str(content.get("licence", "")),
        date=str(content.get("date", "")),
        commit=content.get("commit"),
    )


def write_table(table: Leaderboard, path: Path) -> None:
    """Write a table as JSON, one entry a line, atomically. Raises RunError where it cannot."""
    head = {
        "schema": SCHEMA, "version": VERSION, "source": table.source, "licence": table.licence,
        "date": table.date, "commit": table.commit,
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    entries = ",\n".join("  " + json.dumps(entry.model_dump(), ensure_ascii=False) for entry in table.entries)
    write_atomic(path, ("{\n" + "\n".join(lines) + '\n "entries": [\n' + entries + "\n ]\n}\n").encode())
