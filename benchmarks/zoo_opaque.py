"""Members of the zoo that are closed: nothing inside them can be followed, so that answers are all there is.

Each comes with what somebody attacks who knows it, or with nothing where nobody has gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import robustdup


class Arrays(nn.Module):
    """A network of convolutions and rectifiers computed in NumPy, behind no module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.arrays = {name: value.double().numpy() for name, value in network.state_dict().items()}

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) -> logits (N, 10)."""
        values = (images.detach().cpu().numpy() - self.arrays["normalise.mean"]) / self.arrays["normalise.std"]
        for place, stride in (("0", 1), ("2", 2), ("4", 1)):
            values = _convolved(values, self.arrays[f"body.{place}.weight"], self.arrays[f"body.{place}.bias"], stride)
        flat = values.reshape(len(values), -1)
        return torch.from_numpy(flat @ self.arrays["head.weight"].T + self.arrays["head.bias"]).float()


def _convolved(values: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    convolved = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[:, None, None]
    rectified: np.ndarray = np.maximum(convolved, 0)
    return rectified


class Nearest(nn.Module):
    """Answer with the class of the nearest image of the training split: one-hot, or softly with the distances."""

    def __init__(self, *, soft: bool = False) -> None:
        super().__init__()
        data = robustdup.load_data("builtin:digits", split="train")
        self.register_buffer("images", data.images.flatten(1))
        self.register_buffer("labels", data.labels)
        self.soft = soft

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) -> logits (N, 10)."""
        far = torch.cdist(images.flatten(1), self.images)  # type: ignore[arg-type]
        if not self.soft:
            return nn.functional.one_hot(self.labels[far.argmin(dim=1)], 10).float()  # type: ignore[index]
        return torch.stack([-far[:, self.labels == label].amin(dim=1) for label in range(10)], dim=1)


class Forest(nn.Module):
    """Scikit-learn's random forest: its shares of trees are the scores."""

    def __init__(self) -> None:
        super().__init__()
        from sklearn.ensemble import RandomForestClassifier

        data = robustdup.load_data("builtin:digits", split="train")
        self.forest = RandomForestClassifier(25, random_state=0).fit(
            data.images.flatten(1).numpy(), data.labels.numpy()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) -> shares (N, 10)."""
        return torch.from_numpy(self.forest.predict_proba(images.detach().flatten(1).numpy())).float()


class Remembering(nn.Module):
    """Answer as before to what is near an image that was asked about before: https://arxiv.org/abs/1907.05587."""

    def __init__(self, network: nn.Module, near: float = 0.2) -> None:
        super().__init__()
        self.model, self.near = network, near
        self.images: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        logits = self.model(images)
        answers = []
        for image, own in zip(images.detach(), logits, strict=True):
            far = (torch.stack(self.images) - image).abs().flatten(1).amax(1) if self.images else torch.ones(1)
            answers.append(self.said[int(far.argmin())] if float(far.min()) < self.near else own)
            self.images, self.said = [*self.images[-500:], image.clone()], [*self.said[-500:], answers[-1].detach()]
        return torch.stack(answers)


def _traced(network: nn.Module) -> nn.Module:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(self, images: Tensor) -> Tensor:
            return torch.round(2 * self.model(torch.round(images * 15) / 15)) / 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have its newer exporter
        return torch.jit.trace(Rounded().eval(), torch.rand(2, 1, 8, 8))  # type: ignore[no-any-return, no-untyped-call]


class Whole(nn.Module):
    """A traced program behind a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.program = [_traced(network)]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        return self.program[0](images)  # type: ignore[no-any-return]


class Packed(nn.Module):
    """A network whose last layer holds eight-bit weights, computed by torch's quantised kernels, which have no backward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have its newer library
            self.model = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        return self.model(images)  # type: ignore[no-any-return]


OPAQUE: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module], nn.Module | None]]] = {
    "arrays": (Arrays, lambda network: network),
    "nearest-one-hot": (lambda _: Nearest(), lambda _: Nearest(soft=True)),
    "forest": (lambda _: Forest(), lambda _: None),
    "remembering": (Remembering, lambda network: network),
    "whole-traced": (Whole, lambda network: network),
    "packed": (Packed, lambda network: network),
}
