"""RobustBench's published table: show it, rank a record in it; and compare two records."""

from robustdup.leaderboard.compare import PairedDifference as PairedDifference
from robustdup.leaderboard.compare import RunComparison as RunComparison
from robustdup.leaderboard.compare import compare as compare
from robustdup.leaderboard.compare import paired_difference as paired_difference
from robustdup.leaderboard.gate import GateResult as GateResult
from robustdup.leaderboard.gate import gate as gate
from robustdup.leaderboard.rank import Place as Place
from robustdup.leaderboard.rank import PublishedNumbers as PublishedNumbers
from robustdup.leaderboard.rank import RankResult as RankResult
from robustdup.leaderboard.rank import position as position
from robustdup.leaderboard.select import ordered as ordered
from robustdup.leaderboard.select import select as select
from robustdup.leaderboard.table import Leaderboard as Leaderboard
from robustdup.leaderboard.table import LeaderboardEntry as LeaderboardEntry
from robustdup.leaderboard.table import load as load
