"""Files of other programs: Arrow's tables, which are read, and kinds that are named with what to do, since they are not read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from robustdup.data.layouts.opened import Opened, split_in
from robustdup.errors import UserError

SAVE = "save it with datasets' save_to_disk or to_parquet, or its arrays with np.savez"
UNPACK = "unpack it first"
KINDS = {
    r"\.(tfrecords?)([-_.].*)?|.*-[0-9]{5}-of-[0-9]{5}": (
        "TensorFlow records",
        f"read it with tensorflow_datasets and {SAVE}",
    ),
    r"\.mdb|\.lmdb": ("an LMDB database", f"read it with lmdb and {SAVE}"),
    r"\.rec": ("MXNet's records", f"unpack it with mxnet.recordio and {SAVE}"),
    r"\.beton": ("a file of FFCV", f"give what it was made from, or read it with ffcv and {SAVE}"),
    r"\.zarr|\.zgroup|\.zarray": ("a Zarr store", f"read it with zarr and {SAVE}"),
    r"\.(rar|7z|xz|bz2|zst|lz4|gz)": ("packed files", UNPACK),
    r"\.(xlsx?|ods)": ("a spreadsheet", "save it as CSV"),
    r"\.arff": ("a file of Weka", f"read it with scipy.io.arff and {SAVE}"),
    r"\.(db|sqlite3?|duckdb)": ("a database", f"read it and {SAVE}"),
    r"\.(dcm|nii|tfds|rda|rds|orc|avro)": ("of other programs", SAVE),
}
ENOUGH = 3  # files that a message names


def refuse_foreign(place: Path, files: Sequence[Path]) -> None:
    """Raise UserError where files are of a known kind that is not read, with what to do."""
    for pattern, (kind, remedy) in KINDS.items():
        fitting = [file for file in files if re.fullmatch(pattern, _ending(file, pattern)) and not _is_tar(file)]
        if fitting:
            some = ", ".join(file.name for file in fitting[:ENOUGH]) + (" …" if len(fitting) > ENOUGH else "")
            raise UserError(
                f"{str(place)!r} holds what is not read here: {some} ({kind}). {remedy[0].upper()}{remedy[1:]}.",
                code="bad-data",
            )


def _ending(file: Path, pattern: str) -> str:
    """Return what a pattern is compared with: all endings of a name, its last one, or the whole name for shards without one."""
    if "tfrecord" in pattern:
        found = re.search(r"\.tfrecords?.*", file.name)
        return found[0] if found else "" if file.suffix else file.name
    return file.suffix.lower() or file.name


def _is_tar(file: Path) -> bool:
    return ".tar" in (suffix.lower() for suffix in file.suffixes)


def open_arrow(files: Sequence[Path]) -> Opened:
    """Return the splits of Arrow's tables (.arrow as a file or a stream, .feather), by their names. Raises UserError."""
    import datasets
    import pyarrow as pa
    import pyarrow.feather
    from datasets.table import InMemoryTable

    splits: dict[str, datasets.Dataset] = {}
    for file in files:
        try:
            try:
                table = pa.ipc.open_stream(file.read_bytes()).read_all()
            except pa.ArrowInvalid:
                table = pyarrow.feather.read_table(file, memory_map=False)
        except Exception as error:
            raise UserError(
                f"{str(file)!r} is not a whole Arrow file: {' '.join(str(error).split())[:200]}.", code="bad-file"
            ) from error
        for place, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):  # categories of pandas
                table = table.set_column(place, field.name, table[place].cast(field.type.value_type))
        name = split_in(file.stem) or ("test" if len(files) == 1 else file.stem)
        if name in splits:
            raise UserError(f"{file.name} and another table beside it are both {name!r}: name one.", code="bad-data")
        splits[name] = datasets.Dataset(InMemoryTable(table))
    return Opened(splits, unnamed=len(files) == 1 and split_in(files[0].stem) is None)
