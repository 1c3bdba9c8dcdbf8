"""Files that unpack to far more than they are: they are refused before memory or the disk is full."""

from __future__ import annotations

import importlib
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from robustdup.errors import UserError

ROOM = 2 * 2**30  # bytes that any file may unpack to
MOST = 200  # times its own size that a larger one may: pictures are hardly compressed further, plain pixels some times
LONGEST_TEXT = 256 * 2**20  # bytes
STREAMS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}  # first bytes: what unpacks them
AT_ONCE = 64 * 2**20  # bytes that are decoded at a time to measure them


def allowed(file: Path) -> int:
    """Return the bytes that a file may unpack to."""
    return max(ROOM, MOST * _on_disk(file))


def _on_disk(file: Path) -> int:
    """Return the bytes that a file takes on its disk: one with holes is far longer than that."""
    known = file.stat()
    return min(known.st_size, known.st_blocks * 512) if hasattr(known, "st_blocks") else known.st_size


def check_holes(file: Path) -> None:
    """Raise UserError where a file is mostly holes, terabytes that nobody wrote: reading it takes hours."""
    size = file.stat().st_size
    if _on_disk(file) < size:
        check_unpacked(file, size)


def check_length(file: Path) -> None:
    """Raise UserError where a file of text, which is read whole, is longer than any such text."""
    size = file.stat().st_size
    if size > LONGEST_TEXT:
        raise UserError(f"{str(file)!r} has {size:,} bytes; no text is longer than {LONGEST_TEXT:,}.", code="too-large")


def read_text(file: Path, *, errors: Literal["strict", "replace"] = "strict") -> str:
    """Return the text of a file that is read whole; `errors` says what is done with bytes that are no UTF-8.

    Raises OSError, ValueError, of which UserError where it is too long.
    """
    check_length(file)
    return file.read_text(encoding="utf-8", errors=errors)


def check_unpacked(file: Path, size: int) -> None:
    """Raise UserError where a file that unpacks to `size` bytes, or more, looks like one made to fill memory or the disk."""
    if size > allowed(file):
        raise UserError(
            f"{str(file)!r} takes {_on_disk(file):,} bytes on the disk and unpacks to {size:,} or more, as files do that are "
            "made to fill a disk. It is not read. If it is what you want, unpack it yourself.",
            code="unpacks-too-large",
        )


def check_zip(file: Path) -> None:
    """Check a zip or .npz by what its members state, beyond which nothing is read of them. Raises UserError."""
    check_holes(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            check_unpacked(file, sum(member.file_size for member in archive.infolist()))


def check_file(file: Path) -> None:
    """Check a file of any kind by its first bytes: parquet, zip (and what is one, .npz or .pt), gzip, bzip2, xz.

    Raises UserError; what pyarrow raises for a broken file.
    """
    check_holes(file)
    with file.open("rb") as opened:
        start = opened.read(6)
    if start.startswith(b"PAR1"):
        check_parquet(file)
    elif start.startswith(b"PK"):
        check_zip(file)
    else:
        for mark, module in STREAMS.items():
            if start.startswith(mark):
                _check_stream(file, importlib.import_module(module).open)


def _check_stream(file: Path, unpack: Callable[..., Any]) -> None:
    """Count what a compressed stream unpacks to, of which nothing is kept. Raises UserError."""
    counted = 0
    with unpack(file, "rb") as stream:
        while True:
            try:
                part = stream.read(2**20)
            except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError):  # whoever reads it says what is wrong
                return
            if not part:
                return
            counted += len(part)
            check_unpacked(file, counted)


def check_tensor(tensor: Any, place: str) -> None:
    """Check a tensor that a file held: plain numbers, which do not stand for far more of them than are stored.

    Raises UserError.
    """
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
        raise UserError(
            f"{place} holds a tensor that is no plain array of numbers: save it dense, on the CPU.", code="bad-data"
        )
    size = tensor.numel() * tensor.element_size()
    if size > max(AT_ONCE, tensor.untyped_storage().nbytes()):
        raise UserError(
            f"{place} holds {tensor.untyped_storage().nbytes():,} bytes of numbers that stand for {size:,}: save the tensor "
            "with .contiguous().",
            code="unpacks-too-large",
        )


def check_parquet(file: Path) -> None:
    """Check a parquet file: by what its pages unpack to, and where values are stored once for many rows, by counting.

    Raises UserError; what pyarrow raises for a broken file.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.absolute()) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        check_unpacked(file, sum(group.total_byte_size for group in groups))
        counted = 0
        for number, group in enumerate(groups):
            columns = [group.column(place) for place in range(group.num_columns)]
            repeated = [column for column in columns if any("DICTIONARY" in name for name in column.encodings)]
            largest = max((column.total_uncompressed_size for column in repeated), default=0)
            if counted + group.num_rows * largest <= allowed(file):  # even if each value were all of them
                counted += group.num_rows * largest
                continue
            names = sorted({column.path_in_schema.split(".")[0] for column in repeated})
            rows = max(1, min(1024, AT_ONCE // max(largest, 1)))
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names, use_threads=False):
                counted += batch.nbytes
                check_unpacked(file, counted)
