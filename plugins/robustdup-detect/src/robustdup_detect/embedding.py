"""Networks whose features say how alike two images are: `hf:ID`, `file.py:factory@weights`, or a classifier.

`hf:facebook/dinov2-small` is DINOv2 (https://arxiv.org/abs/2304.07193). SSCD (https://arxiv.org/abs/2202.10261) is given out
as TorchScript, so that it comes through a file of one's own:

    def sscd():
        net = torch.jit.load("sscd_disc_mixup.torchscript.pt")
        return torch.nn.Sequential(torchvision.transforms.Normalize(MEAN, STD), net)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.files import is_file_spec, load_from_file
from robustdup.models.load import load_model
from robustdup.plugins import Registry, load_plugins
from robustdup_detect.features import Embedder

USUAL_SIZE = 224  # pixels a side that a network of a file is given, unless it has an attribute `size`
CLASSIFIER_SIZE = 32  # the same for a classifier
BATCH = 64


class FeatureNetwork(nn.Module):
    """A network in eval mode that takes images (N, 3, H, W) in [0, 1] to features float32 (N, F).

    `size` is the side of the square images that it is best given; others are resized inside.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images (N, 3, H, W) in [0, 1]. Raises UserError for what are no features."""
        return torch.cat([self._features(part) for part in torch.split(images, BATCH)])

    def _features(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        features = self.net(images)
        if isinstance(features, Tensor) and features.ndim == 4:
            features = features.mean(dim=(2, 3))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            came = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise UserError(
                f"An embedding returns features of shape (images, numbers); got {came}.", code="bad-network"
            )
        return features.float()


class Penultimate(nn.Module):
    """The features of a classifier: what goes into its last linear layer, as rows (N, F)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise UserError(
                "This classifier has no linear layer to take features from. Write a file.py:factory whose network "
                "returns features.",
                code="bad-network",
            )
        self.classifier, self.seen = classifier, torch.empty(0)
        linear[-1].register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, F) of images (N, C, H, W) in [0, 1]."""
        self.classifier(images)
        return self.seen


def load_embedding(spec: str, *, registry: Registry) -> FeatureNetwork:
    """Return the network of a spec, float32, on the CPU, in eval mode. Raises UserError; Unavailable without transformers.

    `hf:ID` is a model of the Hub or of a folder without its head; the network that a `file.py:factory` returns gives
    features itself; of every other model (a classifier) the input of its last linear layer is taken.
    """
    size = CLASSIFIER_SIZE
    if spec.startswith("hf:"):
        from robustdup_detect.hub_features import load_hf_features

        net, size = load_hf_features(spec.removeprefix("hf:"))
    elif is_file_spec(spec):
        net, size = load_from_file(spec), USUAL_SIZE
        size = getattr(net, "size", size)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(
                f"The attribute size of the network {spec!r} must be a number of pixels, got {size!r}.",
                code="bad-network",
            )
    else:
        net = Penultimate(load_model(spec, registry=registry))
    return FeatureNetwork(net.to(device="cpu", dtype=torch.float32), size).eval().requires_grad_(False)


def open_embedder(spec: str) -> Embedder:
    """Return the network of a spec as what turns pictures uint8 (N, 3, size, size) into features (N, F)."""
    network = load_embedding(spec, registry=load_plugins())
    return Embedder(network.size, partial(_describe, network))


def _describe(network: FeatureNetwork, pictures: Tensor) -> Tensor:
    features: Tensor = torch.cat([network(part.float() / 255) for part in torch.split(pictures, 256)])
    return features


def try_embedder(spec: str) -> None:
    """Raise UserError where the network of a spec does not take pictures."""
    embedder = open_embedder(spec)
    try:
        embedder.describe(torch.zeros(1, 3, embedder.size, embedder.size, dtype=torch.uint8))
    except (RuntimeError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"The network {spec!r} does not take colour images of {embedder.size} x {embedder.size} pixels: {text[:300]}",
            code="bad-network",
        ) from error
