"""Models of Hugging Face transformers without their heads, whose features say how alike two images are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.networks import Normalise
from robustdup.models.transformers_source import channels_of, from_pretrained, input_size, statistics


class ImageFeatures(nn.Module):
    """A transformers model without its head: images (N, 3, H, W) in [0, 1] -> features (N, F), normalised inside.

    `pooled` says that its own pooling is trained; otherwise the first token of the last layer is taken.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, pooled: bool) -> None:
        super().__init__()
        self.model, self.normalise, self.pooled = model, Normalise(mean, std), pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of `images`."""
        pixels = self.normalise(images)
        if hasattr(self.model, "get_image_features"):  # of text and images, such as CLIP
            output = self.model.get_image_features(pixel_values=pixels)  # type: ignore[operator]
            return getattr(output, "pooler_output", output)  # type: ignore[no-any-return]
        output = self.model(pixel_values=pixels)
        if self.pooled and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)  # type: ignore[no-any-return]
        last = output.last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean(dim=(2, 3))  # type: ignore[no-any-return]


def load_hf_features(name: str) -> tuple[nn.Module, int]:
    """Return a model of the Hub or of a local folder without its head, and the side of the square images that it takes.

    https://huggingface.co/docs/transformers/model_doc/auto#transformers.AutoModel. It takes images (N, 3, H, W) in [0, 1] to
    features (N, F). Raises UserError; Unavailable where transformers is not installed.
    """
    model, processor, missing = from_pretrained(name, "AutoModel")
    untrained = [weight for weight in missing if "pooler" not in weight]
    if untrained:
        raise UserError(
            f"hf:{name} is not trained as it is loaded here: its files lack {len(untrained)} weights, such as "
            f"{untrained[0]!r}.",
            code="missing-weights",
        )
    if (channels := channels_of(model)) != 3:
        raise UserError(
            f"hf:{name} takes images of {channels} channels; an embedding must take colour images.",
            code="model-and-data",
        )
    height, width = input_size(processor) or (224, 224)
    return ImageFeatures(model, *statistics(processor, 3), pooled=not missing), max(height, width)
