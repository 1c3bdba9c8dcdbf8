"""Whether a model repeats itself: asked again under other seeds, with other images in its batch, and after other questions.

The first two are asked where answers change first, near the decision boundary: on the samples of smallest margin, and on
mixtures of two samples of different classes, at the place where the prediction changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Passes
from robustdup.evaluation.referee import Answers, exact_fp32, judge_images

ASKS = 16  # times that a batch is asked: what changes one call in six is found in 94 of 100 runs by this alone
ROWS = 32  # images in it
HALVINGS = 8  # of the way between two samples
ROUNDING = 1e-5  # of the largest logit, at least 1: what may change without a word
COARSE, MANY = 100.0, 0.25  # times that, and of how many images: what may change with the place in a batch and its size
STEP = 1 / 255  # to a neighbour of an image that was asked about before
NEW = 190_705_587  # seed of images that nobody asked about
ERRORS = 6.0  # standard errors by which mean answers must differ, where a model cannot be seeded


@dataclass(frozen=True)
class Steadiness:
    """Whether a model answers at random, whether its answers depend on which images share a batch, or on earlier ones."""

    randomized: bool = False
    batch_dependent: bool = False
    remembers: bool = False


def examine(original: Passes, images: Tensor, labels: Tensor, answers: Answers, *, seed: int) -> Steadiness:
    """Find out whether a model repeats itself: all images once more, and some near the decision boundary many times.

    Args:
        original: the model that is judged.
        images: clean images (N, C, H, W) in [0, 1], on its device.
        labels: their classes (N,).
        answers: what it said of them when it was asked under `seed`.
        seed: of the run.
    """
    rows = original.micro_batch or max(len(images), 1)
    answer = steadiness(original.model, images, answers.margin, answers.prediction, rows=rows)
    again = judge_images(original, images, labels, seed=seed + 1)
    return replace(answer, randomized=answer.randomized or not same_answers(answers.margin, again.margin))


def steadiness(model: nn.Module, images: Tensor, margin: Tensor, prediction: Tensor, *, rows: int) -> Steadiness:
    """Ask a model sixteen times about a few images, under other seeds and in other company.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W), on the model's device.
        margin: their margins (N,).
        prediction: the classes that the model gives them (N,).
        rows: in a call of the model.
    """
    asked = Passes(model, rows)
    batch = _telling_images(asked, images, margin, prediction, min(rows, ROWS))
    first = _logits(asked, batch, seed=1)
    again = [_logits(asked, batch, seed=seed) for seed in range(2, ASKS + 1)]
    randomized = any(bool(_differ(first, other).any()) for other in again)
    dependent = _depends_on_company(asked, batch, first) or (not randomized and _depends_on_place(asked, batch, first))
    remembers = not (randomized or dependent) and _remembers(asked, batch)
    return Steadiness(randomized, dependent, remembers)


def same_answers(margin: Tensor, again: Tensor) -> bool:
    """Tell whether the margins (N,) of all samples were the same when asked again, but for rounding."""
    return not bool(_differ(margin[:, None], again[:, None]).any())


def _telling_images(model: Passes, images: Tensor, margin: Tensor, prediction: Tensor, size: int) -> Tensor:
    """Return up to `size` images near the decision boundary: a third samples, the others mixtures of two of them."""
    nearest = margin.nan_to_num(nan=0.0).abs().argsort(stable=True).to(images.device)
    prediction = prediction.to(images.device)
    own, other = nearest, nearest.roll(1)
    pairs = (prediction[own] != prediction[other]).nonzero()[: size - size // 3, 0]
    samples = images[nearest[: size - len(pairs)]]
    if not len(pairs):
        return samples
    here, there, label = images[own[pairs]], images[other[pairs]], prediction[own[pairs]]
    low, high = torch.zeros(len(pairs), 1, 1, 1).to(images), torch.ones(len(pairs), 1, 1, 1).to(images)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        same = (_logits(model, torch.lerp(here, there, middle), seed=0).argmax(dim=1) == label).view_as(middle)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return torch.cat([samples, torch.lerp(here, there, low)])


def _depends_on_company(model: Passes, batch: Tensor, first: Tensor) -> bool:
    """Tell whether answers change with the other half of a batch (n, C, H, W), whose logits were `first` under seed 1."""
    if len(batch) < 2:  # a second image to share the batch with
        batch = torch.cat([batch, 1 - batch])
        first = _logits(model, batch, seed=1)
    stays = torch.arange(len(batch), device=batch.device) % 2 == 0
    halves = [
        (half, torch.where(half[:, None, None, None], batch, 1 - batch.roll(1, 0) / 2)) for half in (stays, ~stays)
    ]
    if not bool(_differ(first, _logits(model, batch, seed=1)).any()):
        return any(bool(_differ(first, _logits(model, mixed, seed=1))[half].any()) for half, mixed in halves)
    usual = torch.stack([_logits(model, batch, seed=seed) for seed in range(ASKS)]).double()
    for half, mixed in halves:
        others = torch.stack([_logits(model, mixed, seed=seed) for seed in range(ASKS)]).double()
        error = ((usual.var(dim=0) + others.var(dim=0)) / ASKS).sqrt()
        gap = (usual.mean(dim=0) - others.mean(dim=0)).abs()
        if bool((gap > ERRORS * error + _rounding(first))[half].any()):
            return True
    return False


def _depends_on_place(model: Passes, batch: Tensor, first: Tensor) -> bool:
    """Tell whether answers change with the place in a batch (n, C, H, W), or with its size.

    Other places and sizes may round otherwise, and a model with steps makes much of that on single images: here many must differ.
    """
    turned = _logits(model, batch.flip(0), seed=1).flip(0)
    alone = Passes(model.model)
    halved = torch.cat([_logits(alone, part, seed=1) for part in batch.chunk(2)])
    return any(float(_differ(first, other, allowed=COARSE).double().mean()) >= MANY for other in (turned, halved))


def _remembers(model: Passes, batch: Tensor) -> bool:
    """Tell whether answers about new images, of the shape of a batch (n, C, H, W), change once their neighbours were asked about.

    Two copies of the model are asked, one about the images alone and one about their neighbours before. What copies share,
    and what refuses to be copied, is not seen.
    """
    new = torch.rand(batch.shape, generator=torch.Generator().manual_seed(NEW)).to(batch)
    try:
        alone, after = (Passes(copy.deepcopy(model.model), model.micro_batch) for _ in range(2))
    except Exception:  # a model may refuse to be copied in any way  # noqa: BLE001
        return False
    expected = _logits(alone, new, seed=1)
    _logits(after, (new + STEP).clamp(0, 1), seed=1)
    return bool(_differ(expected, _logits(after, new, seed=1)).any())


def _logits(model: Passes, images: Tensor, *, seed: int) -> Tensor:
    with exact_fp32(), isolated(model.model, seed=seed), torch.no_grad():
        logits: Tensor = model(images)
    return logits


def _differ(logits: Tensor, others: Tensor, *, allowed: float = 1.0) -> Tensor:
    """Tell in which rows logits (n, K) differ by more than `allowed` times rounding: (n,) bool."""
    same = (logits == others) | (logits.isnan() & others.isnan())
    return ~(same | ((logits - others).abs() <= allowed * _rounding(logits))).all(dim=1)


def _rounding(logits: Tensor) -> float:
    finite = logits[logits.isfinite()]
    return ROUNDING * max(float(finite.abs().max()) if len(finite) else 1.0, 1.0)
