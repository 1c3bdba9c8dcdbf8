"""Training entries as batches: who comes when, how each is augmented, and the stream of a whole run.

Everything is drawn for a sample by its key (source image, copy, epoch). So the originals come in the same order among
themselves, each with the same crop and flip, whatever copies are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustdup.data.augment import Moves, augment_images, check_augment, moves_of
from robustdup.data.mixing import Mixing
from robustdup.data.passes_over import PassesOver, extra_rows, interleaved
from robustdup.data.transforms import Transforms
from robustdup.errors import UserError
from robustdup.rng import SampleRng

if TYPE_CHECKING:
    from robustdup.duplication.near_copies import NearTransform
    from robustdup.duplication.plan import DuplicationPlan

LONGEST = 2**53  # entries that a budget may have: beyond, floats do not count them
MAX_SOURCE, MAX_COPY, MAX_EPOCH = 2**32, 2**16, 2**15
Request = tuple[int, Tensor, Tensor]  # (step, positions (n,), epochs (n,)) of a batch


def sample_keys(source_index: Tensor, copy: Tensor | int, epoch: Tensor | int) -> Tensor:
    """Return the keys (N,) int64 by which training draws for samples: source | copy << 32 | epoch << 48.

    `source_index` (N,) int64 are the images' numbers in the dataset; `copy` is 0 for an original. What has room in a key is
    looked at once, by `check_numbers`: looking waits for the device.
    """
    return source_index | copy << 32 | epoch << 48


def check_numbers(noun: str, numbers: Tensor, limit: int) -> None:
    """Raise UserError unless all numbers are in [0, limit), what a sample's key has room for."""
    if numbers.numel() == 0:
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= limit:
        raise UserError(f"A {noun} number must be in [0, {limit}), got {low if low < 0 else high}.", code="bad-value")


@dataclass
class Batch:
    """A batch of n training entries, on one device.

    `images` float32 (n, C, H, W) in [0, 1], augmented; `labels` int64 (n,), or, of
    mixed images, the shares of classes, float32 (n, K); `weights` float32 (n,) of the loss, or None;
    `rng` holds the samples' streams for everything drawn in training; `position` (n,) are their places in the plan, `index`
    (n,) the indices of their images in the dataset, `moves` how they were cropped and mirrored, where that is kept.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None
    rng: SampleRng
    position: Tensor
    index: Tensor
    moves: Moves | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class EntryOptions:
    """How training entries become samples.

    `share_augmentation` gives copies the crop and flip of the original, `padding` (pixels) is for the crop. `classes` is
    the number of classes (by default, of those that occur). Images come in `channels_last` layout on `device`. Where there
    are extra images, each batch takes `extra_share` of its samples from them, to the nearest whole number. `transforms` and
    `mix` are texts for `robustdup.data.transforms` and `robustdup.data.mixing`, applied in that order after crop and flip.
    """

    seed: int = 0
    augment: str = "crop-flip"
    padding: int = 4
    share_augmentation: bool = False
    channels_last: bool = False
    classes: int | None = None
    device: torch.device | str = "cpu"
    extra_share: float = 0.0
    transforms: str = ""
    mix: str = ""

    @property
    def cropped(self) -> int:
        """Pixels of padding that a crop moves in; 0 where nothing is cropped."""
        return self.padding if self.augment in ("crop-flip", "crop") else 0


USUAL = EntryOptions()


class Entries:
    """The M entries of a duplication plan over N images, and how an entry becomes a sample. Base of the sets of images.

    `labels` (N,); `index` (N,) are the images' indices in the dataset (0..N-1 if not given), which the keys hold; a plan's
    `source_index` are numbers of these N images (those that leak in from another split come behind the plan's own).
    `weights` (M,) weigh the loss, `size` is (height, width). Of each entry `image` (M,) is the number of its image among
    the N, `index` (M,) that image's index in the dataset, `copy` (M,) 0 for an original.

    The last `extra` of the N images are extra data (generated ones, say): they belong to no plan, have no copies and the
    weight 1, and are entries behind those of the plan. `len()` counts the plan's entries: an epoch is as many samples.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        channels: int,
        size: tuple[int, int],
        plan: DuplicationPlan | None = None,
        index: Tensor | None = None,
        weights: Tensor | None = None,
        options: EntryOptions = USUAL,
        extra: int = 0,
    ) -> None:
        check_augment(options.augment)
        self._transforms = Transforms(options.transforms, size) if options.transforms else None
        self._mixing = Mixing(options.mix) if options.mix else None
        n = labels.shape[0] - extra
        image = torch.arange(n) if plan is None else torch.as_tensor(plan.source_index).cpu()
        index = torch.arange(n + extra) if index is None else index.cpu()
        if n < 1 or index.shape != labels.shape:
            raise UserError(f"There are {n} training images, with {len(index)} indices.", code="bad-shape")
        if len(image) == 0 or int(image.max()) >= n or (plan is not None and plan.n_source > n):
            message = f"The duplication plan has {len(image)} entries, not all of them among these {n} images."
            raise UserError(message, code="bad-shape")
        if weights is not None and weights.shape != image.shape:
            message = f"weights must have one value an entry: {tuple(image.shape)}, got {tuple(weights.shape)}."
            raise UserError(message, code="bad-shape")
        copy = torch.zeros_like(image) if plan is None else torch.as_tensor(plan.copy).cpu()
        own = labels.cpu()[image] if plan is None else plan.entry_labels(labels.cpu())
        check_numbers("source", index, MAX_SOURCE)
        check_numbers("copy", copy, MAX_COPY)
        self.options, self.channels_last, self.keep_moves = options, options.channels_last, False
        self.channels, self.size, self.n_images, self.n_extra = channels, size, n, extra
        self.n_entries, self.unique = len(image), int((torch.bincount(image) > 0).sum())
        if extra:
            image = torch.cat([image, torch.arange(n, n + extra)])
            copy, own = torch.cat([copy, torch.zeros(extra).long()]), torch.cat([own, labels[n:].cpu()])
            weights = None if weights is None else torch.cat([weights.cpu().float(), torch.ones(extra)])
        self.classes = int(own.max()) + 1 if options.classes is None else options.classes
        self.device = torch.device(options.device)
        self.image, self.index, self.copy = (t.long().to(self.device) for t in (image, index[image], copy))
        self.labels = own.long().to(self.device)
        self.weights = None if weights is None else weights.float().to(self.device)
        self.near = None if plan is None else plan.near
        # Divided by a tensor, not a number: CUDA multiplies by the reciprocal of a number, which rounds differently.
        self._levels = torch.tensor(255.0, device=self.device)

    def __len__(self) -> int:
        return self.n_entries

    def order(self, epoch: int, *, extra: bool = False) -> Tensor:
        """Return the positions (M,) in the order of an epoch: sorted by 62 random bits of each entry's key.

        With `extra`, those of the extra images, behind the others, as they are in a pass of their own.
        """
        check_numbers("epoch", torch.tensor(epoch), MAX_EPOCH)
        rows = slice(self.n_entries, None) if extra else slice(self.n_entries)
        words = (
            SampleRng(self.options.seed, sample_keys(self.index[rows], self.copy[rows], epoch)).fold("order").bits((2,))
        )
        places = ((words[:, 0] << 30) | (words[:, 1] >> 2)).argsort(stable=True)
        return places + self.n_entries if extra else places

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for each (step, positions, epochs)."""
        raise NotImplementedError

    def finish(self, pixels: Tensor, positions: Tensor, epochs: Tensor) -> Batch:
        """Return the batch of entries whose pixels (n, C, H, W), bytes or floats in [0, 1], are given. Waits for nothing."""
        options, index, copy = self.options, self.index[positions], self.copy[positions]
        rng = SampleRng(options.seed, sample_keys(index, copy, epochs))
        drawn = SampleRng(options.seed, sample_keys(index, 0, epochs)) if options.share_augmentation else rng
        pixels = augment_images(pixels, drawn.fold("augment"), augment=options.augment, padding=options.padding)
        if self._transforms is not None:
            pixels = self._transforms(pixels, drawn.fold("transforms"))
        images = pixels.float().div_(self._levels) if pixels.dtype == torch.uint8 else pixels
        labels = self.labels[positions]
        if self._mixing is not None:
            images, labels = self._mixing(images, labels, self.classes, rng.fold("mix"))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return Batch(
            images=images.contiguous(memory_format=layout),
            labels=labels,
            weights=None if self.weights is None else self.weights[positions],
            rng=rng.fold("train"),
            position=positions,
            index=index,
            moves=self._moves(drawn) if self.keep_moves else None,
        )

    def _moves(self, drawn: SampleRng) -> Moves:
        return moves_of(drawn.fold("augment"), augment=self.options.augment, padding=self.options.padding)


def change_copies(near: NearTransform, pixels: Tensor, source_index: Tensor, copy: Tensor) -> Tensor:
    """Return pixels (n, C, H, W) with those of copies (`copy` (n,) > 0) changed by `near`, which works on bytes."""
    if pixels.is_cuda:  # picking rows would wait for the device: all are computed, and originals put back
        return torch.where((copy > 0)[:, None, None, None], _changed(near, pixels, source_index, copy), pixels)
    rows = copy.nonzero().squeeze(1)
    if len(rows) == 0:
        return pixels
    return pixels.index_copy(0, rows, _changed(near, pixels[rows], source_index[rows], copy[rows]))


def _changed(near: NearTransform, pixels: Tensor, source_index: Tensor, copy: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return near(pixels, source_index, copy)
    return near(to_bytes(pixels), source_index, copy).float() / torch.full((), 255.0, device=pixels.device)


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [0, 1] as the nearest bytes."""
    return (images * 255).round().to(torch.uint8)


class TrainingSet(Entries):
    """Training images in memory: `pixels` (N, C, H, W), uint8 where all are on the 8-bit grid, else float32 in [0, 1].

    The other arguments are those of `Entries`. A batch is gathered, augmented and scaled on `device`.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        plan: DuplicationPlan | None = None,
        index: Tensor | None = None,
        weights: Tensor | None = None,
        options: EntryOptions = USUAL,
        extra: int = 0,
    ) -> None:
        if pixels.ndim != 4 or pixels.dtype not in (torch.uint8, torch.float32) or len(pixels) != len(labels):
            raise UserError(
                f"Training images must be uint8 or float32 of shape (N, C, H, W) with N labels; got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)} with {len(labels)} labels.",
                code="bad-shape",
            )
        size = (pixels.shape[2], pixels.shape[3])
        super().__init__(
            labels, channels=pixels.shape[1], size=size, plan=plan, index=index, weights=weights, options=options,
            extra=extra,
        )  # fmt: skip
        self.pixels = pixels.to(self.device)

    def batch(self, positions: Tensor, epochs: Tensor) -> Batch:
        """Return the entries at `positions` (n,) int64 as they are in `epochs` (n,) int64. Waits for nothing on a GPU."""
        positions = positions.to(self.device, non_blocking=True)
        epochs = epochs.to(self.device, non_blocking=True)
        image = self.image[positions]
        pixels = self.pixels[image]
        if self.near is not None:
            pixels = change_copies(self.near, pixels, image, self.copy[positions])
        return self.finish(pixels, positions, epochs)

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for each (step, positions, epochs)."""
        for step, positions, epochs in requests:
            yield step, self.batch(positions, epochs)


class Stream:
    """The batches of a run: step t takes the samples [t B, (t+1) B) of all epochs' orders, one after the other.

    So a batch may span two epochs, every batch is full but perhaps the very last, and a run of `total_samples` sees just
    so many. Iterating gives (step, batch) from `start_step` on. Of every batch, rank r of p processes takes the r-th of p
    runs of neighbours, as equal as can be; of a last batch with fewer than p samples some ranks get none.

    Where there are extra images, each batch holds the share of them that `entries.options` say, evenly among the others;
    both come from passes of their own.
    """

    def __init__(
        self,
        entries: Entries,
        batch_size: int,
        total_samples: int,
        start_step: int = 0,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("total_samples", total_samples), ("processes", processes)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.", code="bad-value")
        if not 0 <= rank < processes or start_step < 0:
            message = f"There is no rank {rank} of {processes} processes from step {start_step}."
            raise UserError(message, code="bad-value")
        self.entries, self.rank, self.processes = entries, rank, processes
        self.batch_size, self.total_samples, self.start_step = batch_size, total_samples, start_step
        self.n_steps = math.ceil(total_samples / batch_size)
        self._own = PassesOver(len(entries), entries.order)
        self._extra = PassesOver(entries.n_extra, lambda epoch: entries.order(epoch, extra=True))
        self._orders: dict[int, Tensor] = {}
        for passes, samples in zip((self._own, self._extra), self.drawn(total_samples), strict=True):
            if samples > passes.count * MAX_EPOCH:
                message = f"{samples} samples are more than {MAX_EPOCH} epochs of {passes.count} entries."
                raise UserError(message, code="bad-value")

    def __len__(self) -> int:
        return max(self.n_steps - self.start_step, 0)

    def rows(self, step: int) -> int:
        """Return the samples of a step over all processes: the batch size, but for the last step."""
        return min(self.batch_size, self.total_samples - step * self.batch_size)

    def drawn(self, samples: int) -> tuple[int, int]:
        """Return how many of the first `samples` of the stream are the plan's own entries, and how many extra images."""
        batches, rest = divmod(samples, self.batch_size)
        extra = batches * self._extra_rows(self.batch_size) + self._extra_rows(rest)
        return samples - extra, extra

    def unique_seen(self, samples: int) -> int:
        """Return how many different source images are among the first `samples` of the stream, extra ones among them."""
        own, extra = self.drawn(samples)
        if own >= len(self.entries):
            seen = self.entries.unique
        else:
            seen = int((torch.bincount(self.entries.image[self._own.different(own)]) > 0).sum())
        return seen + min(extra, self.entries.n_extra)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self.entries.batches(self._requests())

    def _requests(self) -> Iterator[Request]:
        for step in range(self.start_step, self.n_steps):
            rows = self.rows(step)
            low, high = (rows * rank // self.processes for rank in (self.rank, self.rank + 1))
            if self.entries.n_extra:
                positions, epochs = self._mixed(step, rows)
                yield step, positions[low:high], epochs[low:high]
            else:
                first = step * self.batch_size
                yield step, *self._own.samples(first + low, first + high)

    def _extra_rows(self, rows: int) -> int:
        return extra_rows(rows, self.entries.options.extra_share) if self.entries.n_extra else 0

    def _mixed(self, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Return positions and epochs of a whole batch, own entries and extra images interleaved."""
        own, extra = self.drawn(step * self.batch_size)
        more = self._extra_rows(rows)
        parts = self._own.samples(own, own + rows - more), self._extra.samples(extra, extra + more)
        positions, epochs = (torch.cat(pair) for pair in zip(*parts, strict=True))
        if rows not in self._orders:  # moved once: a copy to a GPU waits for it
            self._orders[rows] = interleaved(rows - more, more).to(positions.device)
        return positions[self._orders[rows]], epochs[self._orders[rows]]
