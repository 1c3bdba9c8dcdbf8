"""What of a process changes how torch computes, and what other code of the process stands on: read, compared, put back.

`isolated` forks the random generators. Here are the switches: threads, precision, modes and hooks of torch, the working
folder, the environment, the streams. A toolkit may leave any of them behind, without malice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as hooks_of_torch

from robustdup.precision import fp32_switches, put_back

_C: Any = torch._C
_GLOBAL_HOOKS = [
    value for name, value in vars(hooks_of_torch).items() if name.startswith("_global_") and value is not None
]
_DEVICES = ("cpu", "cuda")
_ATTENTION = [
    (getattr(_C, f"_get_{kind}_sdp_enabled"), getattr(_C, f"_set_sdp_use_{kind}"))
    for kind in ("flash", "mem_efficient", "math", "cudnn")
    if hasattr(_C, f"_get_{kind}_sdp_enabled") and hasattr(_C, f"_set_sdp_use_{kind}")
]

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]


def _device_context() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)  # type: ignore[attr-defined]


def _set_device_context(context: Any) -> None:
    torch._GLOBAL_DEVICE_CONTEXT.device_context = context  # type: ignore[attr-defined]


def _function_modes() -> list[Any]:
    return [_C._get_function_stack_at(place) for place in range(_C._len_torch_function_stack())]


def _set_function_modes(modes: list[Any]) -> None:
    while _C._len_torch_function_stack():
        _C._pop_torch_function_stack()
    for mode in modes:
        _C._push_on_torch_function_stack(mode)


def _dispatch_modes() -> list[Any]:
    return [_C._get_dispatch_stack_at(place) for place in range(_C._len_torch_dispatch_stack())]


def _set_dispatch_modes(modes: list[Any]) -> None:
    while _C._len_torch_dispatch_stack():
        _C._pop_torch_dispatch_stack(None)
    for mode in modes:
        _C._push_on_torch_dispatch_stack(mode)


def _hooks() -> list[dict[Any, Any]]:
    return [dict(table) for table in _GLOBAL_HOOKS if isinstance(table, dict)]


def _set_hooks(tables: list[dict[Any, Any]]) -> None:
    for table, content in zip((t for t in _GLOBAL_HOOKS if isinstance(t, dict)), tables, strict=True):
        table.clear()
        table.update(content)


def _autocast() -> list[tuple[bool, torch.dtype]]:
    return [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES]


def _set_autocast(values: list[tuple[bool, torch.dtype]]) -> None:
    for device, (enabled, dtype) in zip(_DEVICES, values, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _set_inference_mode(enabled: bool) -> None:
    torch.inference_mode(enabled).__enter__()


def _flushes() -> bool:
    """Say whether denormal numbers are taken for zero in this thread, for which torch has no getter."""
    small = np.float32(1e-38)
    return bool(small * np.float32(0.1) == 0)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _folder() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109
    return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _set_numpy_errors(errors: dict[str, Any]) -> None:
    np.seterr(**errors)


def _signals() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def _set_signals(handlers: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)


def _streams() -> list[Any]:
    return [sys.stdin, sys.stdout, sys.stderr]


def _set_streams(streams: list[Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


# In this order: modes first, since they see every call of torch.
SETTINGS: tuple[Setting, ...] = (
    ("modes of torch functions", _function_modes, _set_function_modes),
    ("modes of torch dispatch", _dispatch_modes, _set_dispatch_modes),
    ("the default device", _device_context, _set_device_context),
    ("hooks of all modules", _hooks, _set_hooks),
    ("inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
    ("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("autocast", _autocast, _set_autocast),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    ("deterministic algorithms", _deterministic, _set_deterministic),
    ("oneDNN", _C._get_mkldnn_enabled, _C._set_mkldnn_enabled),
    ("oneDNN's determinism", _C._get_mkldnn_deterministic, _C._set_mkldnn_deterministic),
    ("cuDNN", _C._get_cudnn_enabled, _C._set_cudnn_enabled),
    ("cuDNN's benchmark", _C._get_cudnn_benchmark, _C._set_cudnn_benchmark),
    ("cuDNN's determinism", _C._get_cudnn_deterministic, _C._set_cudnn_deterministic),
    ("precision of float32", fp32_switches, put_back),
    ("NNPACK", _C._get_nnpack_enabled, _C._set_nnpack_enabled),
    *(("kernels of attention", get, put) for get, put in _ATTENTION),
    ("the fast path of attention", torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    ("denormal numbers", _flushes, torch.set_flush_denormal),
    ("errors of numpy", np.geterr, _set_numpy_errors),
    ("the working folder", _folder, _set_folder),
    ("environment variables", lambda: dict(os.environ), _set_environment),
    ("standard streams", _streams, _set_streams),
    ("handlers of signals", _signals, _set_signals),
    ("the file mode mask", _umask, os.umask),
    ("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    ("tracing", sys.gettrace, sys.settrace),
    ("profiling", sys.getprofile, sys.setprofile),
)


class ProcessState:
    """The settings of this process at one time."""

    def __init__(self) -> None:
        self._values = [read() for _, read, _ in SETTINGS]

    def put_back(self) -> list[str]:
        """Put back what is different now, and return its names. Raises RuntimeError where a setting keeps its new value."""
        changed = []
        for (name, read, write), before in zip(SETTINGS, self._values, strict=True):
            if _differs(read, before):
                changed.append(name)
                write(before)
                if _differs(read, before):
                    raise RuntimeError(f"{name} cannot be put back")
        return changed


def _differs(read: Callable[[], Any], before: Any) -> bool:
    try:
        now = read()
    except RuntimeError:  # torch refuses to tell where its old and new settings of precision are mixed
        return True
    if isinstance(before, list):
        return len(now) != len(before) or any(a is not b and not _equal(a, b) for a, b in zip(now, before, strict=True))
    return not _equal(now, before)


def _equal(a: Any, b: Any) -> bool:
    plain = (bool, int, str, float, tuple, dict, torch.dtype, type(None))
    return a is b or (isinstance(a, plain) and isinstance(b, plain) and a == b)
