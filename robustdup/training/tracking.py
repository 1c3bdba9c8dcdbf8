"""What is global while a run trains, and put back when it ends: precision, threads, random state, trackers."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustdup.attacks.isolation import isolated
from robustdup.errors import Unavailable, how_to_install, unknown
from robustdup.precision import fp32_switches_kept, set_tf32
from robustdup.training.options import TrainerOptions
from robustdup.training.processes import Processes

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # name: package
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}  # precisions that autocast takes
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
Log = Callable[[Mapping[str, float], int], None]
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Session:
    """`autocast()` is the precision in which an objective computes, `log(values, step)` goes to the trackers."""

    autocast: Autocast = contextlib.nullcontext
    log: Log = lambda values, step: None


@contextlib.contextmanager
def _low_precision(kind: str, dtype: torch.dtype) -> Iterator[None]:
    """Compute in autocast, with copies of the weights as they are now: inside a block that is open already it keeps old ones."""
    torch.clear_autocast_cache()
    with torch.autocast(kind, dtype=dtype):
        yield
    torch.clear_autocast_cache()


@contextlib.contextmanager
def open_session(
    options: TrainerOptions,
    device: torch.device,
    folder: Path | None,
    processes: Processes,
    settings: Mapping[str, Any],
) -> Iterator[Session]:
    """Set precision, threads and trackers for a run; whatever happens in it, everything global is as before at its end.

    Trackers are told the `settings` of the whole run, and write into `folder`. Raises UserError for a tracker that is
    unknown or not installed.
    """
    trackers = check_trackers(options.track)
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated())
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(fp32_switches_kept())
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        # Beside 16 bits what is left in float32 (the loss, Muon, validation) need not be finer than TF32; that is for CUDA.
        low = LOW.get(options.precision)
        set_tf32(options.precision == "tf32" or (low is not None and device.type == "cuda"))
        # All batches have one shape; `isolated` puts cuDNN's switches back.
        torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
        if options.deterministic:
            stack.enter_context(_deterministic_kernels())
        autocast: Autocast = contextlib.nullcontext
        if low is not None:
            autocast = functools.partial(_low_precision, device.type, low)
        if not trackers:
            yield Session(autocast)
            return
        place = (folder or Path()) / "tracking"
        yield Session(autocast, stack.enter_context(_tracked(trackers, device, place, processes, settings)))


@contextlib.contextmanager
def _deterministic_kernels() -> Iterator[None]:
    """Let torch take deterministic kernels alone inside the block; what has none warns.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read when cuBLAS is first used
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


@contextlib.contextmanager
def _tracked(
    trackers: list[str], device: torch.device, place: Path, processes: Processes, settings: Mapping[str, Any]
) -> Iterator[Log]:
    """Open the trackers, and give the function that logs to all of them.

    https://huggingface.co/docs/accelerate/usage_guides/tracking
    """
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

    alone = not PartialState._shared_state  # accelerate's state is global: ours must not decide for a caller's
    accelerator = Accelerator(cpu=device.type == "cpu", log_with=trackers, project_dir=str(place))
    try:
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}
        accelerator.init_trackers("robustdup", config=plain)
        yield lambda values, step: accelerator.log(dict(values), step=step)
        for tracker in accelerator.trackers:
            tracker.finish()
    finally:
        AcceleratorState._reset_state(reset_partial_state=alone and processes.count == 1)


def check_trackers(text: str) -> list[str]:
    """Return the trackers named in 'tensorboard,wandb'. Raises UserError for one unknown, Unavailable for one missing."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise Unavailable(f"The tracker {name!r} is not installed: {how_to_install(TRACKERS[name])}")
    return names
