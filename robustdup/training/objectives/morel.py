"""MOREL: adversarial training that also draws the features of clean, adversarial and same-class images together.

Follows https://arxiv.org/abs/2410.01697 and, where the paper leaves a choice, the authors' code
(https://github.com/salomonhotegni/MOREL):

- Accuracy is MART's loss, the authors' default, or TRADES'. Its passes give the features too, where the authors' code
  makes two more passes for them.
- The embedding is a linear layer; attention among the images of one class of the batch, with LayerNorm before and a
  residual around it, comes before the contrastive term and not before the cosine term. Contrast is among clean images.
- Both objectives are joined with the weights 0.1 (features) and 0.9 (accuracy); the paper's conic term adds 2e-5 of each.
- With several processes, attention and contrast are among the images of one process.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.modes import inner_mode
from robustdup.training.objectives.adversarial import check_beta, correct, divergence_from_clean, mart_loss, trades_loss
from robustdup.training.updates import LossAndMetrics

CONE = 2e-5  # the augmentation of the paper's conic scalarisation


class Embedding(nn.Module):
    """Features (N, D) and labels (N,) -> (embeddings (N, width), those after attention within each class)."""

    def __init__(self, features: int, width: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch; an image attends to those of its own class, itself among them."""
        embedded = self.project(features)
        query = self.norm(embedded)
        others = labels[:, None] != labels[None, :]
        attended, _ = self.attention(query, query, query, attn_mask=others, need_weights=False)
        return embedded, embedded + attended


def morel_module(model: nn.Module, images: Tensor, *, width: int = 128, heads: int = 2, **_: Any) -> Embedding:
    """Return the embedding for a model's features, seen on a few example images. Weights come from torch's generator."""
    with inner_mode(model), torch.no_grad():
        features = model.features(images)  # type: ignore[operator]
    return Embedding(features.shape[1], width, heads).to(features.device)


def check_morel(
    *, beta: float, preference: float, alpha: float, temperature: float, width: int, heads: int, **_: Any
) -> None:
    """Raise UserError for values that cannot be."""
    check_beta(beta=beta)
    if not 0 <= preference <= 1:
        raise UserError(
            f"morel: preference, the share of the features, lies between 0 and 1; got {preference:g}.", code="bad-value"
        )
    if alpha < 0 or temperature <= 0:
        raise UserError(
            f"morel: alpha must be 0 or more and temperature above 0; got alpha={alpha:g}, temperature={temperature:g}.",
            code="bad-value",
        )
    if heads < 1 or width < 1 or width % heads:
        raise UserError(
            f"morel: width must be a multiple of heads, both from 1; got width={width}, heads={heads}.",
            code="bad-value",
        )


def morel(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: InnerAttack,
    rng: SampleRng,
    module: Embedding,
    accuracy: Literal["mart", "trades"] = "mart",
    beta: float = 6.0,
    preference: float = 0.1,
    alpha: float = 1e-5,
    temperature: float = 0.1,
    width: int = 128,
    heads: int = 2,
) -> LossAndMetrics:
    """Return preference * features + (1 - preference) * accuracy, both (N,).

    Features: 1 - cosine(clean, adversarial embedding) + alpha * the multi-positive contrastive loss. `beta` is that of
    the accuracy loss, `width` and `heads` are of the embedding. "correct" is of the adversarial images, "correct_clean"
    of the clean ones.
    """
    adv_images = attack(images, labels, divergence_from_clean(attack, images) if accuracy == "trades" else None)
    clean_features, adv_features = model.features(images), model.features(adv_images)  # type: ignore[operator]
    clean, adv_logits = model.head(clean_features), model.head(adv_features)  # type: ignore[operator]
    answers = (trades_loss if accuracy == "trades" else mart_loss)(
        clean, adv_logits, labels, beta, attack.label_smoothing
    )
    clean_embedded, attended = module(clean_features, labels)
    adv_embedded, _ = module(adv_features, labels)
    apart = 1 - F.cosine_similarity(clean_embedded, adv_embedded, dim=1)
    features = apart + alpha * multi_positive_contrast(attended, labels, temperature)
    loss = (preference + CONE) * features + (1 - preference + CONE) * answers
    metrics = {"correct": correct(adv_logits, labels), "correct_clean": correct(clean, labels), "apart": apart.detach()}
    return loss, metrics


def multi_positive_contrast(embedded: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Return, for each of N embeddings, the mean of -log(its share in the softmax over others) over those of its class.

    Similarities are cosines over `temperature`; 0 for an image that is alone in its class. (N, D), (N,) -> (N,).
    https://arxiv.org/abs/2306.00984
    """
    unit = F.normalize(embedded.float(), dim=1)
    alone = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    share = (unit @ unit.T / temperature).masked_fill(alone, -torch.inf).log_softmax(dim=1).masked_fill(alone, 0.0)
    positive = ((labels[:, None] == labels[None, :]) & ~alone).float()
    return -(positive * share).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
