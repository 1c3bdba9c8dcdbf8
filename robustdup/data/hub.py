"""From a Hub id or a local folder to one split of a `datasets.Dataset`, with errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.data.layouts.local import FILES, open_layout
from robustdup.data.layouts.opened import Opened
from robustdup.errors import RunError, UserError, unknown
from robustdup.inflation import check_file, check_parquet, read_text

if TYPE_CHECKING:
    import datasets

    from robustdup.config import DataOptions

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_local(path: Path, options: DataOptions) -> Opened:
    """Return the splits of a folder or file: tables that `datasets` reads, or another layout. Raises UserError."""
    if options.revision is not None:
        raise UserError(
            f"revision = {options.revision!r} is for Hub datasets; {str(path)!r} is a local path.", code="bad-option"
        )
    saved = path / "dataset_dict.json", path / "state.json"
    if (path.is_file() or any(file.is_file() for file in saved)) and options.config is not None:
        raise UserError(
            f"{str(path)!r} has no configurations, got {options.config!r}. Leave it out.", code="bad-option"
        )
    layout = None if any(file.is_file() for file in saved) or path.suffix == ".parquet" else open_layout(path, options)
    if layout is not None:
        return layout
    if path.is_file() and path.suffix != ".parquet":
        raise UserError(
            f"{str(path)!r} is a file of a kind that is not read. Name a folder (that of all files of a set such as CIFAR), or a "
            "parquet, Arrow, CSV, zip, tar, .npz, .npy, .pt, .mat or .h5 file.", code="bad-data",
        )  # fmt: skip
    with explained(str(path), lambda: _broken_files(path)), quiet():
        import datasets

        for file in [path] if path.is_file() else path.rglob("*.parquet"):
            check_parquet(file)
        if path.is_file():
            return _opened(datasets.load_dataset("parquet", data_files={options.split: str(path)}), options)
        if any(file.is_file() for file in saved):
            return _opened(datasets.load_from_disk(str(path)), options)
        return _opened(
            datasets.load_dataset(str(path), options.config, cache_dir=_own_cache(path)),
            options,
            _left_out(path, options),
        )


def _opened(downloaded: Any, options: DataOptions, notes: tuple[str, ...] = ()) -> Opened:
    """Return what `datasets` gave as splits; a Dataset that was saved alone, without a name, serves any split."""
    import datasets

    if isinstance(downloaded, datasets.Dataset):
        return Opened({str(downloaded.split) if downloaded.split is not None else options.split: downloaded}, notes)
    return Opened({str(name): split for name, split in downloaded.items()}, notes)


def _left_out(path: Path, options: DataOptions) -> tuple[str, ...]:
    """Say which tables of a folder are in no split: where some names hold train or test, `datasets` takes those alone."""
    import datasets

    tables = [
        file
        for file in path.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    builder = datasets.load_dataset_builder(str(path), options.config, cache_dir=_own_cache(path))
    taken = {Path(str(file)).resolve() for files in (builder.config.data_files or {}).values() for file in files}
    left = sorted(file.name for file in tables if file.resolve() not in taken)
    if not left or not taken:
        return ()
    return (
        f"{len(left)} parquet files of {str(path)!r} belong to no split by their names and are left out: {', '.join(left[:5])}.",
    )


def _own_cache(path: Path) -> str | None:
    """Return a cache for this very folder and content, where its README has configurations; None: the usual cache.

    `datasets` 5.2.0 looks such folders up by name: another of the same name, or what was there before, was seen to be read.
    """
    card = path / "README.md"
    if not card.is_file() or "configs:" not in read_text(card, errors="replace"):
        return None
    import datasets

    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [f"{file.relative_to(path)} {(seen := file.stat()).st_size} {seen.st_mtime_ns}" for file in files]
    digest = hashlib.sha256("\n".join([str(path.resolve()), *listed]).encode()).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "robustdup" / digest[:16])


def load_hub(name: str, options: DataOptions) -> Opened:
    """Return all splits of a Hub dataset (never running code from there). Raises UserError, also where it is offline."""
    with explained(name, lambda: ""), quiet(), checked_downloads():
        import datasets

        splits = datasets.load_dataset(name, options.config, revision=options.revision)
    commit = next((commit_of(dataset) for dataset in splits.values()), None)
    # Offline, `datasets` serves whatever revision is in its cache.
    if _COMMIT.fullmatch(options.revision or "") and commit not in (None, options.revision):
        raise UserError(
            f"{name!r} is in the cache, but not at commit {options.revision}: it is at {commit}. Go online.",
            code="offline",
        )
    return _opened(splits, options)


def looks_like_hub_id(spec: str) -> bool:
    """True for NAME and OWNER/NAME in the letters that the Hub allows, but for what can only be a file that is not there."""
    path = Path(spec)
    if path.suffix.lower() in FILES and ("/" not in spec or path.parent.is_dir()):
        return False
    return _HUB_ID.fullmatch(spec) is not None and not spec.startswith(".") and ".." not in spec


def commit_of(dataset: datasets.Dataset) -> str | None:
    """Return the commit (40 hex digits) that a Hub dataset was read from; None for local data."""
    for file in dataset.cache_files:  # <cache>/owner___name/config/version/<commit>/name-test.arrow
        folder = Path(file["filename"]).parent.name
        if _COMMIT.fullmatch(folder):
            return folder
    return None


@contextmanager
def checked_downloads() -> Iterator[None]:
    """Look at each file that `datasets` fetches before anything of it is unpacked. Raises UserError from inside.

    `datasets` 5.2.0 takes another manager of downloads only where a dataset is prepared by hand.
    """
    import datasets.builder

    usual = datasets.builder.DownloadManager

    class Checked(usual):  # type: ignore[misc, valid-type]
        """The usual manager, which checks what it fetched."""

        def download(self, url_or_urls: Any) -> Any:
            fetched = super().download(url_or_urls)
            for file in {str(path) for path in NestedDataStructure(fetched).flatten()}:
                if Path(file).is_file():
                    check_file(Path(file))
            return fetched

    from datasets.utils.py_utils import NestedDataStructure

    datasets.builder.DownloadManager = Checked
    try:
        yield
    finally:
        datasets.builder.DownloadManager = usual


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets` where nobody watches; its log of an error that we explain ourselves is left out."""
    import logging
    import sys

    import datasets

    log, shown = logging.getLogger("datasets"), not datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.CRITICAL)
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def explained(place: str, look: Callable[[], str]) -> Iterator[None]:
    """Turn what `datasets` raises into one message; `look` may find out more, such as the file that is broken."""
    try:
        yield
    except (UserError, RunError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _explain(place, error, look()) from error


def _explain(place: str, error: Exception, detail: str) -> Exception:
    import datasets

    text = " ".join(str(error).split())
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return RunError(
            f"No space left on the disk while reading {place!r}. Point HF_HOME at a disk with room.", code="no-space"
        )
    if isinstance(cause, PermissionError):
        return UserError(
            f"No permission while reading {place!r}: {cause}. (HF_HOME names the folder of the cache.)",
            code="no-permission",
        )
    if detail:
        return UserError(detail, code="bad-file")
    if isinstance(error, ConnectionError):
        return UserError(
            f"Cannot reach the Hugging Face Hub for {place!r}, it is not in the cache, and there is no local folder of "
            "that name. Go online once, or give a folder with parquet files, images or save_to_disk output; "
            "builtin:digits needs no network.",
            code="offline",
        )
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        if "gated" in text or "Revision" in text:
            return UserError(text, code="no-access")
        return UserError(
            f"There is no dataset {place!r} on the Hugging Face Hub, or it is private (log in: 'hf auth login'), and no "
            "local folder of that name. Hub ids look like owner/name, for instance uoft-cs/cifar10.",
            code="unknown-data",
        )
    if empty := re.search(r'Instruction "(.*)" corresponds to no data', text):
        return UserError(
            f"There are no rows in the split {empty[1]!r} of {place!r}: give it some, or take it away.", code="no-data"
        )
    if twice := re.search(r"Multiple matches for FieldRef\.Name\((.*?)\)", str(cause)):
        return UserError(
            f"{place!r} has several columns of the name {twice[1]!r}: rename or drop one of them.", code="bad-column"
        )
    if isinstance(error, FileNotFoundError):
        return UserError(
            f"There is no data in {place!r}: no parquet files, images, or save_to_disk output.", code="no-data"
        )
    config = re.search(r"BuilderConfig '(.*)' not found\. Available: \[(.*)\]", text)
    if config:
        return unknown(f"configuration of {place}:", config[1], re.findall(r"'([^']*)'", config[2]))
    config = re.search(r"Config name is missing.*available configs: \[(.*?)\]", text)
    if config:
        names = ", ".join(re.findall(r"'([^']*)'", config[1]))
        return UserError(
            f"{place!r} has several configurations. Name one with data_config: {names}.", code="bad-option"
        )
    if "scripts are no longer supported" in text:
        return UserError(
            f"{place!r} needs code from the dataset to run, which robustdup never does. Use a parquet copy.",
            code="bad-data",
        )
    return UserError(f"Cannot read {place!r}: {type(cause).__name__}: {' '.join(str(cause).split())}", code="bad-data")


def _broken_files(path: Path) -> str:
    """Return a message that names the first parquet file that is empty or cannot be read; empty where all can."""
    import pyarrow.parquet

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file.absolute()) as parquet:
                if parquet.metadata.num_rows == 0:
                    return f"{str(file)!r} has no rows: give it some, or take it away."
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
        except Exception as error:  # noqa: BLE001
            return f"{str(file)!r} is not a whole parquet file: {str(error).rstrip('.')}. Download or write it again."
    return ""
