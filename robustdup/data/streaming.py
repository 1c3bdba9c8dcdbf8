"""Training images that do not fit in memory: worker processes read the images of each batch, a little ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustdup.data.batches import USUAL, Batch, Entries, EntryOptions, Request, change_copies, to_bytes
from robustdup.errors import UserError

if TYPE_CHECKING:
    from robustdup.data.dataset import Samples
    from robustdup.duplication.near_copies import NearTransform
    from robustdup.duplication.plan import DuplicationPlan

_CHUNK = 256  # samples that are read at once
Task = tuple[list[int], Request, Tensor, Tensor]  # indices to read, the request, numbers of the images, copies


def read_labels(samples: Samples, index: Tensor) -> Tensor:
    """Return the labels int64 (n,) at `index` (n,): by `samples.labels` where a source has it, else all are read."""
    if callable(getattr(samples, "labels", None)):
        return torch.as_tensor(samples.labels(index.tolist()), dtype=torch.int64)  # type: ignore[attr-defined]
    indices = index.tolist()
    parts = [samples.fetch(indices[start : start + _CHUNK])[1] for start in range(0, len(indices), _CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class StreamingSet(Entries):
    """Training images that stay where they are: `workers` processes decode the images of each batch, two batches ahead each.

    Batches are those of `TrainingSet` with the same arguments, bit for bit. `labels` (N,) are those at `index` (N,),
    0..N-1 if not given; the other arguments are those of `Entries`.
    """

    def __init__(
        self,
        samples: Samples,
        labels: Tensor,
        *,
        plan: DuplicationPlan | None = None,
        index: Tensor | None = None,
        weights: Tensor | None = None,
        options: EntryOptions = USUAL,
        workers: int = 0,
    ) -> None:
        if len(labels) == 0:
            raise UserError("There are no training images.", code="no-data")
        self.samples, self.workers = samples, workers
        first, _ = samples.fetch([0 if index is None else int(index[0])])
        size = (first.shape[2], first.shape[3])
        super().__init__(
            labels, channels=first.shape[1], size=size, plan=plan, index=index, weights=weights, options=options
        )
        # What the worker processes are told stays on the CPU.
        self._images, self._indices, self._copies = self.image.cpu(), self.index.cpu(), self.copy.cpu()

    def order(self, epoch: int, *, extra: bool = False) -> Tensor:
        """Return the positions (M,) in the order of an epoch, or of a pass over the extra images, on the CPU."""
        return super().order(epoch, extra=extra).cpu()

    def batch(self, positions: Tensor, epochs: Tensor) -> Batch:
        """Return the entries at `positions` (n,) int64 as they are in `epochs` (n,) int64, read here and now."""
        return next(self._batches([(0, positions, epochs)], workers=0))[1]

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for each (step, positions, epochs), reading ahead. Raises UserError for a broken image."""
        return self._batches(requests, self.workers)

    def _batches(self, requests: Iterable[Request], workers: int) -> Iterator[tuple[int, Batch]]:
        loader = DataLoader(
            _Reader(self.samples, self.near),
            sampler=map(self._task, requests),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for pixels, (step, positions, epochs) in loader:
            if isinstance(pixels, UserError):
                raise pixels
            if pixels.shape[1] < self.channels:  # a batch of grey images among coloured ones
                pixels = pixels.expand(-1, self.channels, -1, -1)
            if pixels.shape[1:] != (self.channels, *self.size):
                raise UserError(
                    f"The training images differ: the first is {self.channels}x{self.size[0]}x{self.size[1]}, others "
                    f"are {'x'.join(str(side) for side in pixels.shape[1:])}. Give resize and crop, or grey.",
                    code="bad-shape",
                )
            yield step, self.finish(*(part.to(self.device, non_blocking=True) for part in (pixels, positions, epochs)))

    def _task(self, request: Request) -> Task:
        step, positions, epochs = request
        positions = positions.cpu()
        indices = self._indices[positions].tolist()
        return indices, (step, positions, epochs.cpu()), self._images[positions], self._copies[positions]


class _Reader(Dataset[Any]):
    """Reads the images of a task; in a worker process, so what goes wrong comes back as a value."""

    def __init__(self, samples: Samples, near: NearTransform | None) -> None:
        self.samples, self.near = samples, near

    def __getitem__(self, task: Task) -> tuple[Tensor | UserError, Request]:
        """Return the images, as bytes where all of them are on the 8-bit grid, near copies changed; or what is wrong."""
        indices, request, numbers, copy = task
        try:
            images, _ = self.samples.fetch(indices or [0])
        except UserError as error:
            return error, request
        images = images[: len(indices)]  # of a small last batch a process may get no sample
        levels = to_bytes(images)
        pixels = levels if torch.equal(levels.float() / 255, images) else images
        return (pixels if self.near is None else change_copies(self.near, pixels, numbers, copy)), request


def _as_it_is(value: Any) -> Any:
    return value
