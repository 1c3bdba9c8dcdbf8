"""The generator of `robustdup.rng` as one kernel for CUDA: the same bits, which torch's operations make in 124 launches.

https://triton-lang.org/main/python-api/triton.language.html
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

SIZE = 256  # blocks of four words that a program makes


@triton.jit(do_not_specialize=["blocks", "total", "draw", "key"])  # type: ignore[untyped-decorator]
def _philox(index, words, blocks, total, draw, key, size: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    inside = place < total
    sample = tl.load(index + place // blocks, mask=inside, other=0)
    zero = (place * 0).to(tl.uint32)
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, (place % blocks).to(tl.uint32), zero + draw.to(tl.uint32), low, high, 10)
    tl.store(words + 4 * place, w0.to(tl.int64), mask=inside)
    tl.store(words + 4 * place + 1, w1.to(tl.int64), mask=inside)
    tl.store(words + 4 * place + 2, w2.to(tl.int64), mask=inside)
    tl.store(words + 4 * place + 3, w3.to(tl.int64), mask=inside)


def philox_words(index: Tensor, blocks: int, draw: int, key: int) -> Tensor:
    """Return the words (N, 4 * blocks), int64 in [0, 2^32), that samples (N,) int64 draw under a key of 64 bits."""
    words = torch.empty(len(index), 4 * blocks, dtype=torch.int64, device=index.device)
    total = len(index) * blocks
    if total:
        with torch.cuda.device_of(index):  # type: ignore[no-untyped-call]
            signed = key - 2**64 if key >= 2**63 else key
            _philox[(triton.cdiv(total, SIZE),)](index.contiguous(), words, blocks, total, draw, signed, size=SIZE)
    return words
