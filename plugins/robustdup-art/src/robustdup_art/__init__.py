"""The evasion attacks of the Adversarial Robustness Toolbox behind robustdup's contract."""


def register(registry):
    """Register nothing yet."""
