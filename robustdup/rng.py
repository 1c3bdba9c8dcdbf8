"""Stateless randomness that belongs to a sample.

Every draw is a pure function of (seed, purposes, sample index, draw number, position), so a result does not depend on
batch size, on the order of the points, or on where a run was interrupted. The generator is Philox4x32-10, counter-based
and published with known answers (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from robustdup.errors import UserError

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: Sequence[Tensor | int], key: tuple[int, int]) -> list[Tensor]:
    """Return four words of 32 bits for each counter: Philox4x32 with ten rounds.

    `counter` is four broadcastable int64 tensors (or ints) of values in [0, 2^32); the result is four int64 tensors.
    Integer arithmetic only, which wraps the same way on every device.
    """
    device = next((part.device for part in counter if isinstance(part, Tensor)), torch.device("cpu"))
    # A number is filled in on the device: copying it there would wait for what runs on a GPU.
    parts = [p if isinstance(p, Tensor) else torch.full((), p, dtype=torch.int64, device=device) for p in counter]
    c0, c1, c2, c3 = torch.broadcast_tensors(*parts)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK) ^ c1 ^ k0,
            product_1 & _MASK,
            ((product_0 >> 32) & _MASK) ^ c3 ^ k1,
            product_0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return [c0, c1, c2, c3]


def _words(index: Tensor, blocks: int, draw: int, key: int) -> Tensor:
    """Return the words (N, 4 * blocks) that samples (N,) draw under a key of 64 bits."""
    numbers = torch.arange(blocks, dtype=torch.int64, device=index.device)
    sample = index[:, None]
    words = philox4x32((numbers[None, :], draw, sample & _MASK, (sample >> 32) & _MASK), (key & _MASK, key >> 32))
    return torch.stack(words, dim=-1).flatten(1)


@cache
def _kernel(device: torch.device) -> Callable[[Tensor, int, int, int], Tensor]:
    """Return what draws words on a GPU: one kernel where it can be built there and gives the same bits, else `_words`."""
    index = torch.arange(5, device=device) * 0x1234567890
    with contextlib.suppress(Exception):  # no compiler, no Triton for this system, a GPU that it does not know
        from robustdup.rng_kernel import philox_words

        if torch.equal(philox_words(index, 3, 7, _mix(0, "trial")), _words(index, 3, 7, _mix(0, "trial"))):
            return philox_words
    return _words


def _mix(key: int, purpose: str | int) -> int:
    text = f"{key:016x}/{type(purpose).__name__}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class SampleRng:
    """Randomness for a set of samples: one independent stream a sample, a purpose and a draw number.

    `index` (N,) int64 holds the samples' own numbers (in evaluation: their place in the dataset), never their place in
    a batch. All methods return tensors of shape (N, *shape) on `index`'s device. Nothing here has state: the same call
    gives the same values, and a second draw is asked for with another `draw`.
    """

    def __init__(self, seed: int, index: Tensor, *, _key: int | None = None) -> None:
        if index.ndim != 1 or index.dtype != torch.int64:
            raise UserError(
                f"SampleRng needs a 1-d int64 tensor of sample numbers, got {tuple(index.shape)} {index.dtype}.",
                code="bad-value",
            )
        self.seed = int(seed)
        self.index = index
        self._key = _mix(0, self.seed) if _key is None else _key

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> SampleRng:
        """Keep the samples that a mask, an index tensor or a slice names, each with its stream."""
        return SampleRng(self.seed, self.index[rows], _key=self._key)

    def fold(self, purpose: str | int) -> SampleRng:
        """Return the streams of the same samples for another purpose."""
        return SampleRng(self.seed, self.index, _key=_mix(self._key, purpose))

    def to(self, device: torch.device | str) -> SampleRng:
        """Move to a device: the values drawn stay the same."""
        return SampleRng(self.seed, self.index.to(device), _key=self._key)

    def call_seed(self) -> int:
        """Return one number in [0, 2^31) for this whole set of samples: for toolkits with a global generator."""
        content = hashlib.blake2b(
            self.index.cpu().numpy().tobytes(), digest_size=8, key=self._key.to_bytes(8, "little")
        )
        return int.from_bytes(content.digest(), "little") & 0x7FFFFFFF

    def bits(self, shape: Sequence[int] = (), *, draw: int = 0) -> Tensor:
        """Return int64 values uniform in [0, 2^32), bit-equal on every device."""
        per_sample = math.prod(shape)
        make = _kernel(self.index.device) if self.index.is_cuda else _words
        words = make(self.index, -(-per_sample // 4), int(draw) & _MASK, self._key)
        return words[:, :per_sample].reshape(len(self), *shape)

    def uniform(
        self, shape: Sequence[int] = (), *, draw: int = 0, low: float = 0.0, high: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # fmt: skip
        """Return values uniform in [low, high), from 24 random bits each; bit-equal on every device for [0, 1)."""
        unit = (self.bits(shape, draw=draw) >> 8).to(dtype) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, low: int, high: int, shape: Sequence[int] = (), *, draw: int = 0) -> Tensor:
        """Return int64 values uniform in [low, high), at most 2^31 of them; bit-equal on every device."""
        count = high - low
        if not 0 < count <= 2**31:
            raise UserError(
                f"integers({low}, {high}): the range must hold between 1 and 2^31 values.", code="bad-value"
            )
        return low + ((self.bits(shape, draw=draw) * count) >> 32)

    def signs(self, shape: Sequence[int] = (), *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return -1 or +1 with equal chance, bit-equal on every device."""
        return (self.bits(shape, draw=draw) >> 31).to(dtype) * 2 - 1

    def normal(self, shape: Sequence[int] = (), *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal values (Box-Muller); equal across devices to rounding."""
        pair = self.bits((*shape, 2), draw=draw).to(torch.float64)
        radius = torch.sqrt(-2 * torch.log((pair[..., 0] + 0.5) * 2.0**-32))
        return (radius * torch.cos(2 * math.pi * pair[..., 1] * 2.0**-32)).to(dtype)


def seed_torch(seed: int) -> None:
    """Seed torch's generators, those of GPUs only where there is one.

    Without one, `torch.manual_seed` formats the call stack for each kind of device and keeps it for later: that takes
    several milliseconds and is done for each call of an attack.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
