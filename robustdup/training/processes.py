"""Several processes that train one model: each has its share of every batch, and all hold the same weights.

Gradients are summed by one collective call a step; statistics of BatchNorm are those of the whole batch. So a run does
not depend on how many processes share it, to rounding (but for dropout, whose masks are drawn in each process).

Accelerate joins the processes (and opens trackers, see `robustdup.training.tracking`). It does not wrap the model: update
rules make several backward passes a step and move weights between them, and objectives call parts of the model, which
torch's DistributedDataParallel does not follow; torch's SyncBatchNorm is for CUDA.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustdup.errors import UserError

BatchNorm = nn.modules.batchnorm._BatchNorm
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # where launchers say how many

PATIENCE = timedelta(days=1)  # others wait while the first one validates and saves; by torch's own rule for ten minutes

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process' place among those of the run: `rank` of `count`, on `device` (None: whichever is asked for).

    One process alone needs no communication.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, validates and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def least(self, values: Tensor) -> Tensor:
        """Return the least value of a tensor over all processes, place by place."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of `parameters` by their sums over all processes, in one collective call."""
        if self.count == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view(grad.shape))

    def first_of(self, rows: int) -> int:
        """Return the place of this process's first sample in a batch of `rows` that is shared out in runs of neighbours."""
        return rows * self.rank // self.count

    def whole(self, values: Tensor, rows: int) -> Tensor:
        """Return the values (rows, ...) of a whole batch from each process's values (n, ...) of its share."""
        if self.count == 1:
            return values
        every = values.new_zeros(rows, *values.shape[1:])
        first = self.first_of(rows)
        every[first : first + len(values)] = values
        return self.sum(every)

    def share_model(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        if self.count > 1:
            for value in model.state_dict().values():
                whole = value.contiguous()
                dist.broadcast(whole, src=0)
                value.copy_(whole)

    def from_first(self, value: T) -> T:
        """Return the first process' `value` (numbers, texts, lists of them) in every process."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def open_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that `torchrun`, `accelerate launch` or MPI started: NCCL with CUDA, gloo on a CPU.

    A process that was started alone gets `Processes()`. Raises UserError for one GPU by its number, which several
    processes cannot share. https://huggingface.co/docs/accelerate/package_reference/state
    """
    if max(int(os.environ.get(name) or 1) for name in SIZES) <= 1:
        yield Processes()
        return
    if ":" in device:
        raise UserError(
            f"Several processes cannot all use {device!r}. Leave --device out: each takes a GPU of its own.",
            code="bad-device",
        )
    from accelerate import PartialState  # type: ignore[import-untyped]

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    try:
        yield Processes(state.process_index, state.num_processes, torch.device("cpu") if cpu else state.device)
    finally:
        state.destroy_process_group()
        PartialState._reset_state()


@contextlib.contextmanager
def whole_batch_norm(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Let BatchNorm in train mode see the batch of all processes, in passes that train the model's own weights.

    Passes with frozen weights (an inner attack) and copies of the model keep to themselves: attacks may make different
    numbers of passes in different processes. On CUDA the kernels are those of torch's SyncBatchNorm, which is for CUDA only.
    """
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if processes.count == 1 or not layers:
        yield
        return
    own = set(map(id, layers))

    def forward(layer: BatchNorm, values: Tensor) -> Tensor:
        frozen = layer.weight is not None and not layer.weight.requires_grad
        if id(layer) in own and layer.training and torch.is_grad_enabled() and not frozen:
            return _normalise(layer, values)
        return type(layer).forward(layer, values)

    for layer in layers:
        layer.__dict__["forward"] = types.MethodType(forward, layer)  # a copy of a layer gets one bound to the copy
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _normalise(layer: BatchNorm, values: Tensor) -> Tensor:
    """Normalise by mean and variance over all processes: values (n, C, ...), statistics in float32 at least."""
    if values.is_cuda and _plain(layer):
        return _fused(layer, values)
    axes = [axis for axis in range(values.ndim) if axis != 1]
    wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    rows = wide.new_full((1,), values.numel() / values.shape[1])
    sums = _SumOver.apply(torch.cat([wide.sum(axes), rows]))  # type: ignore[no-untyped-call]
    mean, count = sums[:-1] / sums[-1], sums[-1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    centred = wide - mean.view(shape)
    var = _SumOver.apply(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
    _remember(layer, mean.detach(), var.detach(), count.detach())
    normal: Tensor = centred * (var + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
    return normal.to(values.dtype)


class _SumOver(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _plain(layer: BatchNorm) -> bool:
    """Tell whether torch's kernels for CUDA take the layer: they need weights, and statistics with a fixed momentum."""
    return layer.affine and layer.track_running_stats and layer.running_mean is not None and layer.momentum is not None


def _fused(layer: BatchNorm, values: Tensor) -> Tensor:
    """Normalise by torch's kernels for CUDA, those of nn.SyncBatchNorm: one collective call a layer and pass."""
    from torch.nn.modules._functions import SyncBatchNorm

    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    group: Any = dist.group.WORLD
    normal: Tensor = SyncBatchNorm.apply(  # type: ignore[no-untyped-call]
        values, layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps, layer.momentum, group,
        dist.get_world_size(),
    )  # fmt: skip
    return normal


def _remember(layer: BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as BatchNorm does, with the unbiased variance."""
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share: Any = layer.momentum if layer.momentum is not None else 1.0 / layer.num_batches_tracked
    with torch.no_grad():
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
        layer.running_var.lerp_((var * count / (count - 1)).to(layer.running_var.dtype), share)
