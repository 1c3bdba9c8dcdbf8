"""What of a process changes how torch computes, and what other code of the process stands on: read, compared, put back.

`isolated` forks the random generators. Here are the switches: threads, precision, modes and hooks of torch, the working
folder, the environment, the streams. A toolkit may leave any of them behind, without malice.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_torch

from robustdup.attacks.process_hooks import HOOKS
from robustdup.precision import fp32_switches, put_back

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_C: Any = torch._C
# By their own names: a call may have put others in their place, and is looked at before that is put right.
getitimer: Any = getattr(signal, "getitimer", None)
setitimer: Any = getattr(signal, "setitimer", None)
_GLOBAL_HOOKS = [
    value for name, value in vars(hooks_of_torch).items() if name.startswith("_global_") and value is not None
]
_DEVICES = ("cpu", "cuda")
SIGNALS = sorted(signal.valid_signals() - {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")})
TIMERS = [getattr(signal, name) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name)]
LIMITS = [
    getattr(resource, name)
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
    if hasattr(resource, name)
]
# Of the environment, what libraries of numbers, the loader of programs and robustdup read: other variables change no result.
READ_BY = (
    "ATEN", "CUBLAS", "CUDA", "CUDNN", "DNNL", "GOMP", "HF_", "KMP", "LD_", "MKL", "NUMEXPR", "NVIDIA", "OMP", "ONEDNN",
    "OPENBLAS", "PATH", "PYTHON", "PYTORCH", "ROBUSTDUP", "TORCH", "VECLIB", "XDG", "HOME", "TMP", "TEMP",
)  # fmt: skip
_ATTENTION = [
    (getattr(_C, f"_get_{kind}_sdp_enabled"), getattr(_C, f"_set_sdp_use_{kind}"))
    for kind in ("flash", "mem_efficient", "math", "cudnn")
    if hasattr(_C, f"_get_{kind}_sdp_enabled") and hasattr(_C, f"_set_sdp_use_{kind}")
]

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]
# What libraries set when they are imported, without an effect on numbers: sklearn, torch's compiler and its CUDA part.
OF_IMPORTS = (
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_MODULE_LOADING",
)


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


def _pop_transforms(before: int | None) -> None:
    """Leave the transforms of torch.func (vmap, grad) that were entered and not left; None is outside of all."""
    while _C._functorch.maybe_current_level() not in (before, None):
        _C._functorch.pop_dynamic_layer_stack()


def _leave_dual_levels(before: int) -> None:
    while forward_ad._current_level > before:
        forward_ad.exit_dual_level()  # type: ignore[no-untyped-call]


def _hooks() -> list[dict[Any, Any]]:
    return [dict(table) for table in _GLOBAL_HOOKS if isinstance(table, dict)]


def _set_hooks(tables: list[dict[Any, Any]]) -> None:
    for table, content in zip((t for t in _GLOBAL_HOOKS if isinstance(t, dict)), tables, strict=True):
        table.clear()
        table.update(content)


def _autocast_blocks() -> int:
    """Return how many blocks of autocast are open."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _autocast() -> tuple[int, list[tuple[bool, torch.dtype]]]:
    return _autocast_blocks(), [
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES
    ]


def _set_autocast(values: tuple[int, list[tuple[bool, torch.dtype]]]) -> None:
    open_blocks, settings = values
    for device, (enabled, dtype) in zip(_DEVICES, settings, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    # A block that was left open would keep the low-precision copies of weights, also of weights that a step has changed.
    while _autocast_blocks() > open_blocks:
        torch.autocast_decrement_nesting()
    while _autocast_blocks() < open_blocks:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


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


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _that_matter(before: dict[str, str]) -> list[str]:
    """Return the variables that differ from those before and that may change a result: importing a library sets others."""
    now = os.environ
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [name for name in names if name in before or (name.startswith(READ_BY) and name not in OF_IMPORTS)]


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _set_numpy_errors(errors: dict[str, Any]) -> None:
    np.seterr(**errors)


def _signals() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def _set_signals(handlers: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(SIGNALS, handlers, strict=True):
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _timers() -> dict[int, tuple[float, float]]:
    """Return the timers that will send a signal, whose handler runs while others compute: (when, seconds between)."""
    now = monotonic()
    left = {kind: getitimer(kind) for kind in TIMERS}
    return {kind: (now + seconds, interval) for kind, (seconds, interval) in left.items() if seconds > 0}


def _same_timers(timers: dict[int, tuple[float, float]], before: dict[int, tuple[float, float]]) -> bool:
    """Say whether the timers are those of before; those that count the time of a CPU ring later than was foreseen."""
    if timers.keys() != before.keys():
        return False
    return all(
        interval == before[kind][1] and (kind != signal.ITIMER_REAL or abs(when - before[kind][0]) < 1)
        for kind, (when, interval) in timers.items()
    )


def _limits() -> dict[int, tuple[int, int]]:
    return {kind: resource.getrlimit(kind) for kind in LIMITS}


def _set_limits(limits: dict[int, tuple[int, int]]) -> None:
    for kind, limit in limits.items():
        if resource.getrlimit(kind) != limit:
            resource.setrlimit(kind, limit)


def _cores() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _set_cores(cores: frozenset[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _saved_tensor_hooks() -> Any:
    """Return what is called on tensors that are saved for a backward pass, None where nothing is."""
    return _C._autograd._top_saved_tensors_default_hooks(True)


def _set_saved_tensor_hooks(before: Any) -> None:
    while not _equal(now := _saved_tensor_hooks(), before) and now is not None:
        _C._autograd._pop_saved_tensors_default_hooks()


def _collector() -> list[Any]:
    return [gc.isenabled(), gc.get_threshold()]


def _set_collector(before: list[Any]) -> None:
    (gc.enable if before[0] else gc.disable)()
    gc.set_threshold(*before[1])


def _last_words() -> list[Any]:
    return [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.executable]


def _set_last_words(before: list[Any]) -> None:
    sys.excepthook, sys.unraisablehook, threading.excepthook, sys.executable = before


def _streams() -> list[Any]:
    """Return the standard streams, and which of their methods were replaced in the stream itself."""
    streams = [sys.stdin, sys.stdout, sys.stderr]
    return [*streams, *(_own_methods(stream) for stream in streams)]


def _own_methods(stream: Any) -> dict[str, Any]:
    return {name: value for name, value in getattr(stream, "__dict__", {}).items() if callable(value)}


def _set_streams(before: list[Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = before[:3]
    for stream, methods in zip(before[:3], before[3:], strict=True):
        for name in _own_methods(stream):
            delattr(stream, name)
        for name, method in methods.items():
            setattr(stream, name, method)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _einsum() -> tuple[Any, ...]:
    return tuple(getattr(torch.backends.opt_einsum, name, None) for name in ("enabled", "strategy"))


def _set_einsum(before: tuple[Any, ...]) -> None:
    torch.backends.opt_einsum.enabled, torch.backends.opt_einsum.strategy = before


# In this order: modes first, since they see every call of torch.
SETTINGS: tuple[Setting, ...] = (
    ("modes of torch functions", _function_modes, _set_function_modes),
    ("modes of torch dispatch", _dispatch_modes, _set_dispatch_modes),
    ("transforms of torch functions", lambda: _C._functorch.maybe_current_level(), _pop_transforms),
    ("levels of forward derivatives", lambda: forward_ad._current_level, _leave_dual_levels),
    ("the default device", _device_context, _set_device_context),
    ("hooks of all modules", _hooks, _set_hooks),
    ("hooks of saved tensors", _saved_tensor_hooks, _set_saved_tensor_hooks),
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
    ("threads of autograd", _C._is_multithreading_enabled, _C._set_multithreading_enabled),
    ("the order of einsum", _einsum, _set_einsum),
    ("denormal numbers", _flushes, torch.set_flush_denormal),
    ("errors of numpy", np.geterr, _set_numpy_errors),
    ("the working folder", _folder, _set_folder),
    ("environment variables", _environment, _set_environment),
    ("standard streams", _streams, _set_streams),
    ("handlers of signals", _signals, _set_signals),
    ("limits of the process", _limits, _set_limits),
    ("the cores of the process", _cores, _set_cores),
    ("the garbage collector", _collector, _set_collector),
    ("what is called last", _last_words, _set_last_words),
    ("the file mode mask", _umask, os.umask),
    ("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    ("tracing", sys.gettrace, sys.settrace),
    ("profiling", sys.getprofile, sys.setprofile),
    *HOOKS,
)


class ProcessState:
    """The settings of this process at one time."""

    def __init__(self) -> None:
        self._timers, self._callbacks = _timers(), list(gc.callbacks)
        self._values = [read() for _, read, _ in SETTINGS]

    def hold_still(self) -> list[str]:
        """Stop what would run by itself while all is put back, and return the names of what is new of it."""
        changed = [] if _same_timers(_timers(), self._timers) else ["timers"]
        for kind in TIMERS:
            setitimer(kind, 0.0)
        if gc.callbacks != self._callbacks:
            changed.append("callbacks of the garbage collector")
            gc.callbacks[:] = self._callbacks
        return changed

    def go_on(self) -> None:
        """Start the timers of before again."""
        now = monotonic()
        for kind, (when, interval) in self._timers.items():
            setitimer(kind, max(when - now, 0.01), interval)

    def put_back(self) -> list[str]:
        """Put back what is different now, and return its names. Raises RuntimeError where a setting keeps its new value."""
        changed = []
        for (name, read, write), before in zip(SETTINGS, self._values, strict=True):
            if _differs(read, before):
                if read is not _environment:
                    changed.append(name)
                else:
                    changed += [f"the environment variable {variable}" for variable in _that_matter(before)]
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
    plain = (bool, int, str, float, tuple, dict, frozenset, torch.dtype, type(None))
    return a is b or (isinstance(a, plain) and isinstance(b, plain) and a == b)
