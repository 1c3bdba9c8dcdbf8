"""The real CIFAR-10 ResNet-18 that the pyautoattack wheel carries as its example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdup import Unavailable, UserError, how_to_install


def load(rest: str, options: Any) -> nn.Module:
    """Return `pyautoattack:resnet18` in eval mode: float images (N, 3, 32, 32) in [0, 1] -> logits (N, 10).

    It was trained on images in [0, 1], so that there is no normalisation to put inside. Raises UserError for another
    name, Unavailable without pyautoattack. https://github.com/fra31/auto-attack/tree/master/autoattack/examples
    """
    if rest != "resnet18":
        raise UserError(
            f"pyautoattack carries one model: write pyautoattack:resnet18, not 'pyautoattack:{rest}'.",
            code="unknown-model",
        )
    try:
        import pyautoattack
        from pyautoattack.examples.resnet import ResNet18
    except ImportError as error:
        raise Unavailable(
            f"pyautoattack:resnet18 cannot be loaded: {error}. Run: {how_to_install('robustdup[robustbench]')}"
        ) from error
    file = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    if not file.is_file():
        raise Unavailable(
            f"The checkpoint {file} is missing. Run: {how_to_install('--no-deps', 'pyautoattack==0.2.0')}"
        )
    model: nn.Module = ResNet18()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()
