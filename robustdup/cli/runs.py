"""Where a command works: a new run folder, the one that is named, or an unfinished one with its own settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from robustdup.config import Config, build, validate
from robustdup.errors import UserError
from robustdup.records.folder import latest_unfinished, saved_content

C = TypeVar("C", bound=Config)


def configuration(
    kind: type[C], key: str, fresh: Callable[[C], Path], file: str | None, overrides: list[str],
    flags: dict[str, Any], resume: str | None,
) -> tuple[C, Path]:  # fmt: skip
    """Return the configuration and the run folder; a run that is resumed by its folder alone brings its own settings.

    `key` is a setting that only this kind of run has; `fresh` names a folder where none is given. `resume` is a folder,
    or "" for that of --out or the latest unfinished run. Raises UserError.
    """
    if resume is None:
        config = build(kind, file, overrides, flags)
        out = getattr(config, "out", None)
        return config, Path(out) if out else fresh(config)
    folder = Path(resume) if resume else Path(flags["out"]) if "out" in flags else latest_unfinished(key)
    given = build(kind, file, overrides, flags).model_dump(mode="json", exclude_unset=True)
    if not folder.is_dir():
        if not resume:  # nothing to go on with yet: start
            return build(kind, file, overrides, flags), folder
        raise UserError(f"There is no run folder {str(folder)!r} to resume.", code="no-run")
    saved = validate(kind, saved_content(folder)).model_dump(mode="json")
    return build(kind, values={**saved, **given}), folder
