"""Normalisation that a model leaves to its caller: read, and put in front of it."""

from __future__ import annotations

import pytest
import torch

from robustdup.models.normalisation import NAMED, parse_normalisation
from tests.raising import raises

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ("CIFAR-10", *NAMED["cifar10"]), ("0.5,0.5", [0.5], [0.5]),
        ("0.4914, 0.4822, 0.4465, 0.2023, 0.1994, 0.2010", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("mean=[0.1,0.2,0.3] std=[1,1,2]", (0.1, 0.2, 0.3), (1, 1, 2)), ("0,1/255", [0], [1 / 255]),
        ("[0.5, 0.5, 0.5],[0.5, 0.5, 0.5]", [0.5] * 3, [0.5] * 3), ("125.3/255;63./255.", [125.3 / 255], [63 / 255]),
        ("0..255", [0], [1 / 255]), ("255", [0], [1 / 255]), ("-1..1", [0.5], [0.5]),
    ],
)  # fmt: skip
def test_names_and_numbers(text, mean, std):
    normalised = parse_normalisation(text).layer(3)(IMAGES)
    mean, std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
    torch.testing.assert_close(normalised, (IMAGES - mean) / std)


def test_blue_first_and_0_to_255_as_caffe_takes_them():
    blue_green_red = IMAGES.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    torch.testing.assert_close(parse_normalisation("caffe").layer(3)(IMAGES), blue_green_red, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(parse_normalisation("bgr").layer(3)(IMAGES), IMAGES.flip(1))
    torch.testing.assert_close(parse_normalisation("0.5,0.5+bgr").layer(3)(IMAGES), (IMAGES.flip(1) - 0.5) / 0.5)


def test_nothing_and_mistakes():
    assert parse_normalisation(None) is None
    assert parse_normalisation("none") is None
    for text in ("0.5", "0.1,0.2,0.3", "0.5,0", "0.5,-1", "0.5,1/0", "1,2,x2"):
        with raises("unknown-normalisation" if "x" in text else "bad-normalisation", ValueError, "--normalize"):
            parse_normalisation(text)
    with raises("unknown-normalisation", ValueError, "'imagenet'"):
        parse_normalisation("imagnet")
    with raises("bad-normalisation", ValueError, "the images have 1"):
        parse_normalisation("cifar10").layer(1)
