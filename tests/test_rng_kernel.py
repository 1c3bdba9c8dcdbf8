"""The generator as one kernel: its bits in Triton's interpreter, code for GPUs that are not here, and what happens without."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from robustdup import rng

pytest.importorskip("triton")
INTERPRETED = """
import torch
from robustdup import SampleRng, rng
from robustdup.rng_kernel import philox_words

index = torch.tensor([0, 1, 7919 + (5 << 32), 2**62 + 12345])
for seed, draw, count in ((0, 0, 1), (1, 3, 1021), (2, 2**32 - 1, 8)):
    streams = SampleRng(seed, index).fold("x")
    words = philox_words(index, -(-count // 4), draw, streams._key)
    assert torch.equal(words[:, :count], streams.bits((count,), draw=draw))
assert philox_words(index[:0], 2, 0, 1).shape == (0, 8)
assert rng._kernel(torch.device("cpu")) is philox_words
"""


@pytest.fixture(autouse=True)
def untried():
    rng._kernel.cache_clear()
    yield
    rng._kernel.cache_clear()


@pytest.mark.slow
def test_one_kernel_draws_the_bits_of_torchs_operations():
    """In a process of its own: the interpreter takes the place of the compiler when Triton is imported."""
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_torchs_operations_draw_where_the_kernel_cannot_run_or_gives_other_bits(monkeypatch):
    assert rng._kernel(torch.device("cpu")) is rng._words
    rng._kernel.cache_clear()
    wrong = SimpleNamespace(philox_words=lambda *given: rng._words(*given) + 1)
    monkeypatch.setitem(sys.modules, "robustdup.rng_kernel", wrong)
    assert rng._kernel(torch.device("cpu")) is rng._words
    rng._kernel.cache_clear()
    right = SimpleNamespace(philox_words=lambda *given: rng._words(*given).clone())
    monkeypatch.setitem(sys.modules, "robustdup.rng_kernel", right)
    assert rng._kernel(torch.device("cpu")) is right.philox_words


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernel_can_be_compiled_for_gpus_that_are_not_here(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from robustdup.rng_kernel import SIZE, _philox

    kinds = {
        "index": "*i64",
        "words": "*i64",
        "blocks": "i32",
        "total": "i32",
        "draw": "i32",
        "key": "i64",
        "size": "constexpr",
    }
    made = compile(ASTSource(_philox, kinds, {"size": SIZE}), target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 1000
