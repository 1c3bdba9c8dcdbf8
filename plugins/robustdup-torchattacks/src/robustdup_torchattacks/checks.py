"""What an attack cannot take, said before torchattacks crashes on it or silently does something else.

Each check is `(name, images, options) -> None` and raises UserError: the samples of the call become undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robustdup import UserError

JSMA_FEATURES = 64 * 64 * 3  # the saliency map holds features squared: about 5 GB at this size


def rgb(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """Three channels: the smoothing kernel is built for groups=3."""
    if images.shape[1] != 3:
        raise UserError(
            f"torchattacks:{name} smooths gradients with a kernel for 3 channels and cannot run on images with "
            f"{images.shape[1]}. Use torchattacks:MIFGSM or torchattacks:PGD.",
            code="bad-images",
        )


def square(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """Square images: height and width are mixed up in the code."""
    height, width = images.shape[2:]
    if height != width:
        raise UserError(
            f"torchattacks:{name} needs square images (it uses the width for the height); got {height} x {width}.",
            code="bad-images",
        )


def diversity(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """Random resizing: square images, and a resize_rate that changes the size by at least one pixel."""
    square(name, images, options)
    width = images.shape[3]
    low, high = sorted((int(width * options["resize_rate"]), width))
    if low == high or low < 1:
        raise UserError(
            f"torchattacks:{name} cannot resize {width} pixels by resize_rate = {options['resize_rate']}: it draws a size "
            f"from {low} to {high}, and needs a range. Choose a resize_rate of at most {(width - 1) / width:.3f}.",
            code="bad-option",
        )


def squares_fit(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """Square draws its first squares with p_init of the area, and tiles of a fifth of the height (L2)."""
    height, width = images.shape[2:]
    share = options.get("p_init", 0.8)
    side = round(math.sqrt(share * height * width))
    if side > min(height, width) or min(height, width) < 5:
        raise UserError(
            f"torchattacks:{name} starts with squares of side {side} (p_init = {share}), which do not fit into images of "
            f"{height} x {width}; it needs at least 5 x 5 pixels, and p_init below "
            f"{min(height, width) / max(height, width):.3g}.",
            code="bad-images",
        )


def small(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """JSMA compares every pair of pixels: memory grows with the fourth power of the side."""
    features = math.prod(images.shape[1:])
    if features > JSMA_FEATURES:
        raise UserError(
            f"torchattacks:{name} builds a table of {features} x {features} pairs of pixels; "
            f"it is limited to {JSMA_FEATURES} values an image (64 x 64 x 3). Resize the images.",
            code="bad-images",
        )


def ten_iterations(name: str, images: Any, options: Mapping[str, Any]) -> None:
    """EAD looks every max_iterations // 10 iterations whether to stop."""
    if options["abort_early"] and options["max_iterations"] < 10:
        raise UserError(
            f"torchattacks:{name} needs max_iterations of at least 10 (got {options['max_iterations']}), "
            "or abort_early=false: it checks for convergence every tenth of them.",
            code="bad-option",
        )
