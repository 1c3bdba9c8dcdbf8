"""What the conformance test found of an attack: findings, whether it beats noise, and a summary over its norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robustdup.plugins import AttackSpec


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `code` names it, `ok` says whether it is as it should be, `message` what was seen."""

    code: str
    ok: bool
    message: str


@dataclass(frozen=True)
class ConformanceReport:
    """What the conformance test found of an attack in a norm.

    `demonstrated`: it broke more samples than noise of equal norm did (`n_broken` against `n_noise` of `n`), at the
    radius `eps`: the usual one, or one of its multiples in `LARGER` where the attack does not beat noise within less. `seconds`
    and passes (rows) are those of the first run, on all `n` samples.
    """

    attack: str
    norm: str
    findings: list[Finding] = field(default_factory=list)
    demonstrated: bool = False
    n: int = 0
    n_broken: int = 0
    n_noise: int = 0
    eps: str = ""
    seconds: float = 0.0
    forward_passes: int = 0
    backward_passes: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        return all(finding.ok for finding in self.findings)

    @property
    def evidence(self) -> str:
        """What was seen when the attack was compared with noise."""
        if not self.n:
            return "; ".join(finding.message for finding in self.findings if not finding.ok)
        return f"broke {self.n_broken} of {self.n} samples at eps {self.eps}, noise of equal norm {self.n_noise}"


def as_row(report: ConformanceReport) -> dict[str, Any]:
    """Return a report as plain values for JSON."""
    return {**asdict(report), "ok": report.ok, "evidence": report.evidence}


def from_row(row: dict[str, Any]) -> ConformanceReport:
    """Read what `as_row` wrote."""
    plain = {name: value for name, value in row.items() if name not in ("ok", "evidence", "findings")}
    return ConformanceReport(findings=[Finding(**finding) for finding in row["findings"]], **plain)


def summarise(spec: AttackSpec, reports: Sequence[ConformanceReport]) -> dict[str, Any]:
    """Say of one attack whether it runs, conforms and is demonstrated, over its norms, and why not where it does not."""
    own = [report for report in reports if report.attack == spec.name]
    ran = [report for report in own if report.n]
    shown = [report for report in ran if report.demonstrated]
    if not spec.available:
        reason = spec.reason
    elif not ran:
        reason = next((report.evidence for report in own), "it was not checked")
    elif not shown:
        reason = spec.undemonstrated or f"{ran[0].norm}: {ran[0].evidence}"
    else:
        reason = "; ".join(f"{report.norm}: {report.evidence}" for report in own if not report.demonstrated)
    broken = [f"{report.norm}: {f.message}" for report in ran for f in report.findings if not f.ok]
    return {
        "name": spec.name,
        "source": spec.source,
        "available": spec.available,
        "runs": bool(ran),
        "conforms": bool(ran) and not broken,
        "demonstrated": bool(shown),
        "demonstrated_norms": [report.norm for report in shown],
        "reason": reason,
        "not_conforming": "; ".join(broken),
        "seconds": sum(report.seconds for report in own),
    }
