"""What authors of attacks run: the conformance test, and a survey of everything that is installed.

In the tests of a plugin:

    from robustdup.testing import check_attack

    def test_my_attack():
        report = check_attack("my-attack")
        assert report.ok, report.findings
        assert report.demonstrated, report.evidence
"""

from __future__ import annotations

from robustdup.testing.conformance import check_attack
from robustdup.testing.report import ConformanceReport, Finding
from robustdup.testing.survey import pairs, survey

__all__ = ["ConformanceReport", "Finding", "check_attack", "pairs", "survey"]
