"""Networks of timm, `timm:NAME`, where timm is installed: architectures to train, and trained ones to evaluate."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.config import parse_call
from robustdup.errors import Unavailable, UserError, not_importable
from robustdup.models.adapt import keep_names, keep_notes, names_of, notes_of
from robustdup.models.networks import Normalise

if TYPE_CHECKING:
    from robustdup.models.load import ModelOptions

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
    timm = _timm(name, name)
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


def _timm(spec: str, name: str) -> Any:
    """Return the package timm, which has a network of this name. Raises UserError; Unavailable where it is not installed."""
    try:
        import timm  # type: ignore[import-untyped]
    except ImportError as error:
        raise not_importable(f"{PREFIX}{spec}", "timm", error, "timm") from None
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(PREFIX + n for n in near)}?" if near else ""
        raise UserError(
            f"timm {timm.__version__} has no network {name!r} of {len(known)}.{hint} See timm.list_models().",
            code="unknown-network",
        )
    return timm


def _create(create: Any, name: str, options: Mapping[str, Any], size: tuple[int, int]) -> nn.Module:
    """Transformers are told the image size; convolutional networks take no such argument."""
    try:
        return create(name, img_size=size, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create(name, **options)  # type: ignore[no-any-return]


def load_timm(rest: str, options: ModelOptions) -> nn.Module:
    """Return a network of timm, `NAME`, `NAME(num_classes=10)` or `NAME(…)@weights`, that normalises as its weights want.

    Without weights of yours they are timm's, downloaded, and images of another size are resized to theirs inside.
    https://huggingface.co/docs/timm. Raises UserError; Unavailable where timm, or the download, is.
    """
    written, _, place = rest.partition("@")
    name, given = parse_call(written, "timm network")
    timm = _timm(rest, name)
    try:
        net = timm.create_model(name, **{"pretrained": not place, **given})
    except (OSError, RuntimeError, ConnectionError) as error:
        text = " ".join(str(error).split())[:300]
        if "huggingface_hub" in text and importlib.util.find_spec(
            "huggingface_hub"
        ):  # it is there, but not as timm wants it
            text = f"timm {timm.__version__} does not get on with the huggingface_hub that is installed: pip install -U timm"
        raise Unavailable(f"{PREFIX}{rest}: timm cannot load its weights ({type(error).__name__}: {text}).") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{PREFIX}{rest} cannot be built: {error}", code="bad-option") from error
    if place:
        from robustdup.models.files import load_weights, place_of_weights

        file, named = place_of_weights(place)
        if file is None or not file.is_file():
            raise UserError(f"There is no weights file {place!r} for {PREFIX}{written}.", code="missing-file")
        load_weights(net, file, allow_pickle=options.allow_pickle, named=named)
    settings = timm.data.resolve_model_data_config(net)
    network: nn.Module = TimmNetwork(net, settings["mean"], settings["std"])
    keep_names(network, names_of(net))
    keep_notes(network, notes_of(net))
    return network if place else Resized(network, tuple(settings["input_size"][-2:]))


class Resized(nn.Module):
    """A classifier that resizes images of another size than `size` (height, width) first, bilinear and antialiased."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.model(images)  # type: ignore[no-any-return]
