"""The metrics of a cell: what they are called in a sentence, their unit, and how their numbers are written."""

from __future__ import annotations

import re

from robustdup_study.publications import Metric, Unit, publications

METRICS = {
    "clean_accuracy": Metric("clean accuracy"),
    "robust_accuracy": Metric("robust accuracy"),
    "worst_class_clean": Metric("clean accuracy of the worst class"),
    "worst_class_robust": Metric("robust accuracy of the worst class"),
    "best_clean_accuracy": Metric("clean accuracy of the best checkpoint"),
    "best_robust_accuracy": Metric("robust accuracy of the best checkpoint"),
    "best_minus_last_clean": Metric("best minus last clean accuracy"),
    "best_minus_last_robust": Metric("best minus last robust accuracy"),
    "ece": Metric("calibration error"),
    "nll": Metric("negative log-likelihood", "nats"),
    "train_accuracy": Metric("accuracy on training images"),
    "train_robust": Metric("robust accuracy on training images"),
    "best_worst_class_clean": Metric("clean accuracy of the worst class, best checkpoint"),
    "best_worst_class_robust": Metric("robust accuracy of the worst class, best checkpoint"),
    "effective_robustness": Metric("accuracy on the shifted test set beyond what clean accuracy predicts"),
    "memorisation_gap": Metric("training minus test accuracy"),
    "duplicated_accuracy": Metric("accuracy on duplicated training images"),
    "single_accuracy": Metric("accuracy on training images without copies"),
    "duplicated_minus_single": Metric("accuracy on duplicated minus single training images"),
    "duplicated_robust": Metric("robust accuracy on duplicated training images"),
    "single_robust": Metric("robust accuracy on training images without copies"),
    "shifted_accuracy": Metric("accuracy on the shifted test set"),
    "clean_accuracy_without_near": Metric("clean accuracy without test images that are near a training image"),
    "prior_adjusted_accuracy": Metric("clean accuracy with the training prior taken out of the logits"),
    "class_imbalance": Metric("distance of the class shares from equal ones", ""),
    "steps": Metric("optimizer steps", "count"),
    "samples": Metric("training entries seen", "count"),
    "unique_samples": Metric("different training images seen", "count"),
    "forward_passes": Metric("forward passes", "count"),
    "backward_passes": Metric("backward passes", "count"),
    "seconds": Metric("training time", "seconds"),
}


def metric(name: str) -> Metric:
    """Return what is known of a metric, by a publication too; `samples_to_clean_50` and its kin are made of their parts."""
    if name in METRICS:
        return METRICS[name]
    for publication in publications():
        if name in publication.metrics:
            return publication.metrics[name]
    parts = re.fullmatch(r"(steps|samples|seconds)_to_(clean|robust)_(\d+)", name)
    if parts:
        noun = {"steps": "optimizer steps", "samples": "training entries", "seconds": "training time"}[parts[1]]
        unit: Unit = "seconds" if parts[1] == "seconds" else "count"
        return Metric(f"{noun} until {parts[3]}% {parts[2]} validation accuracy", unit)
    return Metric(name.replace("_", " "), "")


def is_share(name: str) -> bool:
    """Whether a metric is a share in [0, 1], written in per cent."""
    return metric(name).unit == "share"


def to_unit(name: str, value: float) -> float:
    """Return a number of a recipe (a margin: points for shares) in the metric's own unit."""
    return value / 100 if is_share(name) else value


def write(name: str, value: float, *, digits: int | None = None, signed: bool = False) -> str:
    """Return a difference of this metric as text without its unit: points for shares."""
    unit = metric(name).unit
    sign = "+" if signed else ""
    if unit == "share":
        text = f"{100 * value:{sign}.{1 if digits is None else digits}f}"
    elif unit == "count":
        text = f"{value:{sign},.0f}"
    else:
        text = f"{value:{sign}.{3 if digits is None else digits}g}"
    text = re.sub(r"^([+-])(0(?:\.0*)?)$", r"\2", text)  # no minus before a zero
    return text.replace("-", "−")


def unit_words(name: str) -> str:
    """Return what follows the number: " points", " s" or nothing."""
    return {"share": " points", "seconds": " s", "nats": " nats"}.get(metric(name).unit, "")
