"""Datasets written for others: a folder that `datasets.load_dataset` reads, or the same folder on the Hugging Face Hub."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.data.hub import looks_like_hub_id
from robustdup.errors import RunError, UserError, user_path

if TYPE_CHECKING:
    import datasets

Progress = Callable[[int, int], None]  # rows written, rows in all

HUB = "hub:"
CARD_FILE = "README.md"
_FILE_BYTES = 500 * 2**20
_BATCH_BYTES = 32 * 2**20


def check_target(to: str, *, overwrite: bool) -> None:
    """Raise UserError unless a dataset can be written to `to`, a folder or hub:owner/name, without losing another."""
    if to.startswith(HUB):
        name = to.removeprefix(HUB)
        if not looks_like_hub_id(name) or "/" not in name:
            raise UserError(f"{to!r} is not a place on the Hub. Write hub:owner/name.", code="bad-value")
        return
    folder = user_path(to)
    if not to or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{to!r} is not a folder. Name one to write to, or hub:owner/name.", code="bad-value")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"The folder {to!r} is not empty. Choose another, or replace it with --overwrite.", code="not-empty"
        )
    if folder.is_dir() and overwrite and any(folder.iterdir()) and not (folder / CARD_FILE).is_file():
        raise UserError(
            f"The folder {to!r} does not look like a dataset (it has no {CARD_FILE}): it is not overwritten.",
            code="not-empty",
        )


def write_folder(
    folder: Path, splits: Mapping[str, datasets.Dataset], card: str, extra: Callable[[Path], None],
    *, progress: Progress = lambda done, total: None,
) -> None:  # fmt: skip
    """Write splits as parquet with a card, and what `extra(folder)` adds, so that the folder is whole or not there.

    A folder that is there is replaced. Raises RunError where the disk is full or may not be written.
    """
    with explained_writes(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
        try:
            _write_data(temporary / "data", splits, progress)
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
            extra(temporary)
            temporary.chmod(0o755)
            if folder.exists():
                old = temporary.with_suffix(".old")
                folder.rename(old)
                temporary.rename(folder)
                shutil.rmtree(old)
            else:
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explained_writes(place: str) -> Iterator[None]:
    """Turn errors of the file system, wherever in the chain, into RunError that says what happened."""
    try:
        yield
    except (UserError, RunError, KeyboardInterrupt):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "No space left on the disk" if full else cause.strerror or str(cause)
        raise RunError(f"Cannot write {place!r}: {reason}. Nothing is left behind.", code="not-written") from error


def _write_data(folder: Path, splits: Mapping[str, datasets.Dataset], progress: Progress) -> None:
    folder.mkdir()
    total, done = sum(len(split) for split in splits.values()), 0
    for name, split in splits.items():
        row_bytes = _row_bytes(split)
        files = max(1, -(-int(len(split) * row_bytes) // _FILE_BYTES))
        for number in range(files):
            part = split.shard(files, number, contiguous=True)
            path = folder / f"{name}-{number:05d}-of-{files:05d}.parquet"
            for rows in _write_parquet(path, part, max(1, min(10000, int(_BATCH_BYTES / row_bytes)))):
                done += rows
                progress(done, total)


def _row_bytes(split: datasets.Dataset) -> float:
    """Return the bytes of a row, from a few hundred over the split (images in files of their own count as a megabyte)."""
    import datasets

    some = range(0, len(split), max(1, len(split) // 200))
    table: Any = split.with_format("arrow")[list(some)] if len(split) else None
    if table is None:
        return 1.0
    images = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
    empty = sum(table[name].combine_chunks().field("bytes").null_count for name in images)
    return float((table.nbytes + empty * 2**20) / len(some))


def _write_parquet(path: Path, split: datasets.Dataset, batch: int) -> Iterator[int]:
    """Write one file and yield the rows of each batch; images that are files of their own are embedded."""
    import pyarrow.parquet
    from datasets.table import embed_table_storage

    schema = split.features.arrow_schema
    arrow = split.with_format("arrow")
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(split), batch):
            table = arrow[start : start + batch]
            writer.write_table(embed_table_storage(table.cast(schema)))
            yield len(table)


def push_folder(folder: Path, name: str, *, private: bool, overwrite: bool, message: str) -> str:
    """Upload a folder as the dataset `name` (owner/name) of the Hub in one commit and return its address.

    Raises UserError where nobody is logged in or the dataset is there already (unless `overwrite`), RunError for the rest.
    https://huggingface.co/docs/huggingface_hub/guides/upload
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        there = [file for file in api.list_repo_files(name, repo_type="dataset") if file != ".gitattributes"]
        if there and not overwrite:
            raise UserError(
                f"The dataset {name!r} is on the Hub already. Choose another name, or add --overwrite.",
                code="not-empty",
            )
        done = api.upload_folder(
            repo_id=name, folder_path=folder, repo_type="dataset", commit_message=message,
            delete_patterns=["*"] if there else None,
        )  # fmt: skip
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise UserError(
                f"The Hub does not let you write {name!r} ({code}). Log in: 'hf auth login'.", code="no-access"
            ) from error
        raise RunError(f"The Hub did not take {name!r}: {' '.join(str(error).split())}", code="hub-refused") from error
    except OSError as error:  # no connection
        raise RunError(f"Cannot reach the Hub to write {name!r}: {error}.", code="offline") from error
    return str(done.commit_url).split("/commit/")[0]
