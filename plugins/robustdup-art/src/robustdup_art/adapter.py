"""One adapter for all attacks of ART: from a row of the table to a call of ART."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustdup import RunError, SampleRng, ThreatModel, UserError, isolated
from robustdup_art.entry import Entry
from robustdup_art.estimator import Array, build_classifier, from_art, to_art

ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1}


@dataclass
class Call:
    """What one call of an attack knows: `x` and `y` in ART's terms, and where they came from."""

    entry: Entry
    classifier: Any
    threat: ThreatModel
    options: dict[str, Any]
    x: Array
    labels: NDArray[np.int64]  # true classes (N,)
    y: Any  # what ART is given: one-hot float32 (N, K), or None

    def rows(self, rows: slice | NDArray[Any]) -> Call:
        """Return the same call for some of its images."""
        y = None if self.y is None else self.y[rows]
        return Call(self.entry, self.classifier, self.threat, self.options, self.x[rows], self.labels[rows], y)

    def one_hot(self, classes: NDArray[np.int64]) -> Array:
        """Return classes (N,) as one-hot rows (N, K), the form of labels that every attack of ART reads alike."""
        return np.eye(self.classifier.nb_classes, dtype=np.float32)[classes]

    def construct(self, **more: Any) -> Any:
        """Return ART's attack: with the user's options, what the threat model sets, and what the adapter fixes."""
        import art.attacks.evasion

        entry, attack = self.entry, getattr(art.attacks.evasion, self.entry.name)
        arguments = {name: value for name, value in self.options.items() if name not in entry.extra}
        for name, ratio in entry.steps.items():
            if arguments.get(name) is None:
                arguments[name] = ratio * self.threat.radius
        if entry.eps:
            arguments[entry.eps] = self.threat.radius
        if entry.order:
            arguments[entry.order] = ORDERS[self.threat.norm]
        known = inspect.signature(attack.__init__).parameters
        if "batch_size" in known and "batch_size" not in arguments:
            arguments["batch_size"] = entry.batch_size or len(self.x)
        if "verbose" in known:
            arguments["verbose"] = False
        return attack(self.classifier, **{**arguments, **entry.fixed, **more})


def run(
    entry: Entry,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: SampleRng,
    options: dict[str, Any],
) -> Tensor:
    """Run one attack of ART on images (N, C, H, W) in [0, 1]. Raises UserError, or RunError with what ART said."""
    if threat.norm not in entry.norms and (entry.kind == "bounded" or entry.order):
        raise UserError(
            f"art:{entry.name} does not work in {threat.norm}; it works in {', '.join(entry.norms)}.", code="other-norm"
        )
    if entry.check is not None:
        entry.check(tuple(images.shape), threat)
    if len(images) == 0:
        return images.clone()
    with _quiet(entry), isolated(model, seed=rng.call_seed()), _device(images):
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # only gradients by the images are wanted
        try:
            call = _prepare(entry, model, images, labels, threat, options)
            if not entry.single:
                return from_art(_generate(call), images, entry.layout)
            parts = []
            for row in range(len(images)):
                with isolated(seed=rng[row : row + 1].call_seed()):
                    parts.append(_generate(call.rows(slice(row, row + 1))))
            return from_art(np.concatenate(parts), images, entry.layout)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RunError(
                f"art:{entry.name} failed inside ART: {type(error).__name__}: {error}", code="attack-failed"
            ) from error


def _prepare(
    entry: Entry, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, options: dict[str, Any]
) -> Call:
    with torch.no_grad():
        logits = model(images if entry.labels == "targets" else images[:2])
    true_labels = labels.cpu().numpy().astype(np.int64)
    classifier = build_classifier(model, images, logits.shape[1], entry.layout, entry.probabilities)
    call = Call(entry, classifier, threat, options, to_art(images, entry.layout), true_labels, None)
    if entry.labels == "targets":
        others = logits.float().scatter(1, labels[:, None].to(logits.device), -torch.inf)
        call.y = call.one_hot(others.argmax(dim=1).cpu().numpy())
    elif entry.labels == "true":
        call.y = call.one_hot(true_labels)
    return call


def _generate(call: Call) -> Any:
    attack = call.entry.build(call) if call.entry.build is not None else call.construct()
    if call.entry.generate is not None:
        return call.entry.generate(attack, call)
    return attack.generate(call.x, call.y)


@contextmanager
def _device(images: Tensor) -> Iterator[None]:
    """ART takes the current CUDA device: make it the images' own."""
    with torch.cuda.device(images.device) if images.device.type == "cuda" else ExitStack():
        yield


@contextmanager
def _quiet(entry: Entry) -> Iterator[None]:
    """Silence ART's log and NumPy's warnings, and replace the names in ART's module that a row asks for."""
    log = logging.getLogger("art")
    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        for name, replaced in entry.shims.items():
            import art.attacks.evasion

            module = inspect.getmodule(getattr(art.attacks.evasion, entry.name))
            before = getattr(module, name)
            stack.callback(setattr, module, name, before)
            setattr(module, name, SimpleNamespace(**{**vars(before), **replaced}))
        yield
