"""Prove that samples have no adversarial example, from Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from robustdup.api.given import as_dataset
from robustdup.api.loading import load_model
from robustdup.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup.certification.proofs import Progress
    from robustdup.records import Accuracy

Method = Literal["bounds", "smoothing"]
MOST_DRAWS = 10_000_000  # a hundred times what https://arxiv.org/abs/1902.02918 draws


@dataclass(frozen=True)
class CertificationResult:
    """The result of `robustdup.certify`: a lower bound of robust accuracy.

    Attributes:
        certified_accuracy: share of samples that are correct and proven to be robust, with its 95% interval.
        clean_accuracy: share of samples that are classified correctly (by vote, where smoothed), with its 95% interval.
        certified: bool (N,).
        margins: float64 (N,), bounds: the least margin that was proven; smoothing: radius minus eps, -inf if abstained.
        threat: the threat model, such as "Linf, eps = 8/255".
        method: "bounds" or "smoothing".
        confidence: that each certificate holds: 1 for bounds, which are proofs.
        seconds: what it took.
        notes: what a reader should know.
    """

    certified_accuracy: Accuracy
    clean_accuracy: Accuracy
    certified: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)
    threat: str
    method: Method
    confidence: float
    seconds: float
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        clean, proven, n = self.clean_accuracy, self.certified_accuracy, len(self.certified)
        sure = "" if self.confidence == 1 else f", each with confidence {self.confidence:.4g}"
        return (
            f"{self.threat}, {n} samples: clean {clean.value:.2%}, certified {proven.value:.2%} "
            f"[{proven.low:.2%}, {proven.high:.2%}] ({int(self.certified.sum())} of {n} proven{sure}, {self.seconds:.1f} s)"
        )


def certify(
    model: nn.Module | str, data: Any, labels: Any = None, *, eps: str | float, norm: str = "Linf", n: int | None = None,
    method: Method = "bounds", sigma: float = 0.25, draws: int = 1000, alpha: float = 0.001, seed: int = 0,
    seconds: float | None = None, branch_seconds: float = 1.0, progress: Progress | None = None,
) -> CertificationResult:  # fmt: skip
    """Prove for as many samples as possible that no adversarial example exists: a lower bound, where attacks give upper ones.

    With method="bounds": CROWN and alpha-CROWN (https://arxiv.org/abs/1811.00866, https://arxiv.org/abs/2011.13824) for
    networks of convolutions, linear layers, BatchNorm, ReLU, leaky ReLU, pooling and sums; each claim is proven again in
    float64 with all rounding counted, and only what this proves is certified. With method="smoothing": randomised smoothing
    in L2 (https://arxiv.org/abs/1902.02918) for any network; it speaks of the classifier that answers by vote under noise.

    Args:
        model: a deterministic module, images (N, C, H, W) in [0, 1] to logits (N, K), or a spec as for `load_model`. It says
            by where it lies on which device bounds are computed.
        data: as for `evaluate`: what `load_data` returned, images with `labels`, a `DataLoader`, a `datasets.Dataset`.
        labels: int64 (N,), where `data` is a tensor or array of images.
        eps: the radius in pixel units of [0, 1], "8/255" or 0.5.
        norm: Linf, L2 or L1; L2 for smoothing.
        n: take the first n samples.
        method: "bounds" or "smoothing".
        sigma: smoothing: standard deviation of the noise, in pixel units of [0, 1].
        draws: smoothing: noisy copies per sample that a certificate rests on, ten million at most.
        alpha: smoothing: how often a certificate may be wrong.
        seed: smoothing: of the noise.
        seconds: bounds: stop beginning new samples after this time.
        branch_seconds: bounds: of CPU, for a sample that stays open: look for a proof by cases so long (branch and bound on
            rectifiers, https://arxiv.org/abs/2103.06624, for small networks); 0 for not at all.
        progress: told (samples done, samples in all).

    Returns:
        The result, with `certified_accuracy`, `certified` and `margins`; it prints itself.

    Raises:
        UserError: not-boundable, with the layer that cannot be bounded; not-certifiable for weights that
            are not float32; bad-option for smoothing in another norm than L2.
    """
    import torch

    from robustdup.attacks.isolation import isolated
    from robustdup.certification.proofs import certify_samples, other_precisions
    from robustdup.evaluation.metrics import accuracy
    from robustdup.projections import COUNTS
    from robustdup.threat import ThreatModel

    network = load_model(model) if isinstance(model, str) else model
    dataset = as_dataset(data, labels, n=n)
    threat = ThreatModel(norm, eps)
    images = dataset.images.float().to(next((weight.device for weight in network.parameters()), torch.device("cpu")))
    if threat.norm in COUNTS:
        raise UserError(f"certify has bounds in Linf, L2 and L1, not in {threat.norm}.", code="other-norm")
    if method == "smoothing":
        return _smoothed(network, images, dataset, threat, sigma, draws, alpha, seed)
    if not (branch_seconds >= 0 and (seconds is None or seconds > 0)):
        raise UserError(
            f"Seconds are above 0, branch_seconds 0 or more; got {seconds} and {branch_seconds}.", code="bad-value"
        )
    if method != "bounds":
        raise UserError(f"method is 'bounds' or 'smoothing', not {method!r}.", code="bad-option")
    if kinds := other_precisions(network):
        raise UserError(
            f"Rounding is counted for float32 alone, and the weights are {kinds}. Certify a float32 copy: model.float().",
            code="not-certifiable",
        )
    with isolated(network):  # its mode too
        proofs = certify_samples(
            network, images, torch.as_tensor(dataset.labels), threat, seconds=seconds,
            branch_seconds=branch_seconds, progress=progress or (lambda done, total: None),
        )  # fmt: skip
    return CertificationResult(
        accuracy(proofs.certified.numpy()), accuracy(proofs.correct.numpy()), proofs.certified, proofs.margins, str(threat),
        "bounds", 1.0, proofs.seconds, proofs.notes,
    )  # fmt: skip


def _smoothed(
    model: nn.Module, images: Tensor, dataset: Any, threat: Any, sigma: float, draws: int, alpha: float, seed: int
) -> CertificationResult:
    import time

    import torch

    from robustdup.attacks.isolation import isolated
    from robustdup.certification.smoothing import certify_smoothed
    from robustdup.evaluation.metrics import accuracy
    from robustdup.rng import SampleRng

    if threat.norm != "L2":
        raise UserError(f"Smoothing certifies in L2, not in {threat.norm}. Write norm='L2'.", code="bad-option")
    if not (0 < sigma < math.inf and 0 < alpha < 1 and 1 <= draws <= MOST_DRAWS):
        text = f"sigma must be above 0, alpha between 0 and 1, draws between 1 and {MOST_DRAWS:,}."
        raise UserError(text, code="bad-value")
    start = time.monotonic()
    index = torch.as_tensor(dataset.index)
    with isolated(model):
        votes = certify_smoothed(model.eval(), images, SampleRng(seed, index), sigma=sigma, draws=draws, alpha=alpha)
    right = votes.predictions == torch.as_tensor(dataset.labels)
    margins = torch.where(right, votes.radii - threat.radius, torch.tensor(-torch.inf, dtype=torch.float64))
    certified = right & (margins >= 0)
    return CertificationResult(
        accuracy(certified.numpy()), accuracy(right.numpy()), certified, margins, str(threat), "smoothing",
        votes.confidence, time.monotonic() - start,
        [f"Certificates are those of the classifier smoothed by noise of standard deviation {sigma:g}, which answers by vote."],
    )  # fmt: skip
