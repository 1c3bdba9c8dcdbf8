"""A new plugin package from the template beside this file: an attack, its registration, its tests."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from robustdup.errors import UserError

_FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "init.py.in": "src/{module}/__init__.py",
    "attack.py.in": "src/{module}/attack.py",
    "test_attack.py.in": "tests/test_attack.py",
}


def new_package(attack: str, to: str | Path) -> list[Path]:
    """Write a package that registers one attack, ready to be installed, tested and changed.

    Args:
        attack: The name of the attack, such as "towards-grey".
        to: Folder of the package; it must be empty or not be there.

    Returns:
        The files that were written, in order.

    Raises:
        UserError: bad-value where the name cannot be that of an attack, not-empty where the folder holds something.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", attack):
        raise UserError(
            f"{attack!r} cannot be the name of an attack. Write small letters, digits and hyphens: towards-grey.",
            code="bad-value",
        )
    folder = Path(to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(to)!r} is there already. Choose another --to; nothing is overwritten.", code="not-empty")
    function = attack.replace("-", "_")
    function += "_" if keyword.iskeyword(function) else ""
    words = {
        "attack": attack,
        "function": function,
        "module": f"robustdup_{function}",
        "distribution": f"robustdup-{attack}",
    }
    template = files("robustdup.plugins") / "template"
    written = []
    for source, target in _FILES.items():
        path = folder / target.format_map(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((template / source).read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        written.append(path)
    return written
