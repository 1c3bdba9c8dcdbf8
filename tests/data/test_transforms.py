"""Transforms and mixes of training images: torchvision's, seeded for each sample, labels mixed as the images are."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from robustdup import SampleRng
from robustdup.data.batches import EntryOptions, TrainingSet
from robustdup.data.mixing import Mixing
from robustdup.data.transforms import Transforms, seeds_of
from robustdup.errors import UserError

IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([5, 0, 9, 3, 70, 8])


def rng(index=INDEX):
    return SampleRng(1, index)


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("randaugment(num_ops=2,magnitude=20)", v2.RandAugment(2, 20)),
        ("resized-crop(scale=0.3)", v2.RandomResizedCrop([12, 12], scale=(0.3, 1.0), antialias=True)),
        ("trivialaugment", v2.TrivialAugmentWide()),
        ("erasing(p=1)", v2.RandomErasing(p=1)),
    ],
)
def test_a_transform_is_torchvisions_under_the_seed_of_the_sample(text, theirs):
    ours = Transforms(text, (12, 12))(IMAGES, rng())
    assert (ours.shape, ours.dtype) == (IMAGES.shape, torch.uint8)
    assert not torch.equal(ours, IMAGES)
    for image, changed, seed in zip(IMAGES, ours, seeds_of(rng()), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert torch.equal(theirs(image), changed)


def test_a_sample_is_changed_alike_in_any_company_and_the_global_state_stays():
    transforms = Transforms("resized-crop(scale=0.3),randaugment", (12, 12))
    before = torch.get_rng_state()
    whole = transforms(IMAGES, rng())
    assert torch.equal(transforms(IMAGES[3:5], rng(INDEX[3:5])), whole[3:5])
    assert torch.equal(torch.get_rng_state(), before)
    assert transforms(IMAGES[:0], rng(INDEX[:0])).shape == (0, 3, 12, 12)


@pytest.mark.parametrize("text", ["cutmix(alpha=1)", "mixup(alpha=0.7)"])
def test_labels_are_mixed_as_the_images_are(text):
    """Image k is all of value k / 10, so that the mean of a mixed one tells how much of it is whose."""
    n = 6
    images = (torch.arange(n) / 10)[:, None, None, None].expand(n, 1, 12, 12).clone()
    labels = torch.arange(n)
    mixed, shares = Mixing(text)(images, labels, n, rng())
    assert shares.shape == (n, n)
    assert torch.allclose(shares.sum(dim=1), torch.ones(n))
    for row in range(n):
        mine, other = row, (row - 1) % n
        assert shares[row].nonzero().flatten().tolist() in ([mine], [other], sorted([mine, other]))
        wanted = shares[row, mine] * mine / 10 + shares[row, other] * other / 10
        assert mixed[row].mean().item() == pytest.approx(wanted.item(), abs=1e-6)
    assert len(shares.max(dim=1).values.unique()) > 2  # each sample has a draw of its own


def test_the_draw_of_a_mix_is_that_of_the_sample():
    mixing = Mixing("cutmix")
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    whole, shares = mixing(images, torch.arange(6), 6, rng())
    part, fewer = mixing(images[2:4], torch.arange(6)[2:4], 6, rng(INDEX[2:4]))
    assert torch.equal(part[1], whole[3])  # whose neighbour is the same
    assert torch.equal(fewer[1], shares[3])


def test_batches_are_transformed_and_mixed():
    options = EntryOptions(augment="flip", transforms="erasing(p=1)", mix="mixup", classes=4)
    entries = TrainingSet(IMAGES, torch.arange(6) % 4, options=options)
    epochs = torch.zeros(6, dtype=torch.int64)
    batch = entries.batch(torch.arange(6), epochs)
    assert batch.labels.shape == (6, 4)
    assert torch.equal(entries.batch(torch.arange(6), epochs).images, batch.images)
    assert not torch.equal(entries.batch(torch.arange(6), epochs + 1).images, batch.images)


@pytest.mark.parametrize(
    ("make", "text", "code"),
    [
        (lambda text: Transforms(text, (8, 8)), "randaugmant", "unknown-transform"),
        (lambda text: Transforms(text, (8, 8)), "randaugment(ops=2)", "unknown-option"),
        (lambda text: Transforms(text, (8, 8)), "erasing(p=2)", "bad-value"),
        (Mixing, "cutmix(alpha=0)", "bad-value"),
        (Mixing, "cutmic", ""),
    ],
)
def test_what_cannot_be_is_refused(make, text, code):
    with pytest.raises(UserError) as error:
        make(text)
    assert code == "" or error.value.code == code or code.startswith("unknown")
    assert text.split("(")[0][:6] in str(error.value)
