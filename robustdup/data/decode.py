"""From encoded images to pixels in [0, 1]: modes, sizes, resize and crop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL.Image import DecompressionBombError
from torch import Tensor

from robustdup.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

    from robustdup.config import DataOptions

T = TypeVar("T")
LARGEST_SIDE = 4096  # pixels that images may be resized to: more fills any memory

# Pillow raises all of these for broken files, the last one for hundreds of megapixels.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, DecompressionBombError)


def why_unreadable(error: Exception) -> str:
    """Say in one line why an image cannot be read, the same in every run."""
    text = " ".join(str(error).split())
    return re.sub(r"cannot identify image file <.*>", "no image file of a known kind", text) or type(error).__name__


def check_place(encoded: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless an encoded image has bytes or names a file: nothing is fetched, and no pipe is waited for."""
    if encoded is None:
        raise ValueError("no image")
    if encoded.get("bytes") is not None:
        return
    place = encoded.get("path")
    if not place:
        raise ValueError("has neither bytes nor a path")
    if "://" in place or "::" in place:
        raise ValueError("is a link, and links of a dataset are not followed: download the images")
    if not Path(place).is_file():
        raise ValueError("names a file that is not there")


def no_programs() -> None:
    """Keep Pillow from starting Ghostscript for PostScript that calls itself a picture: of data, nothing runs."""
    from PIL import EpsImagePlugin

    EpsImagePlugin.gs_binary = False


def open_picture(encoded: Mapping[str, Any] | None) -> PIL.Image.Image:
    """Return an encoded image, upright. Raises one of UNREADABLE."""
    import datasets

    check_place(encoded)
    no_programs()
    image: PIL.Image.Image = datasets.Image().decode_example(encoded)
    image.load()
    return image


_AS_IS = ("L", "RGB")
_TO_RGB = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX")
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def plain_image(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image in mode L or RGB (8 bits), or F with values in [0, 255] for 16-bit grey.

    Palettes become RGB. White is put behind transparent pixels. Raises ValueError for what has no plain meaning.
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in _WITH_ALPHA:
        grey = image.mode in ("LA", "La")
        return (on_white(image) if see_through(image) else image.convert("RGB")).convert("L" if grey else "RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        from PIL import Image

        return Image.fromarray(np.asarray(image).astype(np.float32) * np.float32(255 / 65535), mode=None)
    if image.mode in _TO_RGB:
        return image.convert("RGB")
    if image.mode in _AS_IS:
        return image
    raise ValueError(f"has the pixel mode {image.mode!r}, whose range is unknown; save it with 8 or 16 bits")


def see_through(image: PIL.Image.Image) -> bool:
    """Tell whether a picture has pixels that are not wholly opaque."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode not in _WITH_ALPHA:
        return False
    return bool(image.getchannel(image.getbands()[-1]).getextrema()[0] != 255)


def on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture with white behind its transparent pixels, in mode RGB."""
    from PIL import Image

    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def fit(image: T, options: DataOptions) -> T:
    """Resize the shorter side (bilinear, antialiased) and crop the centre, as RobustBench does for ImageNet.

    Takes a PIL image or a tensor (..., H, W) and follows torchvision's Resize and CenterCrop
    (https://pytorch.org/vision/stable/transforms.html). Raises ValueError where the crop is larger than the image.
    """
    if options.resize is None and options.crop is None:
        return image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    value: Any = image
    if options.resize is not None:
        value = functional.resize(value, [options.resize], interpolation=InterpolationMode.BILINEAR, antialias=True)
    if options.crop is not None:
        height, width = functional.get_size(value)
        if min(height, width) < options.crop:
            raise ValueError(
                f"is {height}x{width} (height x width), too small for crop = {options.crop}; add resize = {options.crop}"
            )
        value = functional.center_crop(value, [options.crop, options.crop])
    return value  # type: ignore[no-any-return]


def check_options(options: DataOptions) -> None:
    """Raise UserError unless resize and crop are sizes of pictures and fit each other."""
    for name in ("resize", "crop"):
        size = getattr(options, name)
        if size is not None and not 1 <= size <= LARGEST_SIDE:
            raise UserError(f"{name} must be 1 to {LARGEST_SIDE} pixels, got {size}.", code="bad-option")
    if options.resize is not None and options.crop is not None and options.crop > options.resize:
        raise UserError(
            f"crop = {options.crop} is larger than resize = {options.resize}: nothing to crop from.", code="bad-option"
        )


def to_tensor(image: PIL.Image.Image, options: DataOptions) -> Tensor:
    """Return one image as float32 (C, H, W) in [0, 1], C = 1 or 3. Raises ValueError that says what is wrong with it."""
    image = plain_image(image)
    if options.grey and image.mode == "RGB":
        image = image.convert("L")  # ITU-R 601 luma, rounded to 8 bits
    tensor = torch.from_numpy(np.array(fit(image, options), dtype=np.float32)) / 255
    tensor = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()
    return tensor.clamp(0, 1)


def stack(images: Sequence[Tensor], rows: Sequence[int], place: str) -> Tensor:
    """Return images (C, H, W) of one size as (N, C, H, W); where grey and colour mix, grey becomes colour.

    Raises UserError for differing sizes, naming the first two rows that differ.
    """
    channels = max(image.shape[0] for image in images)
    first = images[0]
    for row, image in zip(rows, images, strict=True):
        if image.shape[1:] != first.shape[1:]:
            sizes = [f"row {r} is {i.shape[1]}x{i.shape[2]}" for r, i in ((rows[0], first), (row, image))]
            raise UserError(
                f"The images of {place} differ in size: {sizes[0]}, {sizes[1]} (height x width). "
                "Give resize and crop, for instance resize = 256 and crop = 224.",
                code="different-sizes",
            )
    return torch.stack([image.expand(channels, -1, -1) for image in images])
