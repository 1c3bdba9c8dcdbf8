"""Where a command works: a new run folder, the one that is named, or an unfinished one with its own settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from robustdup.config import Config, build, validate
from robustdup.errors import UserError
from robustdup.records.folder import is_finished, is_free, latest_unfinished, saved_content, started_here

C = TypeVar("C", bound=Config)


def configuration(
    kind: type[C], key: str, fresh: Callable[[C], Path], file: str | None, overrides: list[str],
    flags: dict[str, Any], resume: str | None, *, trust: bool = False,
) -> tuple[C, Path]:  # fmt: skip
    """Return the configuration and the run folder; a run that is resumed by its folder alone brings its own settings.

    `key` is a setting that only this kind of run has; `fresh` names a folder where none is given. `resume` is a folder,
    or "" for that of --out or the latest unfinished run. A run that was not started here, under this account, brings no
    code: models in files, plugins and pickles are then named anew, or run with `trust`. Raises UserError.
    """
    if resume is None:
        config = build(kind, file, overrides, flags)
        out = getattr(config, "out", None)
        if out is not None and not out.strip():
            raise UserError("--out is empty: name a folder, or leave it out.", code="bad-value")
        return _trusted(config, trust=trust), Path(out) if out else fresh(config)
    folder = Path(resume) if resume else Path(flags["out"]) if "out" in flags else latest_unfinished(key)
    given = build(kind, file, overrides, flags).model_dump(mode="json", exclude_unset=True)
    if not folder.is_dir() or is_free(folder):
        if not resume:  # nothing to go on with yet: start
            return build(kind, file, overrides, flags), folder
        raise UserError(f"There is no run in {str(folder)!r} to resume.", code="no-run")
    saved = validate(kind, saved_content(folder)).model_dump(mode="json")
    if not is_finished(folder) and not started_here(folder):
        from robustdup.jobs.trust import check_trust

        check_trust(saved, origin=f"The run in {str(folder)!r} was not started here, and", own=given, trust=trust)
    return _trusted(build(kind, values={**saved, **given}), trust=trust), folder


def interrupted(command: str, folder: Path) -> int:
    """Say how to go on with a run that was interrupted, and return the exit code."""
    print(
        f"Interrupted. Nothing is lost: go on with\n  robustdup {command} --resume {shlex.quote(str(folder))}",
        file=sys.stderr,
    )
    return 130


def _trusted(config: C, *, trust: bool) -> C:
    if trust:
        from robustdup.jobs.trust import trust_networks

        trust_networks(config.model_dump())
    return config
