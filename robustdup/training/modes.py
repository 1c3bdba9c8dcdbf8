"""What an inner pass must leave as it was: train and eval modes, running statistics, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def inner_mode(model: nn.Module, bn: str = "eval") -> Iterator[None]:
    """Freeze the parameters and put the model in eval mode; with `bn` "train", BatchNorm uses the batch's statistics.

    Running statistics are neither used nor changed in train mode; layers that are in eval mode (frozen ones) stay so.
    Everything is put back module by module, error or not.
    """
    modules = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = [module for module, on in modules if on and isinstance(module, _NormBase)] if bn == "train" else []
    try:
        for module, _ in modules:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)
        with batch_statistics(norms):
            yield
    finally:
        for module, training in modules:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a model as they are while its BatchNorm layers stay in the mode they are in."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    with batch_statistics(norms):
        yield


@contextmanager
def batch_statistics(norms: list[_NormBase]) -> Iterator[None]:
    """Let these layers normalise by the batch and not track it: torch hands no running statistics to the kernel then."""
    before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, tracks in before:
            norm.training, norm.track_running_stats = training, tracks
