"""HDF5 files, and MATLAB's of version 7.3, which are HDF5 with their axes turned round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robustdup.errors import Unavailable, UserError, how_to_install
from robustdup.inflation import check_unpacked

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
MATLAB = b"MATLAB 7.3"


def is_matlab(file: Path) -> bool:
    """Tell a MATLAB file of version 7.3 by its first bytes."""
    with file.open("rb") as stream:
        return stream.read(len(MATLAB)) == MATLAB


def read_hdf5(file: Path) -> dict[str, np.typing.NDArray[Any]]:
    """Return the arrays of a file by name, those in groups as group_name; links and other files are not followed.

    Raises UserError; Unavailable where h5py is missing.
    """
    try:
        import h5py
    except ImportError:
        raise Unavailable(
            f"{str(file)!r} needs h5py, as HDF5 files and MATLAB's from version 7.3 do. Install it: "
            + how_to_install("robustdup[hdf5]")
        ) from None
    arrays: dict[str, np.typing.NDArray[Any]] = {}
    matlab = is_matlab(file)
    try:
        with h5py.File(file, "r") as content:
            kept: dict[str, Any] = {}

            def keep(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and not name.startswith("#") and item.dtype.kind in "biufSO":
                    kept[name] = item

            content.visititems(keep)  # follows hard links alone
            check_unpacked(file, sum(item.nbytes for item in kept.values()))
            for name, item in kept.items():
                if (
                    item.is_virtual
                    or item.external
                    or (item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is None)
                ):
                    continue
                values = item.asstr()[()] if item.dtype.kind == "O" else item[()]
                arrays[name.replace("/", "_")] = np.asarray(values).T if matlab else np.asarray(values)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{str(file)!r} is not a whole HDF5 file: {' '.join(str(error).split())[:200]}.", code="bad-file"
        ) from error
    return arrays
