"""Common corruptions as strong as those of CIFAR-10-C: for images of its size, on which those of ImageNet-C leave little to see.

The library has the strengths of ImageNet-C alone; here its parts are put together with those by which CIFAR-10-C was made
(https://github.com/hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py). Two steps differ from that script: motion is
blurred as the library does it, without ImageMagick, and shuffled and salted pixels are drawn from other generators.
"""

from __future__ import annotations

import importlib
import importlib.resources
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

Array = np.ndarray[Any, Any]

# By severity, from 1 to 5.
STRENGTHS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # blur, reach, rounds
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),  # radius, blur of the disk
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius, standard deviation
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # below which, in steps of 0.01
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),  # amount, decay
    "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # share of the image, of the frost
    "snow": (  # mean, deviation, zoom, threshold, radius and deviation of the motion, share of the image
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95), (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "spatter": (  # mean, deviation, blur, threshold, strength, whether it is mud
        (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1.0, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of a colour
    "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),  # factor, added
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of the side
    "elastic_transform": (  # reach and blur of the shifts, reach of the corners, in sides
        (0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    ),
}  # fmt: skip


def corrupt_small(image: Array, kind: str, severity: int, seed: int) -> Array:
    """Return a small image with a corruption as strong as in CIFAR-10-C; it draws from NumPy's global state and from `seed`.

    Args:
        image: uint8 (H, W, 3).
        kind: a key of STRENGTHS.
        severity: from 1 to 5.
        seed: of the kinds that have generators of their own.

    Returns:
        float64 (H, W, 3) in [0, 255].
    """
    values = _KINDS[kind](image / 255.0, STRENGTHS[kind][severity - 1], seed)
    return np.asarray(np.clip(values, 0, 1) * 255, dtype=np.float64)


@cache
def _parts() -> Any:
    return importlib.import_module("imagecorruptions.corruptions")


def _gaussian_noise(x: Array, scale: float, _: int) -> Array:
    return x + np.random.normal(size=x.shape, scale=scale)


def _shot_noise(x: Array, photons: float, _: int) -> Array:
    return np.asarray(np.random.poisson(x * photons) / photons)


def _impulse_noise(x: Array, share: float, seed: int) -> Array:
    return np.asarray(_parts().sk.util.random_noise(x, mode="s&p", rng=seed, amount=share))


def _speckle_noise(x: Array, scale: float, _: int) -> Array:
    return np.asarray(x + x * np.random.normal(size=x.shape, scale=scale))


def _gaussian_blur(x: Array, sigma: float, _: int = 0) -> Array:
    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _glass_blur(x: Array, strength: tuple[float, int, int], seed: int) -> Array:
    pixels = np.uint8(_gaussian_blur(x, strength[0]) * 255)
    shuffled = _parts()._shuffle_pixels_njit_glass_blur(*x.shape[:2], pixels, strength, seed)
    return _gaussian_blur(shuffled / 255.0, strength[0])


def _defocus_blur(x: Array, strength: tuple[float, float], _: int) -> Array:
    return np.asarray(_parts().cv2.filter2D(x, -1, _parts().disk(*strength)))


def _motion_blur(x: Array, strength: tuple[int, float], _: int) -> Array:
    angle = np.random.uniform(-45, 45)
    return np.asarray(_parts()._motion_blur(x, radius=strength[0], sigma=strength[1], angle=angle))


def _zoomed(x: Array, factor: float) -> Array:
    """Return the middle of an image, enlarged to its size."""
    large = _parts().clipped_zoom(x, factor)
    top, left = (large.shape[0] - x.shape[0]) // 2, (large.shape[1] - x.shape[1]) // 2
    return np.asarray(large[top : top + x.shape[0], left : left + x.shape[1]])


def _zoom_blur(x: Array, end: float, _: int) -> Array:
    factors = np.arange(1, end, 0.01)
    return np.asarray((x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1))


def _fog(x: Array, strength: tuple[float, float], _: int) -> Array:
    height, width = x.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    cloud = _parts().plasma_fractal(mapsize=size, wibbledecay=strength[1])[:height, :width, None]
    return np.asarray((x + strength[0] * cloud) * x.max() / (x.max() + strength[0]))


@cache
def _frost_images() -> list[Array]:
    """Return the library's five pictures of frost that CIFAR-10-C draws from, at a fifth of their size, in RGB."""
    files = importlib.resources.files("imagecorruptions")
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    read = [np.frombuffer((files / "frost" / name).read_bytes(), dtype=np.uint8) for name in names]
    cv2 = _parts().cv2
    whole = [cv2.imdecode(content, cv2.IMREAD_COLOR) for content in read]
    return [cv2.resize(picture, (0, 0), fx=0.2, fy=0.2)[..., ::-1] / 255.0 for picture in whole]


def _frost(x: Array, strength: tuple[float, float], _: int) -> Array:
    frost = _frost_images()[np.random.randint(5)]
    top, left = (np.random.randint(0, frost.shape[i] - x.shape[i]) for i in (0, 1))
    return np.asarray(strength[0] * x + strength[1] * frost[top : top + x.shape[0], left : left + x.shape[1]])


def _snow(x: Array, strength: tuple[float, ...], _: int) -> Array:
    mean, deviation, zoom, threshold, radius, sigma, share = strength
    flakes = _zoomed(np.random.normal(size=(*x.shape[:2], 1), loc=mean, scale=deviation), zoom)[..., 0]
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    angle = np.random.uniform(-135, -45)
    flakes = _parts()._motion_blur(flakes, radius=int(radius), sigma=sigma, angle=angle)[..., None]
    grey = _grey(x)
    return np.asarray(share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5) + flakes + np.rot90(flakes, k=2))


def _grey(x: Array) -> Array:
    return np.asarray((x @ np.array([0.299, 0.587, 0.114]))[..., None])


def _spatter(x: Array, strength: tuple[float, ...], _: int) -> Array:
    mean, deviation, blur, threshold, amount, mud = strength
    drops = gaussian_filter(np.random.normal(size=x.shape[:2], loc=mean, scale=deviation), blur, mode="nearest")
    drops = np.where(drops < threshold, 0, drops)
    if mud:
        cover = gaussian_filter((drops > threshold).astype(float), amount, mode="nearest")[..., None]
        cover = np.where(cover < 0.8, 0, cover)
        return np.asarray(x * (1 - cover) + np.array([63, 42, 20]) / 255 * cover)
    cover = _water((drops * 255).astype(np.uint8))
    highest = cover.max()
    return np.asarray(x + (cover / highest * amount if highest else cover)[..., None] * np.array([175, 238, 238]) / 255)


def _water(drops: Array) -> Array:
    """Return how bright each pixel of drops (H, W) uint8 shines: brighter away from their edges, lit from one side."""
    cv2 = _parts().cv2
    inside = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    inside = cv2.equalizeHist(cv2.blur(np.minimum(inside, 20), (3, 3)).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shine = cv2.blur(cv2.filter2D(inside, cv2.CV_8U, light), (3, 3)).astype(np.float32)
    return np.asarray(drops * shine)


def _contrast(x: Array, factor: float, _: int) -> Array:
    means = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - means) * factor + means)


def _in_hsv(x: Array, channel: int, factor: float, added: float) -> Array:
    colour = _parts().sk.color
    hsv = colour.rgb2hsv(x)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + added, 0, 1)
    return np.asarray(colour.hsv2rgb(hsv))


def _brightness(x: Array, added: float, _: int) -> Array:
    return _in_hsv(x, 2, 1.0, added)


def _saturate(x: Array, strength: tuple[float, float], _: int) -> Array:
    return _in_hsv(x, 1, *strength)


def _jpeg_compression(x: Array, quality: int, _: int) -> Array:
    content = io.BytesIO()
    _picture(x).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content), dtype=np.float64) / 255


def _pixelate(x: Array, share: float, _: int) -> Array:
    height, width = x.shape[:2]
    small = _picture(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255


def _picture(x: Array) -> Image.Image:
    return Image.fromarray(np.uint8((x * 255).round()))


def elastic_transform(x: Array, strength: tuple[float, float, float], _: int = 0) -> Array:
    """Bend an image (H, W, 3) in [0, 1], by reach and blur of the shifts and reach of the corners in sides: of any size."""
    cv2, shape = _parts().cv2, x.shape[:2]
    reach, blur, corners = (side * min(shape) for side in strength)
    centre, side = np.array(shape, dtype=np.float32) // 2, min(shape) // 3
    corner = np.array([centre[0] + side, centre[1] - side])
    before = np.stack([centre + side, corner, centre - side]).astype(np.float32)
    after = before + np.random.uniform(-corners, corners, size=before.shape).astype(np.float32)
    warped = cv2.warpAffine(x, cv2.getAffineTransform(before, after), shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
    shifts = [
        gaussian_filter(np.random.uniform(-1, 1, size=shape), blur, mode="reflect", truncate=3) * reach
        for _ in range(2)
    ]
    rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    coordinates = [rows + shifts[1], columns + shifts[0]]
    return np.stack([map_coordinates(warped[..., c], coordinates, order=1, mode="reflect") for c in range(3)], axis=-1)


_KINDS: dict[str, Callable[[Array, Any, int], Array]] = {
    "gaussian_noise": _gaussian_noise, "shot_noise": _shot_noise, "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur, "glass_blur": _glass_blur, "motion_blur": _motion_blur, "zoom_blur": _zoom_blur,
    "snow": _snow, "frost": _frost, "fog": _fog, "brightness": _brightness, "contrast": _contrast,
    "elastic_transform": elastic_transform, "pixelate": _pixelate, "jpeg_compression": _jpeg_compression,
    "speckle_noise": _speckle_noise, "gaussian_blur": _gaussian_blur, "spatter": _spatter, "saturate": _saturate,
}  # fmt: skip
