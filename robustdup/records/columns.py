"""Columns of an arrow table as numpy arrays, without Arrow's own `to_numpy`: that imports pandas, a third of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Texts:
    """A column of words, each different one once: row i holds `values[codes[i]]`; a missing word is ""."""

    codes: Array
    values: list[str]

    def where(self, wanted: Callable[[str], bool]) -> Array:
        """Return the rows whose word is wanted: (rows,) bool."""
        return np.array([*map(wanted, self.values), wanted("")], dtype=bool)[self.codes]

    def at(self, rows: Array | slice = slice(None)) -> Array:
        """Return the words of some rows as an array of text."""
        return np.array([*self.values, ""])[self.codes[rows]]


def texts(table: pa.Table, name: str) -> Texts:
    """Return a column of words. Raises KeyError where there is none of that name, TypeError where it holds no words."""
    array = _whole(table[name])
    if pa.types.is_null(array.type):
        return Texts(np.full(len(array), -1), [])
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    if not (pa.types.is_string(coded.dictionary.type) or pa.types.is_large_string(coded.dictionary.type)):
        raise TypeError(f"the column {name!r} holds no text")
    return Texts(_filled(coded.indices, -1), [value or "" for value in coded.dictionary.to_pylist()])


def numbers(table: pa.Table, name: str) -> Array:
    """Return a column of numbers; real ones with NaN where some are missing. Raises KeyError, TypeError."""
    array = _whole(table[name])
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise TypeError(f"the column {name!r} holds no numbers")
    return _filled(array, np.nan)


def _whole(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _filled(array: Any, instead: float) -> Array:
    """The values of an arrow array of numbers, with `instead` where there is none."""
    if not array.null_count:
        return np.from_dlpack(array)
    valid, content = array.buffers()
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[array.offset : array.offset + len(array)]
    size = np.dtype(f"{'f' if pa.types.is_floating(array.type) else 'i'}{array.type.bit_width // 8}")
    kept = np.frombuffer(content, size)[array.offset : array.offset + len(array)]
    return np.where(bits.astype(bool), kept, instead)
