"""Run a toolkit without letting it touch anything: global random state, the model's mode and gradients, cuDNN flags."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.rng import seed_torch

_alone = [threading.RLock()]  # of this process: what is put back is shared by its threads


def _forked() -> None:
    """Give a forked process a lock of its own: the thread that held this one is not there."""
    _alone[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def isolated(model: nn.Module | None = None, *, seed: int | None = None) -> Iterator[None]:
    """Fork the global random state (seeded with `seed` if given) and put everything back afterwards, error or not.

    Restored: the generators of `random`, numpy and torch (all devices), grad mode, default dtype, cuDNN flags and,
    module by module, the model's train/eval mode, `requires_grad`, `.grad` and buffers. Gradients are enabled inside.
    One thread of a process at a time is inside; others wait.
    """
    with _alone[0], _isolated(model, seed):
        yield


@contextmanager
def _isolated(model: nn.Module | None, seed: int | None) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if has_cuda else []
    cudnn = torch.backends.cudnn
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    dtype = torch.get_default_dtype()
    modules = [(module, module.training) for module in model.modules()] if model is not None else []
    parameters = (
        [(p, p.requires_grad, p.grad if p.is_leaf else None) for p in model.parameters()] if model is not None else []
    )
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if model is not None else []
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None  # a backward pass would add to the kept tensor in place
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            seed_torch(seed)
        with torch.enable_grad():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags
        torch.set_default_dtype(dtype)
        for module, training in modules:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        _restore(buffers)


@torch.no_grad()
def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    """Put values back into the buffers that have others now; the rest are not touched, since a graph may hold them.

    Those on a GPU are compared all at once, so that it is waited for once.
    """
    there = [(b, v) for b, v in buffers if b.is_cuda and b.shape == v.shape and b.device == v.device]
    moved: dict[int, bool] = {}
    for device in {buffer.device for buffer, _ in there}:
        pairs = [(b, v) for b, v in there if b.device == device]
        flags = torch.stack([(b != v).any() for b, v in pairs]).tolist()
        moved |= {id(b): flag for (b, _), flag in zip(pairs, flags, strict=True)}
    for buffer, value in buffers:
        if moved[id(buffer)] if id(buffer) in moved else not torch.equal(buffer, value):
            buffer.copy_(value)
