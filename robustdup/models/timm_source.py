"""Networks of timm as architectures to train: `timm:NAME`, where timm is installed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from robustdup.errors import Unavailable, UserError, how_to_install
from robustdup.models.networks import Normalise

PREFIX = "timm:"


class TimmNetwork(nn.Module):
    """A network of timm as a classifier: images (N, C, H, W) in [0, 1] -> logits (N, classes), normalised inside."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.net = net

    @property
    def head(self) -> nn.Module:
        """The last layer: (N, D) -> logits (N, classes)."""
        return self.net.get_classifier()  # type: ignore[operator, no-any-return]

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the inputs (N, D) of the last layer."""
        maps = self.net.forward_features(self.normalise(images))  # type: ignore[operator]
        return self.net.forward_head(maps, pre_logits=True)  # type: ignore[operator, no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
        return self.net(self.normalise(images))  # type: ignore[no-any-return]


def timm_network(
    name: str, options: Mapping[str, Any], *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:  # fmt: skip
    """Return an untrained network of timm; `options` (drop_rate, drop_path_rate, …) go to its constructor.

    https://huggingface.co/docs/timm. Raises UserError for an unknown name or option; Unavailable where timm is not installed.
    """
    try:
        import timm  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unavailable(
            f"{PREFIX}{name} needs timm, which cannot be imported here ({error}). Install it: "
            + how_to_install("robustdup[timm]")
        ) from None
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(PREFIX + n for n in near)}?" if near else ""
        raise UserError(
            f"timm {timm.__version__} has no network {name!r} of {len(known)}.{hint} See timm.list_models().",
            code="unknown-network",
        )
    for option in ("pretrained", "num_classes", "in_chans", "img_size"):
        if option in options:
            raise UserError(
                f"{PREFIX}{name}: {option} cannot be given: the data decide it, and weights come with init=….",
                code="bad-option",
            )
    common = {"pretrained": False, "num_classes": classes, "in_chans": channels, **options}
    try:
        net = _create(timm.create_model, name, common, size)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{PREFIX}{name} cannot be built for {size[0]}x{size[1]} images: {error}", code="bad-option"
        ) from error
    return TimmNetwork(net, mean, std)


def _create(create: Any, name: str, options: Mapping[str, Any], size: tuple[int, int]) -> nn.Module:
    """Transformers are told the image size; convolutional networks take no such argument."""
    try:
        return create(name, img_size=size, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create(name, **options)  # type: ignore[no-any-return]
