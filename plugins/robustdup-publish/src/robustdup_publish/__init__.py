"""What one gives to others: `export` writes a trained network, `leaderboard submit` a claim to RobustBench.

`leaderboard refresh` fetches RobustBench's present table.
"""

from __future__ import annotations

from robustdup import Registry


def register(registry: Registry) -> None:
    """Register three commands; nothing of them is imported."""
    here = "robustdup_publish"
    for words, function, text in (
        ("export", "export_command:export_command", "Write a trained network for others."),
        ("leaderboard submit", "leaderboard_commands:submit_command", "Write what RobustBench asks of a new model."),
        (
            "leaderboard refresh",
            "leaderboard_commands:refresh_command",
            "Fetch RobustBench's present table and say what changed.",
        ),
    ):
        registry.add_command(words, f"{here}.{function}", help=text)
