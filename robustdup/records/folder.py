"""The folder of a run while it goes on: one process at a time, and only with the settings that it was started with."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robustdup.errors import RunError, UserError, plain
from robustdup.inflation import read_text
from robustdup.records.base import RECORD_FILE, SAMPLES_FILE, write_atomic
from robustdup.records.origin import file_made_here, note_made_here, settings_of, was_made_here

STATE = "state"
IMAGES = "images"
CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
REFUSED_FILE = "refused.json"


def fresh_folder(*names: str) -> Path:
    """Return `runs/<time>-<names>-<four letters>` for a run without a folder of its own; of a path, its last part."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(map(_last_part, names))).strip("-")[-60:]
    return Path("runs") / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{slug}-{secrets.token_hex(2)}"


def _last_part(name: str) -> str:
    """Return a short word for a model or dataset: digits for a/b/digits/, file.py:make for a/file.py:make@b/weights.pth."""
    kind, rest = re.match(r"((?:[a-z][a-z0-9-]+:)?)(.*)", name.partition("@")[0], flags=re.DOTALL).groups()  # type: ignore[union-attr]
    last = Path(rest.rstrip("/\\").replace("\\", "/")).name if rest.strip("./\\") else Path(rest or ".").resolve().name
    return f"{kind}{last}"


def saved_content(folder: Path) -> dict[str, Any]:
    """Return the configuration with which the run in `folder` was started. Raises UserError where there is none."""
    for path, key in ((folder / STATE / CONFIG_FILE, None), (folder / RECORD_FILE, "config")):
        if path.is_file():
            try:
                content = json.loads(read_text(path))
                saved = content if key is None else content[key]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{str(path)!r} is not a whole JSON file ({plain(error, 200)}).", code="damaged-record"
                ) from None
            if not isinstance(saved, dict):
                raise UserError(
                    f"{str(path)!r} is not a whole JSON file (it holds a {type(saved).__name__}).",
                    code="damaged-record",
                )
            return saved
    raise UserError(f"{str(folder)!r} holds no run to resume.", code="no-run")


def start(folder: Path, content: Mapping[str, Any], *, resume: bool, elsewhere: tuple[str, ...]) -> None:
    """Start a run folder, or check that the one to resume was started with the same settings besides `elsewhere`."""
    try:
        folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links that go round, a NUL in the name
        raise UserError(
            f"{plain(folder)!r} names no folder ({error}). Choose another --out.", code="not-a-folder"
        ) from None
    state = folder / STATE / CONFIG_FILE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder. Choose another --out.", code="not-a-folder")
    if state.is_file():
        if not resume:
            kind = "a run" if (folder / RECORD_FILE).is_file() else "an unfinished run"
            raise UserError(
                f"{str(folder)!r} holds {kind}. Go on with it by --resume, or choose another --out.",
                code="unfinished-run",
            )
        check_same(folder, content, saved_content(folder), elsewhere=elsewhere)
        check_not_refused(folder)
        return
    if not is_free(folder):
        raise UserError(
            f"{str(folder)!r} is not empty. Choose another --out; nothing is overwritten.", code="not-empty"
        )
    written = (json.dumps(content, indent=2) + "\n").encode()
    note_made_here(settings_of(folder, written))
    write_atomic(state, written)


def is_free(folder: Path) -> bool:
    """Tell whether a run may start in `folder`: it holds nothing, or what a start left behind that found no room on the disk."""
    left = re.compile(rf"{LOCK_FILE}|\.{re.escape(CONFIG_FILE)}\..*\.part")
    inside = [path.relative_to(folder) for path in folder.rglob("*")]
    return all(path == Path(STATE) or (path.parent == Path(STATE) and left.fullmatch(path.name)) for path in inside)


def is_finished(folder: Path) -> bool:
    """Tell whether a run folder holds a record and nothing of a run that could go on."""
    return (folder / RECORD_FILE).is_file() and not (folder / STATE / CONFIG_FILE).is_file()


def started_here(folder: Path) -> bool:
    """Tell whether the run in `folder` was started in this very place under this account, or finished under it."""
    state = folder / STATE / CONFIG_FILE
    try:
        return was_made_here(settings_of(folder, state.read_bytes()))
    except OSError:
        return file_made_here(folder / RECORD_FILE)


def refuse(folder: Path, reason: str) -> None:
    """Note in a run folder that its results cannot be trusted, which no resumed run may forget."""
    write_atomic(folder / STATE / REFUSED_FILE, (json.dumps({"reason": reason}) + "\n").encode())


def check_not_refused(folder: Path) -> None:
    """Raise RunError where the run in `folder` was refused."""
    path = folder / STATE / REFUSED_FILE
    if not path.exists():
        return
    try:
        reason = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        reason = "its results cannot be trusted."
    raise RunError(
        f"The run in {str(folder)!r} was refused, and stays so: {reason} Start again in another --out.",
        code="refused-run",
    )


def withdraw(folder: Path) -> None:
    """Remove a run folder that was started in vain, so that the corrected command finds its --out free."""
    shutil.rmtree(folder / STATE, ignore_errors=True)
    shutil.rmtree(folder / IMAGES, ignore_errors=True)
    for name in (RECORD_FILE, SAMPLES_FILE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds more
        folder.rmdir()


@contextlib.contextmanager
def freed_by_mistakes(
    folder: Path, *, resume: bool, has_begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:  # fmt: skip
    """Withdraw a new run that a user's mistake ends before anything is done that is worth going on with."""
    try:
        yield
    except UserError:
        if not resume and not has_begun():
            withdraw(folder)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; a process that dies lets go. Raises UserError where another one holds it."""
    lock = FileLock(folder / STATE / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process is at work in {str(folder)!r}. Wait for it, or choose another --out.",
            code="folder-in-use",
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_same(
    folder: Path, content: Mapping[str, Any], theirs: Mapping[str, Any], *, elsewhere: tuple[str, ...]
) -> None:
    """Raise UserError where the run in `folder` was started with settings `theirs` that differ from `content`.

    Keys in `elsewhere` do not change what is computed and may differ.
    """
    ours = {key: value for key, value in content.items() if key not in elsewhere}
    different = [key for key in ours if ours[key] != theirs.get(key)]
    if different:
        key = different[0]
        raise UserError(
            f"The run in {str(folder)!r} was started with {key}={theirs.get(key)!r}, not {ours[key]!r}. "
            "Resume it with the same settings, or choose another --out.",
            code="other-run",
        )


def latest_unfinished(key: str) -> Path:
    """Return the latest unfinished run in `runs` whose configuration has a key that tells its kind.

    Raises UserError where there is none.
    """
    saved = sorted(Path("runs").glob(f"*/{STATE}/{CONFIG_FILE}"), key=lambda path: path.stat().st_mtime)
    folders = [path.parent.parent for path in saved if key in saved_content(path.parent.parent)]
    if not folders:
        raise UserError("There is no unfinished run in 'runs'. Name its folder: --resume FOLDER.", code="no-run")
    return folders[-1]
