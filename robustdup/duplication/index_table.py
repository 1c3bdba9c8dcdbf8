"""The tables of a duplicated dataset, which answer the look-ups of `datasets` quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets.table import ConcatenationTable, InMemoryTable


class IndexTable(InMemoryTable):  # type: ignore[misc]
    """One column of row numbers in one piece.

    `datasets` looks up every entry of a batch on its own and searches the pieces of the table for it; here there is but one.
    """

    def fast_slice(self, offset: int = 0, length: int | None = None) -> Any:
        """Return a part of the table, as `datasets` asks for it."""
        return self.table.slice(offset, length)


class EntryTable(ConcatenationTable):  # type: ignore[misc]
    """The rows of a dataset, seen once for each copy number.

    Where the views differ in the column `copy` alone, `first` is the first of them: single rows are looked up there, so that
    copies touch no more memory than originals, and come in one piece.
    """

    first: Any = None

    def fast_gather(self, indices: Any) -> Any:
        """Return the rows that `datasets` asks for."""
        if self.first is None:
            return super().fast_gather(indices).combine_chunks()
        level, row = np.divmod(np.asarray(indices), self.first.num_rows)
        found = self.first.fast_gather(row).combine_chunks()
        place = found.column_names.index("copy")
        return found.set_column(place, found.schema.field(place), pa.array(level, type=pa.int64()))

    def replace_schema_metadata(self, *args: Any, **kwargs: Any) -> EntryTable:
        """Return the same table with other metadata, as `datasets` does when it describes the columns."""
        made = super().replace_schema_metadata(*args, **kwargs)
        table = EntryTable(made.table, made.blocks)
        if self.first is not None:
            table.first = self.first.replace_schema_metadata(*args, **kwargs)
        return table
