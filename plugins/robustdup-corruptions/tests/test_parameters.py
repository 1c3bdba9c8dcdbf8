"""The strengths of all nineteen corruptions beside the numbers in the scripts that made CIFAR-10-C and ImageNet-C.

https://github.com/hendrycks/robustness, ImageNet-C/create_c: make_cifar_c.py and make_imagenet_c.py, read 2026-11-30.
"""

import ast
import importlib.util
import inspect

import numpy as np
import pytest
from robustdup_corruptions.record import KINDS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("imagecorruptions") is None, reason="no imagecorruptions")

# By severity, as the scripts have them; sizes that they multiply by the side of the image are divided by it here.
CIFAR_10_C = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [1.06, 1.11, 1.16, 1.21, 1.26],  # np.arange(1, this, 0.01)
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],
    "spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
}  # fmt: skip
IMAGENET_C = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.02), (1, 1.26, 0.02), (1, 1.31, 0.03)],  # np.arange
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "elastic_transform": [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "jpeg_compression": [25, 18, 15, 10, 7],
    "speckle_noise": [0.15, 0.2, 0.35, 0.45, 0.6],
    "gaussian_blur": [1, 2, 3, 4, 6],
    "spatter": [
        (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
    ],
    "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
}  # fmt: skip


def of_library(kind):
    """Read the five strengths of a kind out of the library's source: the list that it chooses from by severity."""
    from imagecorruptions import corruption_dict

    for node in ast.walk(ast.parse(inspect.getsource(corruption_dict[kind]))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "c":
            return eval(compile(ast.Expression(node.value.value), "strengths", "eval"), {"np": np})
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_small_images_have_the_strengths_of_cifar_10_c(kind):
    from robustdup_corruptions.small_images import STRENGTHS

    assert list(STRENGTHS[kind]) == CIFAR_10_C[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_large_images_have_the_strengths_of_imagenet_c(kind):
    from robustdup_corruptions.making import ELASTIC, ELASTIC_SIDE

    if kind == "elastic_transform":  # robustdup's own: on 224 pixels the script's 244 times each share
        found = [tuple(224 * ELASTIC_SIDE * share for share in strength) for strength in ELASTIC]
        assert found == [pytest.approx(strength) for strength in IMAGENET_C[kind]]
    elif kind == "zoom_blur":
        for ours, theirs in zip(of_library(kind), IMAGENET_C[kind], strict=True):
            assert np.array_equal(ours, np.arange(*theirs))
    else:
        assert of_library(kind) == IMAGENET_C[kind]


def test_the_elastic_transform_of_large_images_moves_pixels_about_as_far_as_it_says():
    import torch
    from robustdup_corruptions.making import make_corrupted

    ramp = torch.arange(96).float().div(95).view(1, 1, 1, 96).expand(1, 3, 96, 96)
    images = (ramp * 255).round() / 255
    moved = make_corrupted(images, torch.tensor([3]), "elastic_transform", 5, seed=0) - images
    inner = moved[..., 20:-20].mul(95)  # shifts in pixels along the ramp
    # White noise in [-1, 1] has deviation 0.577; a Gaussian blur of s pixels divides it by 2 s sqrt(pi), the reach multiplies.
    side = 96 * 244 / 224
    expected = 0.577 / (2 * 0.01 * side * np.pi**0.5) * 0.12 * side
    assert float(inner.sub(inner.mean()).std()) == pytest.approx(expected, rel=0.35)  # the corners move too
