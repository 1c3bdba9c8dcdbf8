"""Fetch RobustBench's present table: one archive of its repository, of which only the model_info JSON files are read.

Nothing is unpacked to disk. The files follow no strict schema: numbers are text, nothing is "", "null" or missing.
See https://github.com/RobustBench/robustbench/tree/master/model_info.
"""

from __future__ import annotations

import html
import http.client
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from robustdup.errors import RunError, UserError
from robustdup.leaderboard.table import Leaderboard, LeaderboardEntry, cache_path, load, read_table, write_table
from robustdup.records import now

BASE = "https://codeload.github.com/RobustBench/robustbench"
ARCHIVE = "zip/refs/heads/master"
KEPT = "The table that was there is kept."
LARGEST_ARCHIVE = 500_000_000  # bytes
LARGEST_FILE = 1_000_000
_MEMBER = re.compile(r"[^/]+/model_info/([^/]+)/([^/]+)/([^/]+)\.json")
_NOTHING = {"", "null", "none", "nan", "n/a", "-"}
_COMPARED = (
    "eps", "clean_acc", "autoattack_acc", "external_acc", "corruptions_acc", "corruptions_mce", "corruptions_acc_3d",
    "corruptions_mce_3d", "extra_data", "unreliable",
)  # fmt: skip


class Refreshed(BaseModel):
    """What a refresh brought: entries by name as dataset/threat/model, files that could not be read with the reason."""

    model_config = ConfigDict(extra="forbid")

    path: str
    date: str
    commit: str | None
    n: int
    added: list[str]
    changed: list[str]
    removed: list[str]
    skipped: list[str]


def refresh(url: str = BASE, to: str | Path | None = None, *, timeout: float = 60.0) -> Refreshed:
    """Fetch the present table, write it to `to` (default: the cache, which `load` prefers), and say what changed.

    `url` is the base under which `zip/refs/heads/master` lies, or the address of a .zip itself. Raises UserError for
    another kind of address, RunError where the archive cannot be fetched or read; the old table is then kept.
    """
    path = Path(to) if to is not None else cache_path()
    before = _before(path)
    content = download(_address(url), timeout)
    entries, skipped, commit = parse_archive(content)
    date = now()[:10]
    table = Leaderboard(entries=tuple(entries), source=url, licence="MIT (RobustBench)", date=date, commit=commit)
    write_table(table, path)
    added, changed, removed = changes(before.entries, table.entries)
    return Refreshed(
        path=str(path), date=date, commit=commit, n=len(entries),
        added=added, changed=changed, removed=removed, skipped=skipped,
    )  # fmt: skip


def download(url: str, timeout: float) -> bytes:
    """Return the bytes at an http address. Raises RunError with the reason and what is kept."""
    request = urllib.request.Request(url, headers={"User-Agent": "robustdup"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content: bytes = response.read(LARGEST_ARCHIVE + 1)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise RunError(f"{url} answered {error.code} ({error.reason}). {KEPT}", code="no-network") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise RunError(
            f"{url} cannot be fetched: {reason}. Is this machine online? {KEPT}", code="no-network"
        ) from None
    if len(content) > LARGEST_ARCHIVE:
        raise RunError(
            f"{url} is larger than {LARGEST_ARCHIVE // 10**6} MB: not RobustBench's repository? {KEPT}",
            code="bad-archive",
        )
    if expected is not None and expected.isdigit() and len(content) < int(expected):
        raise RunError(
            f"{url} was cut off after {len(content)} of {expected} bytes. Try again. {KEPT}", code="no-network"
        )
    return content


def parse_archive(content: bytes) -> tuple[list[LeaderboardEntry], list[str], str | None]:
    """Return the entries of a repository archive, the files that were skipped and why, and the commit if it is named.

    Raises RunError for a damaged archive, one with paths that lead outside, and one without entries.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _parse_members(archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise RunError(f"The archive is damaged or cut off ({error}). Try again. {KEPT}", code="damaged-file") from None


def _parse_members(archive: zipfile.ZipFile) -> tuple[list[LeaderboardEntry], list[str], str | None]:
    entries, skipped = [], []
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or member.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member.filename):
            raise RunError(
                f"The archive holds a path that leads outside it ({member.filename!r}): not used. {KEPT}",
                code="bad-archive",
            )
        match = _MEMBER.fullmatch(member.filename)
        if match is None:
            continue
        place = "/".join(match.groups())
        try:
            if member.file_size > LARGEST_FILE:
                raise ValueError(f"{member.file_size} bytes are too many for an entry")
            entries.append(parse_entry(json.loads(archive.read(member).decode("utf-8-sig")), *match.groups()))
        except (ValueError, TypeError) as error:
            skipped.append(f"{place}: {str(error).splitlines()[0]}")
    if not entries:
        raise RunError(
            f"The archive holds no readable entry under model_info. Is it RobustBench's? {KEPT}", code="bad-archive"
        )
    comment = archive.comment.decode("ascii", "replace").strip()
    return entries, skipped, comment if re.fullmatch(r"[0-9a-f]{40}", comment) else None


def parse_entry(content: Any, dataset: str, threat_model: str, model_id: str) -> LeaderboardEntry:
    """Return one model_info file as an entry. Its folder, not its own field, says which dataset it is of.

    Raises ValueError for a file that has no usable number.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")

    def accuracy(*names: str) -> float | None:
        return next((value for name in names if (value := _number(content.get(name), name)) is not None), None)

    entry = LeaderboardEntry(
        dataset=dataset,
        threat_model=threat_model,
        model_id=model_id,
        architecture=_plain(content.get("architecture")),
        eps=_eps(content.get("eps")),
        clean_acc=accuracy("clean_acc"),
        autoattack_acc=accuracy("autoattack_acc", "AA"),
        external_acc=accuracy("external"),
        corruptions_acc=accuracy("corruptions_acc", "corruptions_acc_2d"),
        corruptions_mce=accuracy("corruptions_mce", "corruptions_mce_2d"),
        corruptions_acc_3d=accuracy("corruptions_acc_3d"),
        corruptions_mce_3d=accuracy("corruptions_mce_3d"),
        reported_acc=accuracy("reported"),
        extra_data=_truth(content.get("additional_data")),
        forward_passes=int(_number(content.get("number_forward_passes"), "number_forward_passes") or 1),
        unreliable=_truth(content.get("unreliable")),
        venue=_plain(content.get("venue")),
        paper_title=_plain(content.get("name")),
        paper_url=str(content.get("link") or "").strip(),
    )
    if entry.robust_acc is None:
        raise ValueError("no robust accuracy")
    return entry


def changes(
    before: tuple[LeaderboardEntry, ...], after: tuple[LeaderboardEntry, ...]
) -> tuple[list[str], list[str], list[str]]:
    """Return names added, changed in a number or a mark, and removed. An entry under another spelling is the same."""
    by_id = {(e.dataset, e.threat_model, e.model_id): e for e in before}
    by_key = {e.key: e for e in before}
    by_facts = {_facts(e): e for e in before}
    added, changed, matched = [], [], set()
    for entry in after:
        old = by_id.get((entry.dataset, entry.threat_model, entry.model_id)) or by_key.get(entry.key)
        old = old or by_facts.get(_facts(entry))
        name = f"{entry.dataset}/{entry.threat_model}/{entry.model_id}"
        if old is None:
            added.append(name)
            continue
        matched.add((old.dataset, old.threat_model, old.model_id))
        if any(getattr(old, field) != getattr(entry, field) for field in _COMPARED):
            changed.append(name)
    removed = ["/".join(key) for key in by_id if key not in matched]
    return sorted(added), sorted(changed), sorted(removed)


def _facts(entry: LeaderboardEntry) -> tuple[Any, ...]:
    return entry.dataset, entry.threat_model, entry.paper_title.lower(), entry.clean_acc, entry.robust_acc


def _before(path: Path) -> Leaderboard:
    """The table to compare with; a damaged one is about to be replaced and counts as not there."""
    try:
        return read_table(path) if path.is_file() else load()
    except UserError:
        return load()


def _address(url: str) -> str:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("http", "https"):
        raise UserError(f"--url {url!r} is not an http or https address.", code="bad-option")
    return url if url.endswith(".zip") else f"{url.rstrip('/')}/{ARCHIVE}"


def _number(value: Any, name: str) -> float | None:
    """A number from what the files hold: text, a number, or one of several ways to write nothing."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    try:
        number = float(value.replace("%", "") if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}, not a number") from None
    if not 0 <= number <= (1000 if "mce" in name else 100):
        raise ValueError(f"{name} is {value!r}, out of range")
    return number


def _eps(value: Any) -> str | None:
    text = "" if value is None else str(value).replace(" ", "")
    return None if text.lower() in _NOTHING else text


def _truth(value: Any) -> bool:
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def _plain(value: Any) -> str:
    """Text without HTML: tags become spaces, entities their characters."""
    text = html.unescape(re.sub(r"<[^>]*>", " ", "" if value is None else str(value)))
    return re.sub(r"\s+", " ", text).strip()
