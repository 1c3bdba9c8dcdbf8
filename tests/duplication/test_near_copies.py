"""Near copies: deterministic for each copy, whoever shares the batch, and what their names say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from robustdup.duplication.near_copies import TRANSFORMS, parse_near
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from tests.raising import raises

ALL = "flip,shift,crop_resize,brightness,contrast,noise,blur,jpeg"


def images(n=6, channels=3, size=(12, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, *size), generator=generator, dtype=torch.uint8)


def smooth(n=6, channels=3):
    return functional.gaussian_blur(images(n, channels, (24, 24)), [9, 9], [2.5, 2.5])


def apply(text, pixels, copy=1, seed=3):
    n = len(pixels)
    return parse_near(text, seed)(pixels, torch.arange(n), torch.full((n,), copy))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 5), st.sampled_from([*TRANSFORMS, ALL]), st.sampled_from([1, 3]))
def test_a_copy_does_not_depend_on_its_batch(order, size, text, channels):
    pixels, near = images(channels=channels), parse_near(text, 7)
    rows, copies = torch.tensor(order), torch.arange(6) % 2 + 1
    whole = near(pixels[rows], rows, copies[rows])
    parts = [near(pixels[part], part, copies[part]) for part in rows.split(size)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.dtype == torch.uint8
    assert whole.shape == pixels.shape


@pytest.mark.parametrize("text", [name for name in TRANSFORMS if name not in ("flip", "jpeg", "blur")])
def test_copies_seeds_and_rows_differ(text):
    same = images(1).expand(6, -1, -1, -1)
    made = apply(text, same)
    assert len(made.flatten(1).unique(dim=0)) > 3
    assert not torch.equal(made, apply(text, same, copy=2))
    assert not torch.equal(made, apply(text, same, seed=4))
    assert bool((made != same).flatten(1).any(1).all())  # no near copy is an exact one


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning")
def test_flip_and_jpeg_are_those_of_torchvision():
    pixels = images()
    assert torch.equal(apply("flip", pixels), functional.horizontal_flip(pixels))
    assert torch.equal(apply("jpeg(quality=40)", pixels)[2], functional.jpeg(pixels[2], 40))


def test_shift_moves_by_up_to_its_pixels():
    pixels = images(40, size=(9, 9))
    moves = set()
    for before, after in zip(pixels, apply("shift(pixels=2)", pixels), strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(after[:, 2:-2, 2:-2], before[:, 2 - down : 7 - down, 2 - right : 7 - right])
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert (0, 0) not in moves
    assert len(moves) > 12  # of 24


def test_crop_resize_is_that_of_torchvision_at_one_of_the_places():
    pixels = smooth()
    for before, after in zip(pixels, apply("crop_resize(keep=0.75)", pixels), strict=True):
        errors = [
            functional.resized_crop(before, top, left, 18, 18, [24, 24], antialias=False)
            .int()
            .sub(after.int())
            .abs()
            .max()
            for top in range(7)
            for left in range(7)
        ]
        assert min(errors) <= 1


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("brightness(strength=0.2)", functional.adjust_brightness),
        ("contrast(strength=0.2)", functional.adjust_contrast),
    ],
)
def test_brightness_and_contrast_are_those_of_torchvision_at_some_strength(text, theirs):
    factors = []
    for before, after in zip(smooth(12), apply(text, smooth(12)), strict=True):
        tried = [1 + s * k / 2000 for k in range(200, 401) for s in (-1, 1)]
        errors = [int((theirs(before, f).int() - after.int()).abs().max()) for f in tried]
        assert min(errors) <= 1
        factors.append(tried[errors.index(min(errors))])
    assert min(factors) < 1 < max(factors)


def test_blur_is_that_of_torchvision():
    pixels = images(size=(20, 20))
    theirs = functional.gaussian_blur(pixels, [7, 7], [0.9, 0.9])
    assert int((theirs.int() - apply("blur(sigma=0.9)", pixels).int()).abs().max()) <= 1


def test_noise_has_the_deviation_that_it_says():
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    error = (apply("noise(std=0.05)", grey).double() - 128) / 255
    assert error.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(error.mean().item()) < 0.001


def test_steps_are_taken_in_order_with_draws_of_their_own():
    near = parse_near("shift(pixels=1),flip", 0)
    assert near.text == "shift(pixels=1),flip()"
    assert parse_near(near.text, 0) == near
    pixels, rows, copies = images(), torch.arange(6), torch.ones(6, dtype=torch.int64)
    rng = SampleRng(0, rows + (copies << 32))
    moved = TRANSFORMS["shift"](pixels, rng.fold("near 0 shift"), pixels=1)
    assert torch.equal(near(pixels, rows, copies), moved.flip(-1))


def test_no_images_make_no_copies():
    empty = torch.zeros((0, 3, 8, 8), dtype=torch.uint8)
    assert parse_near(ALL, 0)(empty, torch.arange(0), torch.arange(0)).shape == (0, 3, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_to_the_bit_on_a_gpu():
    pixels, rows, copies = images(), torch.arange(6), torch.ones(6, dtype=torch.int64)
    near = parse_near(ALL, 0)
    assert torch.equal(near(pixels, rows, copies), near(pixels.cuda(), rows, copies).cpu())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flpi", "Unknown near transform 'flpi'. Did you mean 'flip'?"),
        ("shift(pixel=2)", "Unknown option of near transform 'shift': 'pixel'. Did you mean 'pixels'?"),
        ("shift(pixels=0)", "pixels of near transform 'shift' must be a whole number from 1 to 64, got 0."),
        ("shift(pixels=1.5)", "pixels of near transform 'shift' must be a whole number from 1 to 64, got 1.5."),
        ("crop_resize(keep=1)", "keep of near transform 'crop_resize' must be a number from 0.1 to 0.99, got 1."),
        ("jpeg(quality=high)", "quality of near transform 'jpeg' must be a whole number from 1 to 100, got 'high'."),
    ],
)
def test_bad_transforms_are_named(text, message):
    with pytest.raises(UserError) as caught:
        parse_near(text, 0)
    assert message in str(caught.value)


def test_pixels_of_another_kind_are_refused():
    with raises("bad-images", UserError, "(2, 3, 8, 8)", "torch.float32"):
        apply("flip", torch.zeros(2, 3, 8, 8))
