"""Fit examples of other tools to the samples: layout, scale and order are checked by the nearness of the clean images.

An example looks like the sample it was made from. Where it does not, no accuracy is printed: a file in other units, in
another order or of other samples would give a number that means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evidence.examples import Examples
from robustdup.evidence.units import ALIKE, LOOKED_AT, STRAY, check_alike, own_likeness, standard, to_unit
from robustdup.threat import ThreatModel

UNLIKE = 0.3  # correlation of pixels, below which an example does not look like its own sample
LOST = 0.05  # share of examples that may look like no sample


@dataclass(frozen=True)
class Match:
    """Examples that fit: images (n, C, H, W) in [0, 1] in the order of `data`, and what a reader should know."""

    adv_images: Tensor
    data: ImageDataset
    notes: tuple[str, ...]


def match(
    examples: Examples, data: ImageDataset, threat: ThreatModel, *, scale: str | None = None, whole: bool = False
) -> Match:
    """Bring examples to the samples that they were made from.

    Args:
        examples: what was read.
        data: the samples, in order; where the examples have an index, all samples that it may name.
        threat: the threat model.
        scale: what the pixels are in, as `units.named_units` reads it; found out if not given.
        whole: whether the result speaks of all of `data`: samples without an example keep their clean image.

    Raises:
        UserError: bad-scale, other-samples: with what to do.
    """
    own, notes = data, list(examples.notes)
    examples, remarks = _samples_first(examples, data)
    notes += remarks
    if examples.index is not None:
        own = _chosen(data, examples.index)
    elif len(examples) != len(data):
        raise UserError(
            f"The file holds {len(examples)} examples, and there are {len(data)} samples. Say of which samples they are with "
            f"--indices (0,2,5, a file, or 'nearest'), or give --n {len(examples)} if they are the first.",
            code="other-samples",
        )
    fitted, remarks = _best_layout(examples.images, own)
    notes += remarks
    whole_numbers = not examples.images.is_floating_point()

    def in_ball(images: Tensor, clean: Tensor) -> Tensor:
        return _in_ball(images, clean, threat)

    fitted, remarks = to_unit(fitted, own.images, in_ball, scale=scale, whole_numbers=whole_numbers)
    notes += remarks
    _check_order(fitted, own, data, threat)
    check_alike(fitted, own.images, in_ball)
    if examples.labels is not None and torch.equal(examples.labels, own.labels + 1):
        notes.append("The labels in the file are numbered from 1.")
    elif examples.labels is not None and not torch.equal(examples.labels, own.labels):
        wrong = int((examples.labels != own.labels).sum()) if len(examples.labels) == len(own) else len(own)
        raise UserError(
            f"The labels in the file are not those of the data ({wrong} of {len(own)} differ). Is the order the same? "
            "Labels must be the true classes, not predictions or targets.",
            code="other-samples",
        )
    if not whole or own is data:
        if own is not data:
            notes.append(
                "The accuracies are over the samples of the file alone, which whoever made it chose: give --n for all."
            )
        return Match(fitted, own, tuple(notes))
    placed = data.images.clone()
    rows = _rows(data, own.index)
    placed[rows] = fitted
    if len(own) < len(data):
        notes.append(f"{len(own)} examples for {len(data)} samples: the others are judged as they are.")
    return Match(placed, data, tuple(notes))


def nearest_index(examples: Examples, data: ImageDataset) -> Tensor:
    """Return the index (n,) of the sample that each example looks most like. Raises UserError where that is not clear."""
    likeness = _likeness(_best_layout(examples.images, data, ordered=False)[0], data.images)
    best = likeness.topk(min(2, len(data)), dim=1)
    sure = best.values[:, 0] >= ALIKE
    if len(data) > 1:
        sure &= best.values[:, 0] > best.values[:, 1] + 1e-4
    rows = best.indices[:, 0]
    if not bool(sure.all()) or len(set(rows.tolist())) < len(rows):
        doubtful = int((~sure).sum()) or len(rows) - len(set(rows.tolist()))
        raise UserError(
            f"{doubtful} of {len(rows)} examples cannot be told by their looks: give --indices as a list or a file, in the order "
            "of the examples.",
            code="other-samples",
        )
    return data.index[rows]


def _chosen(data: ImageDataset, index: Tensor) -> ImageDataset:
    rows = _rows(data, index)
    if len(set(rows.tolist())) < len(rows):
        raise UserError("The indices name a sample twice: one example a sample is judged.", code="other-samples")
    return replace(
        data,
        images=data.images[rows],
        labels=data.labels[rows],
        index=data.index[rows],
        hashes=[data.hashes[r] for r in rows],
    )


def _rows(data: ImageDataset, index: Tensor) -> Tensor:
    rows = {number: row for row, number in enumerate(data.index.tolist())}
    missing = [number for number in index.tolist() if number not in rows]
    if missing:
        raise UserError(
            f"The file holds an example of sample {missing[0]}, which is not among the {len(rows)} samples.",
            code="other-samples",
        )
    return torch.tensor([rows[number] for number in index.tolist()])


# --- layout ---


def _samples_first(examples: Examples, data: ImageDataset) -> tuple[Examples, list[str]]:
    """Return examples whose samples lie along the first axis, and what was done: MATLAB puts them along the last."""
    images = examples.images
    count = len(data) if examples.index is None else len(examples.index)
    if images.ndim != 4 or len(images) == count or images.shape[-1] != count:
        return examples, []
    return replace(examples, images=images.movedim(-1, 0)), ["The samples lie along the last axis."]


def layouts(images: Tensor, shape: tuple[int, int, int]) -> list[tuple[Tensor, str]]:
    """Return images as (n, C, H, W) in each way in which their shape can be read, the usual ones first, and what to tell of it.

    Channels first, last, flat, grey, opaque, and width before height.
    """
    channels, height, width = shape
    n, rest = len(images), tuple(images.shape[1:])
    candidates = []
    if rest == shape:
        candidates.append(images)
    if rest == (height, width, channels):
        candidates.append(images.permute(0, 3, 1, 2))
    if rest == (height, width) and channels == 1:
        candidates.append(images[:, None])
    if rest == (height, width, 3) and channels == 1:  # grey pictures that were saved with colours
        candidates.append(images.permute(0, 3, 1, 2)[:, :1])
    if rest == (height, width, 4) and channels == 3 and bool((images[..., 3] == images[0, 0, 0, 3]).all()):
        candidates.append(images[..., :3].permute(0, 3, 1, 2))
    if rest == (channels * height * width,):
        candidates += [images.reshape(n, *shape), images.reshape(n, height, width, channels).permute(0, 3, 1, 2)]
    turned = []
    if rest == (channels, width, height):
        turned.append(images.transpose(2, 3))
    if rest == (width, height, channels):
        turned.append(images.permute(0, 3, 2, 1))
    return [(images, "") for images in candidates] + [(images, "Width comes before height.") for images in turned]


def _best_layout(images: Tensor, data: ImageDataset, *, ordered: bool = True) -> tuple[Tensor, list[str]]:
    """Return images in the layout in which they look most like the samples, as float32, and what to tell of it."""
    shape = tuple(data.images.shape[1:])
    fitting = layouts(images, (shape[0], shape[1], shape[2]))
    if not fitting:
        raise UserError(
            f"The file holds examples of shape {tuple(images.shape[1:])}; the samples have {shape} (channels, height, width). "
            "Were they resized or cropped? Give --resize, --crop or --grey as for the model.",
            code="other-samples",
        )
    chosen, note = fitting[0]
    if len(fitting) > 1 and ordered:
        few = slice(0, LOOKED_AT)
        like = [float(own_likeness(layout[few].float(), data.images[few]).nan_to_num().mean()) for layout, _ in fitting]
        chosen, note = fitting[like.index(max(like))]
    return chosen.float(), [note] if note else []


def _in_ball(images: Tensor, clean: Tensor, threat: ThreatModel) -> Tensor:
    """Tell which examples (n,) lie in the ball, or beside it by no more than rounding to 8 bits may do."""
    pixels = clean[0].numel()
    step = 0.5 / 255
    rounding = {"Linf": step, "L2": step * pixels**0.5, "L1": step * pixels}.get(threat.norm, 0.0)
    near: Tensor = threat.distance(clean, images).nan_to_num(torch.inf) <= 1.01 * threat.radius + rounding
    return near


# --- order ---


def _check_order(images: Tensor, own: ImageDataset, data: ImageDataset, threat: ThreatModel) -> None:
    """Raise UserError where examples look like other samples than those they stand for, or like none."""
    step = -(-len(images) // LOOKED_AT)
    some = images[::step]
    outside = ~_in_ball(some, own.images[::step], threat)
    if not bool(outside.any()):
        return
    rows = outside.nonzero()[:, 0]
    likeness = _likeness(some[rows], data.images)
    of_own = own_likeness(some[rows], own.images[::step][rows])
    best = likeness.max(dim=1)
    stray = (best.values > of_own + 0.02) & (best.values >= ALIKE)
    lost = of_own < UNLIKE
    if int(stray.sum()) <= STRAY * len(some) and int((stray | lost).sum()) <= max(LOST * len(some), 1):
        return
    first = int(rows[stray.nonzero()[0, 0]]) * step if bool(stray.any()) else 0
    looks = ""
    if bool(stray.any()):
        like = int(data.index[best.indices[stray.nonzero()[0, 0]]])
        looks = f" Example {first} stands for sample {int(own.index[first])} and looks like sample {like}."
    raise UserError(
        f"{int((stray | lost).sum())} of {len(some)} examples do not look like the samples that they stand for.{looks} Are they "
        "of other samples, or in another order? Say which with --indices (0,2,5, a file, or 'nearest'), with --n or --sample "
        "as they were made, or name the right --data and --split.",
        code="other-samples",
    )


def _likeness(images: Tensor, clean: Tensor) -> Tensor:
    """Return the correlation of each image with each clean one, (n, m)."""
    return standard(images) @ standard(clean).T
