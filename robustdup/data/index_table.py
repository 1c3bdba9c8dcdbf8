"""The index of a duplicated dataset as a table that answers single rows quickly."""

from __future__ import annotations

from typing import Any

from datasets.table import InMemoryTable


class IndexTable(InMemoryTable):  # type: ignore[misc]
    """One column of row numbers in one piece.

    `datasets` looks up every entry of a batch on its own and searches the pieces of the table for it; here there is but one.
    """

    def fast_slice(self, offset: int = 0, length: int | None = None) -> Any:
        """Return a part of the table, as `datasets` asks for it."""
        return self.table.slice(offset, length)
