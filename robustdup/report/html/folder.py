"""Where pages may be written: a folder of their own. What somebody else put there stays, unless it is given up by a flag."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from robustdup.errors import RunError, UserError
from robustdup.records import write_atomic

MARKER = ".robustdup-report.json"  # names the files that a report wrote, so that the next one may replace them


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError unless pages may be written to `folder`: it is new, empty, or an earlier report."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder. Choose another --to.")
    if not folder.is_dir() or overwrite:
        return
    try:
        filled = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read: {error.strerror or error}. Choose another --to.") from None
    if filled and not (folder / MARKER).is_file():
        raise UserError(
            f"{str(folder)!r} holds something that is not a report. Choose another --to, or write into it with --overwrite."
        )


def write_files(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write files by their path inside `folder`, and remove those of an earlier report that are not written again.

    Raises UserError where a path leaves the folder, and where a file is there that no report wrote (unless `overwrite`);
    RunError where the folder cannot be written to.
    """
    check_folder(folder, overwrite=overwrite)
    earlier = _earlier(folder)
    for name in files:
        _check_name(folder, name)
        target = folder / name
        if target.is_dir():
            raise UserError(f"{str(target)!r} is a folder, where a page is to be written. Choose another --to.")
        if not overwrite and name not in earlier and target.exists():
            raise UserError(
                f"{str(target)!r} was not written by a report. Choose another --to, or replace it with --overwrite."
            )
    # The marker first: a report that is cut off is then known for what it is, and can be written again.
    _write(folder / MARKER, _marker({*earlier, *files}))
    for name, content in files.items():
        _write(folder / name, content)
    for name in earlier - set(files):
        (folder / name).unlink(missing_ok=True)
    _write(folder / MARKER, _marker(set(files)))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except RunError as error:
        raise RunError(f"{error} Choose another folder with --to.") from None


def _marker(names: set[str]) -> bytes:
    return (json.dumps({"written_by": "robustdup report", "files": sorted(names)}, indent=1) + "\n").encode()


def _earlier(folder: Path) -> set[str]:
    """Names of the files that the last report wrote here; only plain files inside the folder."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        names = {name for name in content["files"] if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if _inside(folder, name) and (folder / name).is_file()}


def _check_name(folder: Path, name: str) -> None:
    if not _inside(folder, name):
        raise UserError(f"{name!r} would be written outside {str(folder)!r}; nothing was written.")


def _inside(folder: Path, name: str) -> bool:
    """Whether a name is a plain relative path whose folders are not links to elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name:
        return False
    parents = [folder.joinpath(*path.parts[:i]) for i in range(1, len(path.parts))]
    return not any(parent.is_symlink() for parent in parents)
