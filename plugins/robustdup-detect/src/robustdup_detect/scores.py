"""How measures of a pair become a score, and the scores in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How measures become a score in (0, 1): a logistic function with one weight a measure."""

    weights: tuple[float, ...]
    bias: float

    def odds(self, measures: Tensor) -> Tensor:
        """Return the log odds float32 (N,) of measures (N, M)."""
        return measures @ torch.tensor(self.weights) + self.bias

    def __call__(self, measures: Tensor) -> Tensor:
        """Return scores float32 (N,) of measures (N, M), below 1, which is kept for identical pixels."""
        return torch.sigmoid(self.odds(measures)).clamp(max=SUREST)


# Fitted on candidates between CIFAR-10's splits: near pairs that ciFAIR's authors annotated (half of their list) and others
# that were looked at, against the rest. The second one is for embeddings whose similarity nothing was fitted on.
USUAL_SCORE = Score((0.44, 9.14, -8.38, 0.27, -0.59, 0.92, 5.77), -12.64)
SCORE_WITHOUT_SIMILARITY = Score((1.83, 9.37, -8.45, 1.81, -1.06, 0.95, 0.0), -8.16)
# Of pairs whose local features lie alike, fitted on 826 copies of the kinds in `kinds` and 1,379 pairs of different pictures
# (tiles of sample photographs, images of CIFAR-10 enlarged). The measures are those of `overlap`. What overlaps counts much:
# two parts of one wall or lawn agree where they overlap, a copy or a crop shows all of one picture.
LOCAL_SCORE = Score((3.8, 3.3, 4.2, 2.3, 0.0, 10.5), -28.6)
USUAL_THRESHOLD = 0.75
SUREST = 0.999999  # score of a near pair at most: 1 is kept for identical pixels
