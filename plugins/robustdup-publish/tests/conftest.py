"""The records, tables and own cache of the core's tests of leaderboards."""

from tests.leaderboard.conftest import make_record, make_table, own_cache, points  # noqa: F401
