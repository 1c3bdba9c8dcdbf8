"""One adapter from adv-lib's attack functions to robustdup's contract; adv-lib is imported on first use."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustdup import RunError, SampleRng, ThreatModel, Unavailable, UserError, isolated
from robustdup_advlib.table import Entry, ascii_name

ROUNDING = 1e-6  # pixel units: what float32 arithmetic may leave outside [0, 1]
POWERS = {"L0": 0, "L1": 1, "L2": 2, "Linf": math.inf}
STEP = {"L2": 0.05, "Linf": 0.01}  # the trust region's own, the largest that its adaptive form takes


def run(
    entry: Entry, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Run one attack of adv-lib on a batch: images (N, C, H, W) in [0, 1], labels (N,) -> adversarial images (N, C, H, W).

    Untargeted on the true labels. Raises UserError where the attack cannot run on these images, Unavailable where adv-lib
    cannot be imported, RunError where adv-lib itself fails.
    """
    if entry.kind == "bounded" and threat.norm not in entry.norms:
        raise UserError(
            f"advlib:{entry.name} attacks in {' or '.join(entry.norms)}, not in {threat.norm}.", code="other-norm"
        )
    if entry.colour and images.shape[1] != 3:
        raise UserError(
            f"advlib:{entry.name} measures colours and needs images of 3 channels, got {images.shape[1]}.",
            code="model-and-attack",
        )
    if len(images) == 0:
        return images.clone()
    function = load(entry)
    with isolated(model, seed=rng.call_seed()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # no gradients of weights: neither filled nor computed
        try:
            check_classes(entry, model, images, options)
            arguments = as_arguments(entry, function, threat, options)
            adv_images = function(model, images.detach().clone(), labels.clone(), **arguments)
        except (UserError, RunError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "out of memory" in str(error) or "allocate memory" in str(error):
                raise
            raise RunError(
                f"advlib:{entry.name} stopped with {type(error).__name__}: {error}", code="attack-failed"
            ) from error
    adv_images = adv_images.detach().to(images.dtype)
    clipped = adv_images.clamp(0, 1)
    return torch.where((adv_images - clipped).abs() <= ROUNDING, clipped, adv_images)


def load(entry: Entry) -> Callable[..., Tensor]:
    """Return the function of adv-lib, imported on first use. Raises Unavailable where that cannot be.

    adv-lib imports visdom for charts that nothing here draws; where that is not installed, an empty module stands in for it
    while adv-lib is imported.
    """
    absent = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if absent:
        sys.modules["visdom"] = types.ModuleType("visdom")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function: Callable[..., Tensor] = getattr(importlib.import_module(entry.module), entry.name)
    except Exception as error:
        raise Unavailable(f"adv-lib cannot be imported here: {type(error).__name__}: {error}") from error
    finally:
        if absent:
            del sys.modules["visdom"]
    return function


def as_arguments(
    entry: Entry, function: Callable[..., Tensor], threat: ThreatModel, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments besides model, images and labels: options in adv-lib's letters, and what the threat model says."""
    norm = threat.norm if threat.norm in entry.norms else entry.norms[0]
    given = {**entry.options, **options}
    if entry.name == "minimal_apgd" and given["max_eps"] is None:
        given["max_eps"] = 2 * threat.radius
    if entry.name == "ddn":
        given["levels"] = given["levels"] or None
    if entry.name == "tr" and given["eps"] is None:
        given["eps"] = STEP[norm]
    parameters = list(inspect.signature(function).parameters)
    arguments = {
        name: given[ascii_name(name)] for name in parameters if ascii_name(name) in given and name != entry.eps
    }
    if entry.name in ("fga", "vfga"):
        arguments["targeted"] = False
    if entry.name == "alma":
        arguments["distance"] = norm.lower()
    if entry.name == "perc_al":
        arguments["num_classes"] = 0  # used with a confidence only
    if entry.norm:
        arguments[entry.norm] = POWERS[norm]
    if entry.eps:
        arguments[entry.eps] = threat.radius
    return arguments


def check_classes(entry: Entry, model: nn.Module, images: Tensor, options: dict[str, Any]) -> None:
    """Raise UserError where the model has fewer classes than the attack's loss compares."""
    if {**entry.options, **options}.get("loss_function") != "dlr":
        return
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    if classes < entry.least_classes:
        raise UserError(
            f"advlib:{entry.name} compares the {entry.least_classes} largest logits; this model has {classes} classes. "
            "Write loss_function=ce.",
            code="too-few-classes",
        )
