"""Models of Hugging Face transformers, `hf:ID` or `hf:path/to/folder`, where transformers is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.errors import UserError, not_importable, user_path
from robustdup.models.adapt import keep_names
from robustdup.models.class_names import names_in
from robustdup.models.networks import Normalise


class ImageClassifier(nn.Module):
    """A transformers model as a classifier: images (N, C, H, W) in [0, 1] -> logits (N, K).

    The image processor's mean and std are inside. Images of another size than `size` (height, width) are resized inside,
    bilinear and antialiased, so that gradients flow to the pixels that were given.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], size: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.model, self.normalise, self.size = model, Normalise(mean, std), size

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.model(pixel_values=self.normalise(images)).logits  # type: ignore[no-any-return]


def load_hf(name: str) -> nn.Module:
    """Return an image-classification model of the Hub or of a local folder, never running code from there.

    https://huggingface.co/docs/transformers/model_doc/auto#transformers.AutoModelForImageClassification. Raises UserError;
    Unavailable where transformers is not installed.
    """
    model, processor, missing = from_pretrained(name, "AutoModelForImageClassification")
    if missing:  # transformers only warns, and fills them at random
        raise UserError(
            f"hf:{name} is not a trained classifier: its files lack {len(missing)} weights, such as {missing[0]!r}.",
            code="missing-weights",
        )
    classifier = ImageClassifier(model, *statistics(processor, channels_of(model)), size=input_size(processor))
    keep_names(classifier, names_in({"id2label": getattr(model.config, "id2label", None)}))
    return classifier


def hf_network(name: str, *, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Return an untrained image classifier of the kind that a model of the Hub, or of a local folder, is.

    Only its configuration is read, with another number of classes and channels; images of another size than it takes are
    resized inside. Raises UserError; Unavailable where transformers is not installed.
    """
    transformers, place = _place(name)
    try:
        settings = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        settings.num_labels = classes
        if hasattr(settings, "num_channels"):
            settings.num_channels = channels
        model = transformers.AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
        processor = transformers.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise _cannot(name, error) from error
    return ImageClassifier(model, mean, std, size=input_size(processor))


def from_pretrained(name: str, kind: str) -> tuple[Any, Any, list[str]]:
    """Return a model (an automatic class of transformers says of what kind), its processor, and the weights it lacks."""
    transformers, place = _place(name)
    try:
        model, loading = getattr(transformers, kind).from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise _cannot(name, error) from error
    return model, processor, sorted(loading.get("missing_keys") or ())


def _cannot(name: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())
    return UserError(f"Cannot load the model hf:{name}: {type(error).__name__}: {text[:400]}", code="bad-model")


def _place(name: str) -> tuple[Any, str]:
    """Return the package transformers and where a model lies: a folder, or an id of the Hub. Raises UserError, Unavailable."""
    try:
        import transformers
    except ImportError as error:
        raise not_importable(f"hf:{name}", "transformers", error, "hf") from None
    if not name:
        raise UserError("hf: needs a model id or a folder, for instance hf:microsoft/resnet-50.", code="bad-spec")
    place = str(user_path(name)) if user_path(name).exists() else name
    if place == name and not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"There is no folder {name!r}; model ids of the Hub look like owner/name.", code="missing-file")
    return transformers, place


def channels_of(model: Any) -> int:
    """Return the channels of the images that a model takes."""
    return int(getattr(model.config, "num_channels", 3) or 3)


def statistics(processor: Any, channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and std by which the processor turns images in [0, 1] into what the model takes."""
    mean, std = [0.0] * channels, [1.0] * channels
    if getattr(processor, "do_normalize", False):
        mean, std = [float(m) for m in processor.image_mean], [float(s) for s in processor.image_std]
    # Processors start from bytes and rescale them first; ours starts from [0, 1].
    rescaled = getattr(processor, "do_rescale", True)
    scale = 255 * float(getattr(processor, "rescale_factor", 1 / 255)) if rescaled else 255.0
    offset = 1.0 if rescaled and getattr(processor, "rescale_offset", False) else 0.0  # EfficientNet: to [-1, 1]
    return [(m + offset) / scale for m in mean], [s / scale for s in std]


def input_size(processor: Any) -> tuple[int, int] | None:
    """Return the (height, width) that the model was trained on; None where the processor does not say."""
    for name, active in (("crop_size", "do_center_crop"), ("size", "do_resize")):
        size = getattr(processor, name, None)
        if size is None or not getattr(processor, active, False):
            continue
        sides = size if isinstance(size, dict) else getattr(size, "__dict__", {"shortest_edge": size})
        height = sides.get("height") or sides.get("shortest_edge")
        width = sides.get("width") or sides.get("shortest_edge")
        if height and width:
            return int(height), int(width)
    return None
