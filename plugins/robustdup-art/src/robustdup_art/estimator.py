"""The classifier that ART attacks: the model as it was handed over, behind a wall that ART cannot reach through.

ART puts models into eval or train mode, moves them to its own choice of device, clears their gradients, registers hooks
that it never removes, and hands over float64 where NumPy 2 promotes. None of this gets past `Handed`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "flat"]
Array = NDArray[np.float32]


class Handed(nn.Module):
    """A model in ART's terms: images in any of three layouts and any floating dtype -> float32 logits (N, K).

    The model is held outside the module tree, so that `train`, `to`, `zero_grad` and hooks end here.
    """

    def __init__(self, model: nn.Module, images: Tensor, layout: Layout = "NCHW", probabilities: bool = False) -> None:
        super().__init__()
        self._held = (model,)
        self._like = images[:0]
        self._layout = layout
        self._probabilities = probabilities
        self.logits = nn.Identity()  # the layer that feature attacks hook

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, or probabilities where the attack needs them, on the device that `x` came from."""
        images = x.to(self._like)
        if self._layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        elif self._layout == "flat":
            images = images.reshape(-1, *self._like.shape[1:])
        logits = self._held[0](images).float()
        return self.logits(logits.softmax(dim=1) if self._probabilities else logits).to(x.device)  # type: ignore[no-any-return]


def to_art(images: Tensor, layout: Layout = "NCHW") -> Array:
    """Return a copy of images (N, C, H, W) as float32 NumPy in ART's layout."""
    array = images.detach().float().cpu().numpy().copy()
    if layout == "NHWC":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return array.reshape(len(array), -1) if layout == "flat" else array


def from_art(array: Any, images: Tensor, layout: Layout = "NCHW") -> Tensor:
    """Return ART's result in the shape, dtype and device of `images`; rounding noise over [0, 1] up to 1e-6 is cut."""
    adv_images = torch.from_numpy(np.array(array))
    if layout == "NHWC":
        adv_images = adv_images.permute(0, 3, 1, 2)
    adv_images = adv_images.reshape(-1, *images.shape[1:]).to(images)
    near = (adv_images > -1e-6) & (adv_images < 1 + 1e-6)
    return torch.where(near, adv_images.clamp(0, 1), adv_images).contiguous()


@lru_cache(maxsize=1)
def _classifier_class() -> Any:
    """Return ART's PyTorchClassifier with a leaner `predict`: ART starts a DataLoader for every call, even of one row."""
    from art.estimators.classification import PyTorchClassifier

    class Classifier(PyTorchClassifier):  # type: ignore[misc]
        def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> Array:
            rows = torch.from_numpy(np.asarray(x, dtype=np.float32)).to(self.device)
            with torch.no_grad():
                return torch.cat([self.model(part) for part in torch.split(rows, max(batch_size, 1))]).cpu().numpy()

    return Classifier


def build_classifier(
    model: nn.Module, images: Tensor, n_classes: int, layout: Layout = "NCHW", probabilities: bool = False
) -> Any:
    """Return an ART PyTorchClassifier around the model itself, with pixels in [0, 1].

    https://adversarial-robustness-toolbox.readthedocs.io/en/latest/modules/estimators/classification.html
    """
    return _classifier_class()(
        model=Handed(model, images, layout, probabilities),
        loss=nn.CrossEntropyLoss(),
        input_shape=to_art(images[:1], layout).shape[1:],
        nb_classes=n_classes,
        clip_values=(0.0, 1.0),
        channels_first=layout != "NHWC",
        preprocessing=None,
        device_type="gpu" if images.device.type == "cuda" else "cpu",
    )
