"""In which precision things are computed: what `auto` means, and torch's switches for float32, read and put back.

torch has two sets of switches, an old one (`set_float32_matmul_precision`, `cudnn.allow_tf32`) and, since 2.9, a new one
(`fp32_precision`), and refuses to tell the old one where both were used. Everything here works whichever was used.
https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

Asked = Literal["auto", "fp32", "tf32", "bf16"]
Precision = Literal["fp32", "tf32", "bf16"]
TrainingPrecision = Literal["fp32", "tf32", "bf16", "fp16"]
AMPERE = (8, 0)  # the first compute capability with TF32 and bf16
# Multiply-adds an image from which bf16 pays on a CPU: at 2 million 1.18 times the speed of fp32, at 0.24 million 1.04.
# Measured by benchmarks/precisions.py: docs/results/speed.md.
WORTH_BF16 = 1.5e6

_C: Any = torch._C
_CUDA = tuple(("cuda", op) for op in ("conv", "rnn", "matmul"))
_CPU = tuple(("mkldnn", op) for op in ("conv", "rnn", "matmul"))
# What can be switched, from the whole to its parts: a whole that is set sets its parts.
_OPERATIONS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), *_CUDA, *_CPU)


def training_precision(
    asked: Literal["auto"] | TrainingPrecision, device: torch.device, *, operations: float = math.inf
) -> TrainingPrecision:
    """Return the precision in which a run trains.

    `auto` is bf16 where the device computes in it: CUDA from compute capability 8.0 on, and CPUs with avx512_bf16 or AMX
    (but not for a network of fewer operations than `WORTH_BF16` there); fp32 otherwise. Weights, optimizer and averages are
    fp32 in any case. fp16, for GPUs without bf16, is taken where it is asked for alone.

    Args:
        asked: what the user asks for.
        device: where the run trains.
        operations: multiply-adds of the network for one image, which decide on a CPU.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if _is_ampere(device) else "fp32"
    return "bf16" if device.type == "cpu" and operations >= WORTH_BF16 and cpu_computes_bf16() else "fp32"


def attack_precision(asked: Asked, device: torch.device) -> Precision:
    """Return the precision of the copy that native attacks run on; the referee computes in strict fp32 in any case.

    `auto` is TF32 on CUDA from compute capability 8.0 on, which is what torch's own defaults give convolutions there and so
    what published AutoAttack figures were computed in; fp32 otherwise.

    Args:
        asked: what the user asks for.
        device: where the attacks run.
    """
    if asked != "auto":
        return asked
    return "tf32" if device.type == "cuda" and _is_ampere(device) else "fp32"


def _is_ampere(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE


def cpu_computes_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 in hardware: avx512_bf16 or AMX. Elsewhere it is several times slower than fp32."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known: list[Callable[[], bool]] = [getattr(torch.cpu, name) for name in asked if hasattr(torch.cpu, name)]
    return any(supported() for supported in known)


class Fp32Switches(NamedTuple):
    """The float32 switches at one time: (backend, operation, value) each, and the old two (None: torch refused to tell)."""

    matmul: str | None
    cudnn: bool | None
    operations: tuple[tuple[str, str, str], ...]


def fp32_switches() -> Fp32Switches:
    """Read torch's switches, whichever set of them was used."""
    matmul, cudnn = _old_matmul(), _old_cudnn()
    return Fp32Switches(matmul, cudnn, tuple((backend, op, _read(backend, op)) for backend, op in _OPERATIONS))


def put_back(switches: Fp32Switches) -> None:
    """Set torch's switches as `fp32_switches` read them."""
    values = {(backend, op): value for backend, op, value in switches.operations}
    # Where torch refused to tell the old ones they contradicted the new ones, and are made to do so again.
    loose = any(values.get((backend, "matmul")) in ("tf32", "bf16") for backend in ("cuda", "mkldnn"))
    torch.set_float32_matmul_precision(switches.matmul or ("highest" if loose else "high"))
    _C._set_cudnn_allow_tf32(values.get(("cuda", "conv")) != "tf32" if switches.cudnn is None else switches.cudnn)
    for backend, op, value in switches.operations:
        if _read(backend, op) != value:
            _C._set_fp32_precision_setter(backend, op, "none")  # so that it follows its backend, where that is enough
            if _read(backend, op) != value:
                _C._set_fp32_precision_setter(backend, op, value)


def set_tf32(allowed: bool, *, cuda: bool = True) -> None:
    """Compute products of float32 in TF32 on CUDA, or strictly in fp32 everywhere.

    Args:
        allowed: whether TF32 is allowed.
        cuda: whether CUDA's switches matter; those of a CPU are made strict in any case where TF32 is not allowed.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    if cuda:
        _C._set_cudnn_allow_tf32(allowed)
    for backend, op in _CUDA if cuda else ():
        _C._set_fp32_precision_setter(backend, op, "tf32" if allowed else "ieee")
    for backend, op in () if allowed else _CPU:
        if _read(backend, op) in ("tf32", "bf16"):
            _C._set_fp32_precision_setter(backend, op, "ieee")


def is_tf32(allowed: bool, *, cuda: bool = True) -> bool:
    """Tell whether the switches are as `set_tf32` would set them, in what they do."""
    on_cuda = all((_read(backend, op) == "tf32") is allowed for backend, op in _CUDA) if cuda else True
    if allowed:
        return on_cuda and (cuda or _old_matmul() == "high")
    return on_cuda and all(_read(backend, op) not in ("tf32", "bf16") for backend, op in _CPU)


@contextlib.contextmanager
def fp32_switches_kept() -> Iterator[None]:
    """Put the switches back at the end of the block, error or not."""
    before = fp32_switches()
    try:
        yield
    finally:
        put_back(before)


def _old_matmul() -> str | None:
    """Return torch's `get_float32_matmul_precision`; None where torch refuses since the new switches were used too."""
    with contextlib.suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _old_cudnn() -> bool | None:
    """Return torch's `cudnn.allow_tf32`; None where torch refuses since the new switches were used too."""
    with contextlib.suppress(RuntimeError):
        return bool(_C._get_cudnn_allow_tf32())
    return None


def _read(backend: str, op: str) -> str:
    return str(_C._get_fp32_precision_getter(backend, op))
