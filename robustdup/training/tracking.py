"""What is global while a run trains, and put back when it ends: precision, threads, random state, trackers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustdup.attacks.isolation import isolated
from robustdup.config import TrainConfig
from robustdup.errors import Unavailable, unknown
from robustdup.training.processes import Processes

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # name: package
Log = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Session:
    """`autocast()` is the precision in which an objective computes, `log(values, step)` goes to the trackers."""

    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    log: Log = lambda values, step: None


@contextlib.contextmanager
def open_session(
    config: TrainConfig, device: torch.device, folder: Path | None, processes: Processes
) -> Iterator[Session]:
    """Set precision, threads and trackers for a run; whatever happens in it, everything global is as before at its end.

    Raises UserError for a tracker that is unknown or not installed.
    https://huggingface.co/docs/accelerate/package_reference/accelerator
    """
    trackers = check_trackers(config.track)
    threads = torch.get_num_threads()
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated())
        stack.callback(torch.set_num_threads, threads)
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", cudnn)
        stack.callback(torch.set_float32_matmul_precision, matmul)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
        torch.backends.cudnn.benchmark = device.type == "cuda"  # all batches have one shape; `isolated` puts it back
        if config.precision != "bf16" and not trackers:
            yield Session()
            return
        yield stack.enter_context(_accelerated(config, device, folder, processes, trackers))


@contextlib.contextmanager
def _accelerated(
    config: TrainConfig, device: torch.device, folder: Path | None, processes: Processes, trackers: list[str]
) -> Iterator[Session]:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

    alone = not PartialState._shared_state  # accelerate's state is global: ours must not decide for a caller's
    place = str((folder or Path(".")) / "tracking")
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=device.type == "cpu",
        log_with=trackers or None, project_dir=place if trackers else None,
    )  # fmt: skip
    try:
        if trackers:
            accelerator.init_trackers("robustdup", config=_flat(config))
        yield Session(accelerator.autocast, lambda values, step: accelerator.log(dict(values), step=step))
        if trackers:
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
            raise Unavailable(f"The tracker {name!r} is not installed: pip install {TRACKERS[name]}.")
    return names


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as trackers take it: numbers and texts."""
    content = config.model_dump(mode="json")
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in content.items()}
