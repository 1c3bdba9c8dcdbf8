"""Data in the forms that notebooks of other libraries have: read as the same images and labels, or refused in words."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robustdup.api.given import as_dataset
from robustdup.errors import UserError
from tests.raising import raises

N = 6
BYTES = np.random.default_rng(0).integers(0, 256, (N, 5, 5, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(BYTES).permute(0, 3, 1, 2) / 255
LABELS = torch.tensor([3, 0, 2, 1, 0, 3])
ONE_HOT = torch.nn.functional.one_hot(LABELS, 4)


class Jax:
    """An array that NumPy can ask for its values, as those of JAX and TensorFlow."""

    def __init__(self, values):
        self.values, self.shape = np.asarray(values), np.asarray(values).shape

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


class Packed:
    """An array that can be taken over by DLPack alone."""

    def __init__(self, values):
        self.values, self.shape = values, tuple(values.shape)

    def __len__(self):
        return len(self.values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Rows(Dataset):
    """A row made by a function of its number."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.row(i)


Sample = collections.namedtuple("Sample", "image label path")
FORMS = {
    "bytes, channels last": lambda: (BYTES, LABELS.numpy()),
    "fractions, channels last": lambda: (BYTES / 255, LABELS.numpy()),
    "labels in a column": lambda: (IMAGES, LABELS[:, None]),
    "one-hot labels": lambda: (IMAGES, ONE_HOT.float()),
    "arrays of JAX": lambda: (Jax(BYTES), Jax(LABELS)),
    "DLPack": lambda: (Packed(IMAGES), Packed(LABELS)),
    "a mapping": lambda: ({"images": BYTES, "labels": LABELS},),
    "a mapping, in capitals": lambda: ({"X": IMAGES.numpy(), "Y": LABELS.numpy()},),
    "batches of three": lambda: (DataLoader(TensorDataset(IMAGES, LABELS, 3 - LABELS), 4),),
    "with paths": lambda: (DataLoader(Rows(lambda i: Sample(IMAGES[i], int(LABELS[i]), f"{i}.png")), 4),),
    "dicts": lambda: (DataLoader(Rows(lambda i: {"img": IMAGES[i], "Label": int(LABELS[i]), "id": i}), 4),),
    "a dict as the label": lambda: (DataLoader(Rows(lambda i: (IMAGES[i], {"label": int(LABELS[i]), "id": i})), 4),),
    "a generator of NumPy batches": lambda: (((BYTES[i : i + 4], LABELS.numpy()[i : i + 4]) for i in (0, 4)),),
    "one-hot batches": lambda: ([(IMAGES[:4], ONE_HOT[:4]), (IMAGES[4:], ONE_HOT[4:])],),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_are_the_same_in_every_form(form):
    data = as_dataset(*FORMS[form]())
    assert torch.allclose(data.images, IMAGES, atol=1e-6)
    assert torch.equal(data.labels, LABELS)


def test_what_was_changed_is_said():
    notes = " ".join(as_dataset(Jax(BYTES), ONE_HOT).notes)
    assert "channels last" in notes
    assert "divided by 255" in notes
    assert "one-hot" in notes
    assert not as_dataset(IMAGES, LABELS).notes


REFUSED = {
    "(tensor": lambda: (DataLoader(Rows(lambda i: (i, IMAGES[i], int(LABELS[i]))), 4),),  # an index first
    "tensor (4, 3, 5, 5)": lambda: (DataLoader(Rows(lambda i: (int(LABELS[i]), IMAGES[i])), 4),),
    "list ()": lambda: (DataLoader(Rows(lambda i: ([IMAGES[i], IMAGES[i]], int(LABELS[i]))), 4),),  # two views
    "name one of the two": lambda: (((BYTES, LABELS), (BYTES, LABELS)),),  # what keras.datasets gives
    "load_data": lambda: ("my/folder",),
    "got x_train": lambda: ({"x_train": BYTES},),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_told_is_refused(words):
    with pytest.raises(UserError) as raised:
        as_dataset(*REFUSED[words]())
    assert raised.value.code == "bad-data"
    assert words.lower() in str(raised.value).lower()


def test_floats_up_to_255_are_still_refused():
    with raises("bad-images", UserError, "Divide by 255"):
        as_dataset(BYTES.astype(np.float32), LABELS)
