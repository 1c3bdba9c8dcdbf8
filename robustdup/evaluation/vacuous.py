"""Balls in which nothing can be robust: as large as the space of images, or with the grey image in them."""

from __future__ import annotations

import torch
from torch import Tensor

from robustdup.errors import UserError
from robustdup.projections import COUNTS
from robustdup.threat import ThreatModel, counted_places

LOOKED_AT = 256  # images: whether a ball is far too large shows on a few


def check_eps(images: Tensor, threat: ThreatModel) -> list[str]:
    """Return what a reader should know of a large ball: a sentence where it holds the grey image for most images.

    In Linf a radius above 1 is refused by the threat model; up to 1 it serves as a check that attacks find everything.

    Args:
        images: clean images (N, C, H, W) in [0, 1].
        threat: the threat model.

    Raises:
        UserError: where the ball holds every image there is, so that eps must have been meant on another scale.
    """
    few = images[:LOOKED_AT]
    farthest = threat.distance(few, (few < 0.5).to(few))
    if threat.norm != "Linf" and float((farthest <= threat.radius).double().mean()) >= 0.5:
        if threat.norm in COUNTS:
            there = few[0].numel() if threat.norm == "L0" else few[0, 0].numel()
            raise UserError(
                f"eps = {threat.eps_text} in {threat.norm} lets all {there} {counted_places(threat.norm)} of an image change: "
                "write fewer.",
                code="bad-eps",
            )
        raise UserError(
            f"eps = {threat.eps_text} in {threat.norm} is larger than any change of these images, which lie in [0, 1]: the "
            f"farthest image is {float(farthest.median()):.4g} away. For eps on the scale 0..255 write "
            f"--eps {threat.eps_text}/255.",
            code="bad-eps",
        )
    grey = threat.distance(few, torch.full_like(few, 0.5))
    if threat.norm != "Linf" and float((grey <= threat.radius).double().mean()) >= 0.5:
        return [
            f"eps = {threat.eps_text} in {threat.norm} reaches from most of these images to the grey one, so that no model "
            f"can be robust. Was it meant on the scale 0..255 (--eps {threat.eps_text}/255)?"
        ]
    return []
