"""Changes that nothing in the search was learned from: what people do to pictures before they post them again.

A projection and its candidates are learned from the changes in `transforms`. These here are kept out of it: how many such
copies a search finds says how far it reaches. Each takes a picture uint8 (H, W, 3) as a Pillow image and returns another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

Kind = Callable[[Image.Image, np.random.Generator], Image.Image]


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Drop the colour."""
    return image.convert("L").convert("RGB")


def hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn the hue by 20 to 60 degrees, either way."""
    pixels = np.array(image.convert("HSV"))
    turn = int(rng.integers(14, 43)) * int(rng.choice([-1, 1]))
    pixels[..., 0] = (pixels[..., 0].astype(np.int64) + turn) % 256
    return Image.fromarray(pixels, "HSV").convert("RGB")


def contrast(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Multiply the contrast by 0.5 or 1.8."""
    return ImageEnhance.Contrast(image).enhance(float(rng.choice([0.5, 1.8])))


def gamma(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Raise the values to the power 0.5 or 2."""
    power = float(rng.choice([0.5, 2.0]))
    return image.point([round(255 * (value / 255) ** power) for value in range(256)] * 3)


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur with a radius of a 50th of the side."""
    return image.filter(ImageFilter.GaussianBlur(max(min(image.size) / 50, 0.8)))


def text_line(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Write a line of text in a band of a seventh of the height, at the top or the foot."""
    image = image.copy()
    width, height = image.size
    band = max(height // 7, 4)
    top = 0 if rng.integers(2) else height - band
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, width, top + band), fill="black" if rng.integers(2) else "white")
    for left in range(2, width - 2, max(band // 2, 2)):
        if rng.random() < 0.75:
            draw.line((left, top + band // 4, left, top + 3 * band // 4), fill="grey", width=max(band // 6, 1))
    return image


def watermark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lay three half transparent diagonal strokes over the middle."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    width, height = image.size
    for place in (0.3, 0.5, 0.7):
        draw.line(
            (0.15 * width, place * height + 0.1 * height, 0.85 * width, place * height - 0.1 * height),
            fill=(255, 255, 255, 128), width=max(height // 16, 1),
        )  # fmt: skip
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def border(image: Image.Image, rng: np.random.Generator, share: float = 0.1) -> Image.Image:
    """Put a border around the picture, of a share of its side, black, white or grey."""
    width = max(round(share * min(image.size)), 1)
    return ImageOps.expand(image, width, fill=("black", "white", "grey")[rng.integers(3)]).resize(
        image.size, Image.Resampling.BILINEAR
    )


def wide_border(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put a border of a fifth of the side around the picture."""
    return border(image, rng, 0.2)


def letterbox(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Squeeze the picture to 3 by 4 between two bars."""
    width, height = image.size
    small = image.resize((width, max(round(0.75 * height), 1)), Image.Resampling.BILINEAR)
    page = Image.new("RGB", image.size, ("black", "white")[rng.integers(2)])
    page.paste(small, (0, (height - small.height) // 2))
    return page


def _rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0))


def rotation_5(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by 5 degrees, either way; the corners are black."""
    return _rotated(image, 5 * int(rng.choice([-1, 1])))


def rotation_15(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by 15 degrees, either way."""
    return _rotated(image, 15 * int(rng.choice([-1, 1])))


def rotation_90(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by a quarter, either way."""
    return image.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[rng.integers(2)])


def rotation_180(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn upside down."""
    return image.transpose(Image.Transpose.ROTATE_180)


def flip_horizontal(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left to right."""
    return ImageOps.mirror(image)


def flip_vertical(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror top to bottom."""
    return ImageOps.flip(image)


def negative(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn the values round."""
    return ImageOps.invert(image)


def _crop(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    width, height = (max(round(share * side), 1) for side in image.size)
    left, top = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BILINEAR)


def crop_80(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out 80% of each side, anywhere, and resize back."""
    return _crop(image, rng, 0.8)


def crop_65(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out 65% of each side."""
    return _crop(image, rng, 0.65)


def crop_50(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out half of each side."""
    return _crop(image, rng, 0.5)


def occlusion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Hide a quarter of the picture behind a box of one colour."""
    image = image.copy()
    width, height = image.size[0] // 2, image.size[1] // 2
    left, top = int(rng.integers(0, width + 1)), int(rng.integers(0, height + 1))
    image.paste(tuple(int(value) for value in rng.integers(0, 256, 3)), (left, top, left + width, top + height))
    return image


KINDS: dict[str, Kind] = {
    "grey": grey, "hue": hue, "contrast": contrast, "gamma": gamma, "blur": blur, "text line": text_line,
    "watermark": watermark, "border 10%": border, "border 20%": wide_border, "letterbox": letterbox,
    "rotation 5": rotation_5, "rotation 15": rotation_15, "rotation 90": rotation_90, "rotation 180": rotation_180,
    "flip horizontal": flip_horizontal, "flip vertical": flip_vertical, "negative": negative, "crop 80%": crop_80,
    "crop 65%": crop_65, "crop 50%": crop_50, "occlusion 25%": occlusion,
}  # fmt: skip


def copies_of_kinds(pixels: Tensor, rng: np.random.Generator, kinds: tuple[str, ...]) -> tuple[Tensor, list[str]]:
    """Return one changed copy of each picture uint8 (N, 3, S, S), all `kinds` in turn, and the kind of each."""
    names = [kinds[row % len(kinds)] for row in range(len(pixels))]
    made = [
        np.asarray(KINDS[name](Image.fromarray(image.permute(1, 2, 0).numpy()), rng))
        for name, image in zip(names, pixels, strict=True)
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous(), names
