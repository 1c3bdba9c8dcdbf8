from __future__ import annotations

import pytest
from robustdup_torchattacks.pins import check


@pytest.mark.parametrize(
    ("version", "ok"), [("2.25.1", False), ("2.32.3", False), ("2.32.4", True), ("2.34.2", True), ("3.0", True)]
)
def test_an_old_requests_is_found_with_the_command_that_mends_it(version, ok):
    ((found, message, command),) = check(version)
    assert found == ok
    assert version in message
    assert ("requests>=2.32.4" in command) == (not ok)


def test_the_locked_environment_has_a_new_one():
    assert all(ok for ok, _, _ in check())
