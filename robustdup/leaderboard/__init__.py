"""RobustBench's published table: show it, rank a record in it, submit to it, refresh it; and compare two records."""

from robustdup.leaderboard.compare import Comparison, PairedDifference, compare, paired_difference
from robustdup.leaderboard.rank import Place, Published, RankResult, position
from robustdup.leaderboard.refresh import Refreshed, refresh
from robustdup.leaderboard.select import ordered, select
from robustdup.leaderboard.submit import Paper, submit
from robustdup.leaderboard.table import Entry, Leaderboard, load

__all__ = [
    "Comparison",
    "Entry",
    "Leaderboard",
    "PairedDifference",
    "Paper",
    "Place",
    "Published",
    "RankResult",
    "Refreshed",
    "compare",
    "load",
    "ordered",
    "paired_difference",
    "position",
    "refresh",
    "select",
    "submit",
]
