"""Reading images for training: all of a split into memory as bytes, or batch by batch with worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustdup.data.batches import Batch, Entries, Request, change_copies, to_bytes
from robustdup.errors import UserError

if TYPE_CHECKING:
    from robustdup.data.duplicate import DuplicationPlan
    from robustdup.data.near import NearTransform
    from robustdup.data.sources import Rows

_CHUNK = 256  # rows that are read at once
Task = tuple[list[int], Any]  # rows to read, and what comes back with their images


def load_pixels(
    rows: Rows, index: Tensor, progress: Callable[[int], None] | None = None, *, workers: int = 0,
    skip_broken: bool = False,
) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
    """Return pixels (n, C, H, W), labels int64 (n,) of the rows `index` (n,) in this order, and the rows left out.

    Pixels are uint8 where all images are on the 8-bit grid, float32 in [0, 1] otherwise; grey images among coloured ones
    become coloured. `workers` processes decode; no more than the result and some chunks are in memory. `progress` is told
    how many rows are done. An image that cannot be read raises a UserError that names its row, or is left out with
    `skip_broken`; images that differ in size always raise.
    """
    numbers = index.tolist()
    if not numbers:
        raise UserError("There are no training images to load.")
    tasks = ((numbers[start : start + _CHUNK], start) for start in range(0, len(numbers), _CHUNK))
    pixels, labels = torch.empty(0), torch.empty(len(numbers), dtype=torch.int64)
    filled, skipped = 0, []
    for chunk, found, start in _read(_Reader(rows, None, skip_broken), tasks, workers):
        images, chunk_labels, broken = found
        skipped += broken
        if len(images):
            pixels = _fitting(pixels, images, len(numbers), filled, chunk[0])
            images = images if images.dtype == pixels.dtype else images.float() / 255
            pixels[filled : filled + len(images)] = images
            labels[filled : filled + len(images)] = chunk_labels
            filled += len(images)
        if progress is not None:
            progress(start + len(chunk))
    if not filled:
        raise UserError(f"None of the {len(numbers)} training images can be read; the first is row {numbers[0]}.")
    return pixels[:filled], labels[:filled], skipped


def _fitting(pixels: Tensor, images: Tensor, n: int, filled: int, row: int) -> Tensor:
    """Return the tensor that takes all images: as it is, or anew where these ones need colours or floats."""
    if filled == 0:
        return torch.empty(n, *images.shape[1:], dtype=images.dtype)
    if images.shape[2:] != pixels.shape[2:]:
        raise UserError(
            f"The images differ in size: the first is {pixels.shape[2]}x{pixels.shape[3]}, those from row {row} on "
            f"{images.shape[2]}x{images.shape[3]} (height x width). Give resize and crop, for instance resize = 256 and "
            "crop = 224."
        )
    channels = max(pixels.shape[1], images.shape[1])
    to_float = images.dtype == torch.float32 and pixels.dtype == torch.uint8
    if channels == pixels.shape[1] and not to_float:
        return pixels
    wider = torch.empty(n, channels, *pixels.shape[2:], dtype=torch.float32 if to_float else pixels.dtype)
    wider[:filled] = pixels[:filled].float() / 255 if to_float else pixels[:filled]
    return wider


def read_labels(rows: Rows, index: Tensor) -> Tensor:
    """Return the labels int64 (n,) of the rows `index` (n,): by `rows.labels(index)` where a source has it, else all are read."""
    if hasattr(rows, "labels"):
        return torch.as_tensor(rows.labels(index.tolist()), dtype=torch.int64)
    numbers = index.tolist()
    parts = [rows.fetch(numbers[start : start + _CHUNK])[1] for start in range(0, len(numbers), _CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class LoadedSet(Entries):
    """Training images that stay where they are: `workers` processes decode the rows of each batch, two batches ahead each.

    Batches are those of `TrainingSet` with the same arguments, bit for bit. `labels` (N,) are those of the rows `index`
    (N,), 0..N-1 if not given; the other arguments are those of `Entries`.
    """

    def __init__(
        self, rows: Rows, labels: Tensor, *, plan: DuplicationPlan | None = None, index: Tensor | None = None,
        weights: Tensor | None = None, seed: int = 0, augment: str = "crop-flip", padding: int = 4,
        share_augmentation: bool = False, channels_last: bool = False, classes: int | None = None,
        device: torch.device | str = "cpu", workers: int = 0,
    ) -> None:  # fmt: skip
        if len(labels) == 0:
            raise UserError("There are no training images.")
        self.rows, self.workers = rows, workers
        first, _ = rows.fetch([0 if index is None else int(index[0])])
        super().__init__(
            labels, channels=first.shape[1], size=(first.shape[2], first.shape[3]), plan=plan, index=index,
            weights=weights, seed=seed, augment=augment, padding=padding, share_augmentation=share_augmentation,
            channels_last=channels_last, classes=classes, device=device,
        )  # fmt: skip
        # What the worker processes are told stays on the CPU.
        self._places, self._sources, self._copies = self.place.cpu(), self.source.cpu(), self.copy.cpu()

    def order(self, epoch: int) -> Tensor:
        """Return the positions (M,) in the order of an epoch, on the CPU."""
        return super().order(epoch).cpu()

    def batch(self, positions: Tensor, epochs: Tensor) -> Batch:
        """Return the entries at `positions` (n,) int64 as they are in `epochs` (n,) int64, read here and now."""
        return next(self._batches([(0, positions, epochs)], workers=0))[1]

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for each (step, positions, epochs), reading ahead. Raises UserError for a broken image."""
        return self._batches(requests, self.workers)

    def _batches(self, requests: Iterable[Request], workers: int) -> Iterator[tuple[int, Batch]]:
        tasks = (self._task(step, positions.cpu(), epochs.cpu()) for step, positions, epochs in requests)
        reader = _Reader(self.rows, self.near, skip_broken=False)
        for _, (pixels, _, _), (step, positions, epochs, _, _) in _read(
            reader, tasks, workers, pin=self.device.type == "cuda"
        ):
            if pixels.shape[1] < self.channels:  # a batch of grey images among coloured ones
                pixels = pixels.expand(-1, self.channels, -1, -1)
            elif pixels.shape[1:] != (self.channels, *self.size):
                raise UserError(
                    f"The training images differ: the first is {self.channels}x{self.size[0]}x{self.size[1]}, others "
                    f"are {'x'.join(str(side) for side in pixels.shape[1:])}. Give resize and crop, or grey."
                )
            moved = (part.to(self.device, non_blocking=True) for part in (pixels, positions, epochs))
            yield step, self.finish(*moved)

    def _task(self, step: int, positions: Tensor, epochs: Tensor) -> Task:
        numbers = self._sources[positions].tolist()
        return numbers, (step, positions, epochs, self._places[positions], self._copies[positions])


class _Reader(Dataset[Any]):
    """Reads the rows of a task; in a worker process, so what goes wrong comes back as a value."""

    def __init__(self, rows: Rows, near: NearTransform | None, skip_broken: bool) -> None:
        self.rows, self.near, self.skip_broken = rows, near, skip_broken

    def __getitem__(self, task: Task) -> tuple[list[int], Any, Any]:
        numbers, more = task
        try:
            pixels, labels, skipped = self._fetch(numbers)
        except UserError as error:
            return numbers, error, more
        if self.near is not None:
            *_, place, copy = more
            pixels = change_copies(self.near, pixels, place, copy)
        return numbers, (pixels, labels, skipped), more

    def _fetch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Return pixels, labels and the rows that cannot be read; bytes where these images are on the 8-bit grid."""
        if not numbers:
            return torch.empty(0, *self.rows.fetch([0])[0].shape[1:], dtype=torch.uint8), torch.empty(0), []
        broken: list[int] = []
        try:
            images, labels = self.rows.fetch(numbers)
        except UserError:
            if not self.skip_broken:
                raise
            broken = [number for number in numbers if not self._reads(number)]
            numbers = [number for number in numbers if number not in broken]
            if not numbers:
                return torch.empty(0), torch.empty(0), broken
            images, labels = self.rows.fetch(numbers)
        levels = to_bytes(images)
        return (levels if torch.equal(levels.float() / 255, images) else images), labels, broken

    def _reads(self, number: int) -> bool:
        try:
            self.rows.fetch([number])
        except UserError:
            return False
        return True


def _read(
    reader: _Reader, tasks: Iterable[Task], workers: int, *, pin: bool = False
) -> Iterator[tuple[list[int], Any, Any]]:
    """Yield (rows, (pixels, labels, skipped), more) for each task, in order, read by worker processes. Raises UserError."""
    loader = DataLoader(
        reader, sampler=tasks, batch_size=None, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin,
        generator=torch.Generator(),  # else it would draw from the global one
    )  # fmt: skip
    for numbers, found, more in loader:
        if isinstance(found, UserError):
            raise found
        yield numbers, found, more


def _as_it_is(value: Any) -> Any:
    return value
