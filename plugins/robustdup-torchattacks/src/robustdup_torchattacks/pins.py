"""What installing torchattacks with plain pip leaves behind: an old requests, for `robustdup doctor`."""

from __future__ import annotations

import importlib.metadata
import re

from robustdup import how_to_install

NEEDED = (2, 32, 4)


def check(version: str | None = None) -> list[tuple[bool, str, str]]:
    """Return (ok, message, command): torchattacks pins requests~=2.25.1, which it never imports.

    Releases before 2.32.4 have known vulnerabilities (https://github.com/psf/requests/security/advisories). `version` is
    the installed one if not given.
    """
    if version is None:
        try:
            version = importlib.metadata.version("requests")
        except importlib.metadata.PackageNotFoundError:
            return []
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers >= NEEDED:
        return [(True, f"requests {version}: torchattacks' pin to 2.25.1 is not in force.", "")]
    message = (
        f"requests {version} has known vulnerabilities. torchattacks pins it but never imports it, so a newer one does "
        "no harm (pip prints a conflict)."
    )
    return [(False, message, how_to_install("requests>=2.32.4"))]
