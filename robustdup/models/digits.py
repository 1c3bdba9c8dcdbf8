"""The network of the two built-in digits classifiers. `configs/train/NAME.yaml` made their weights.

Both are trained on the first 1,297 images of scikit-learn's digits; the last 500 are never seen. Seen on those 500, clean
and under 40 steps of PGD from one random start, at Linf eps of 8/255, 0.1 and 0.15: digits-standard 92.6% clean, then
86.6%, 48.2%, 15.8%; digits-robust 96.8% clean, then 94.8%, 83.6%, 67.6%.
"""

from __future__ import annotations

from robustdup.models.small import SmallCNN

TRAIN_EPS = {"digits-standard": 0.0, "digits-robust": 0.15}  # Linf, on 8x8 images in [0, 1]
MEAN, STD = (0.3059,), (0.3755,)  # of the training images


def digits_classifier() -> SmallCNN:
    """Return the untrained network of the built-in digits classifiers: images (N, 1, 8, 8) -> logits (N, 10)."""
    return SmallCNN(channels=1, size=8, classes=10, width=16, mean=MEAN, std=STD)
