"""RobustBench's published table: show it, rank a record in it; and compare two records."""

from robustdup.leaderboard.compare import PairedDifference, RunComparison, compare, paired_difference
from robustdup.leaderboard.gate import GateResult, gate
from robustdup.leaderboard.rank import Place, PublishedNumbers, RankResult, position
from robustdup.leaderboard.select import ordered, select
from robustdup.leaderboard.table import Leaderboard, LeaderboardEntry, load

__all__ = [
    "GateResult",
    "Leaderboard",
    "LeaderboardEntry",
    "PairedDifference",
    "Place",
    "PublishedNumbers",
    "RankResult",
    "RunComparison",
    "compare",
    "gate",
    "load",
    "ordered",
    "paired_difference",
    "position",
    "select",
]
