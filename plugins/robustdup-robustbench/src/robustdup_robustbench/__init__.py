"""The reference AutoAttack and RobustBench's model zoo behind robustdup's contract."""


def register(registry):
    """Register nothing yet."""
