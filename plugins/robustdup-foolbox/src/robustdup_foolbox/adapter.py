"""One adapter from foolbox's attack classes to robustdup's contract; foolbox is imported on first use."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustdup import RunError, SampleRng, ThreatModel, Unavailable, UserError, isolated
from robustdup_foolbox.table import Entry
from robustdup_foolbox.watched import Watched

ROUNDING = 1e-6  # pixel units: what float32 arithmetic may leave outside [0, 1]
NOT_BINARISING = "threshold does not match"  # foolbox's message for a model that does not binarise as told
START_DIRECTIONS, START_STEPS = 100, 50


def run(
    entry: Entry, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Run one foolbox attack on a batch: images (N, C, H, W) in [0, 1], labels (N,) -> adversarial images (N, C, H, W).

    Untargeted on the true labels. Raises UserError where the attack cannot run on these images, Unavailable where foolbox
    cannot be imported, RunError where foolbox itself fails.
    """
    if threat.norm not in entry.norms:
        raise UserError(
            f"foolbox:{entry.name} attacks in {' or '.join(entry.norms)}, not in {threat.norm}.", code="other-norm"
        )
    if len(images) == 0:
        return images.clone()
    with isolated(model, seed=rng.call_seed()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox warns of starting points that it did not find; that is handled here
        for parameter in model.parameters():  # foolbox differentiates with backward(), which would fill .grad
            parameter.requires_grad_(False)
            parameter.grad = None
        try:
            attack = build(entry, threat, options)
            start = _start_and_run if entry.start else _run_rows
            result = start(entry, attack, model, images.detach(), labels, threat)
        except (UserError, RunError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if NOT_BINARISING in str(error):
                raise UserError(
                    f"foolbox:{entry.name} is for models that binarise their inputs; this one does not do so at the given "
                    "threshold (threshold=0.5, included_in=upper by default).",
                    code="model-and-attack",
                ) from error
            raise RunError(
                f"foolbox:{entry.name} stopped with {type(error).__name__}: {error}", code="attack-failed"
            ) from error
    return without_rounding(result.detach())


def build(entry: Entry, threat: ThreatModel, options: dict[str, Any]) -> Any:
    """Return the foolbox attack object with these options. Raises Unavailable where foolbox cannot be imported."""
    try:
        from foolbox import attacks
    except Exception as error:
        raise Unavailable(f"foolbox cannot be imported here: {type(error).__name__}: {error}") from error
    kind = getattr(attacks, entry.name)
    if entry.name == "HopSkipJumpAttack":
        options = {**options, "constraint": threat.norm.lower()}
    if entry.name == "L0FMNAttack":
        kind = _within_dimensions(kind)
    return kind(**{**{name: entry.options[name] for name in entry.own_defaults}, **options})


def _within_dimensions(kind: Any) -> Any:
    """L0FMNAttack indexes one past the last value once its budget reaches the whole image: keep the budget below that."""

    class Bounded(kind):  # type: ignore[misc]
        def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
            return super().project(x, x0, epsilon.clip(0, x0[0].raw.numel() - 1))

    return Bounded


def _start_and_run(
    entry: Entry, attack: Any, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel
) -> Tensor:
    """Run an attack that begins at misclassified images; a sample without one keeps the nearest miss."""
    starts, is_adv = starting_points(entry, model, images, labels, threat)
    if not bool(is_adv.any()):
        raise UserError(
            f"foolbox:{entry.name} needs a misclassified image to start from, and found none for any of {len(images)} "
            "images, neither in noise nor among the other images of the batch. A larger batch of several classes helps.",
            code="no-start",
        )
    rows = is_adv.nonzero()[:, 0]
    results = starts.clone()
    results[rows] = _run_rows(entry, attack, model, images[rows], labels[rows], threat, starting_points=starts[rows])
    return results


def starting_points(
    entry: Entry, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Return misclassified images to start from (N, C, H, W) and `is_adv` (N,) bool.

    First what foolbox itself starts from (noise, or salt and pepper), then the other images of the batch. Samples without a
    starting point get the image that came nearest to being misclassified.
    """
    attacks = importlib.import_module("foolbox.attacks")
    watched = Watched(model, images, labels, threat, bounded=False)
    if entry.start == "noise":
        first = attacks.LinearSearchBlendedUniformNoiseAttack(directions=START_DIRECTIONS, steps=START_STEPS)
    else:
        first = attacks.SaltAndPepperNoiseAttack(steps=1000)
    starts = first.run(_foolbox_model(watched, images), images, _misclassified(labels)).clamp(0, 1)
    with torch.no_grad():
        is_adv = model(starts).argmax(dim=1) != labels
        if not bool(is_adv.all()):
            prediction = model(images).argmax(dim=1)
            for row in (~is_adv).nonzero()[:, 0].tolist():
                others = (prediction != labels[row]).nonzero()[:, 0]
                if len(others) > 0:
                    distance = threat.distance(images[row].expand_as(images[others]), images[others])
                    starts[row], is_adv[row] = images[others[distance.argmin()]], True
                elif bool(watched.seen[row]):
                    starts[row] = watched.best[row]
    return starts, is_adv


def _run_rows(
    entry: Entry, attack: Any, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel,
    **arguments: Any,
) -> Tensor:  # fmt: skip
    bounded = entry.kind == "bounded"
    watched = Watched(model, images, labels, threat, bounded=bounded) if entry.keep_best else Unwatched(model)
    classifier = _foolbox_model(watched, images)
    criterion = _second_class(model, images, labels) if entry.targeted else _misclassified(labels)
    if bounded:
        arguments["epsilon"] = threat.radius
    if entry.name == "DatasetAttack":
        attack.feed(classifier, images)
    result: Tensor = attack.run(classifier, images, criterion, **arguments)
    if entry.clip:
        result = attack.distance.clip_perturbation(images, result, threat.radius)
    if isinstance(watched, Watched):
        result = watched.instead_of_giving_up(result)
    if entry.name == "DatasetAttack" and bool((result == images).all()):
        raise UserError(
            f"foolbox:DatasetAttack found no image of another class among the {len(images)} images of the batch. "
            "Give it a larger batch of several classes.",
            code="no-start",
        )
    return result


class Unwatched(nn.Module):
    """Calls the model, without registering it: foolbox moves a module to a device and looks at its mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.call = (model,)
        self.training = False

    def forward(self, images: Tensor) -> Any:
        """Return the model's logits."""
        return self.call[0](images)


def _foolbox_model(model: nn.Module, images: Tensor) -> Any:
    return importlib.import_module("foolbox").PyTorchModel(model, bounds=(0, 1), device=images.device)


def _misclassified(labels: Tensor) -> Any:
    from foolbox.criteria import Misclassification

    return Misclassification(labels)


def _second_class(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    from foolbox.criteria import TargetedMisclassification

    with torch.no_grad():
        logits = model(images).scatter(1, labels[:, None], -torch.inf)
    return TargetedMisclassification(logits.argmax(dim=1))


def without_rounding(adv_images: Tensor) -> Tensor:
    """Clip to [0, 1] what lies outside by at most 1e-6; a larger excess stays visible."""
    clipped = adv_images.clamp(0, 1)
    return torch.where((adv_images - clipped).abs() <= ROUNDING, clipped, adv_images)
