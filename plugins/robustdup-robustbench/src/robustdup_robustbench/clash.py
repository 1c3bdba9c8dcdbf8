"""Is the installed `robustbench` the real one? The torchattacks wheel carries an old copy and overwrites its files.

Both wheels install a top-level package `robustbench`, and the one that is installed last wins. What an installer recorded
(file hashes in RECORD) tells whose files lie on the disk, without importing any of them.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import Distribution, PackagePath, distributions
from typing import NamedTuple

from robustdup import how_to_install

INSTALL = how_to_install("robustdup[zoo]")


class Finding(NamedTuple):
    """One thing looked at: whether it is well, what was found, and what to run where it is not."""

    ok: bool
    message: str
    command: str


def check(path: list[str] | None = None) -> list[Finding]:
    """Look at the installed robustbench for `robustdup doctor`; `path` replaces sys.path as the place to look."""
    zoo, torchattacks = _distribution("robustbench", path), _distribution("torchattacks", path)
    if zoo is None:
        message = "RobustBench's model zoo (optional) is not installed."
        if torchattacks is not None and any(_digest(torchattacks, file) for file in _files(torchattacks)):
            message += " What can be imported as 'robustbench' is an old copy that the torchattacks wheel carries."
        return [Finding(True, message, INSTALL)]
    changed = [file for file in _files(zoo) if _digest(zoo, file) != _recorded(file)]
    if not changed:
        return [Finding(True, f"robustbench {zoo.version}: its files are its own.", "")]
    names = {str(file) for file in changed}
    theirs = [file for file in _files(torchattacks) if str(file) in names] if torchattacks is not None else []
    if torchattacks is not None and any(_digest(torchattacks, file) == _recorded(file) for file in theirs):
        cause = f"the torchattacks {torchattacks.version} wheel, installed later, has overwritten them with an old copy"
    else:
        cause = "they were changed or removed, as uninstalling torchattacks does"
    count = f"{len(changed)} of its files differ" if len(changed) > 1 else "one of its files differs"
    message = f"robustbench {zoo.version} is damaged: {count} from what was installed ({changed[0]}); {cause}."
    return [Finding(False, message, how_to_install("--force-reinstall", "--no-deps", f"robustbench=={zoo.version}"))]


def _distribution(name: str, path: list[str] | None) -> Distribution | None:
    installed = distributions(name=name) if path is None else distributions(name=name, path=path)
    return next(iter(installed), None)


def _files(distribution: Distribution) -> list[PackagePath]:
    """The Python files of its top-level package `robustbench` whose hash the installer recorded."""
    files = distribution.files or []
    return [file for file in files if file.parts[0] == "robustbench" and file.suffix == ".py" and file.hash is not None]


def _recorded(file: PackagePath) -> str:
    return "" if file.hash is None else str(file.hash.value)


def _digest(distribution: Distribution, file: PackagePath) -> str:
    """The file's hash as RECORD writes it, or nothing where the file is gone."""
    try:
        with open(str(distribution.locate_file(file)), "rb") as opened:
            digest = hashlib.new(file.hash.mode if file.hash is not None else "sha256", opened.read()).digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
