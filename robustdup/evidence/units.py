"""What the pixels of examples are in, told by holding them against the clean images: [0, 1], bytes, normalised, blue first.

An example looks like its sample, so that the right units are those in which both are near. Bytes are read as they are; other
units are refused with their name, since they may be meant otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustdup.errors import UserError, unknown
from robustdup.models.normalisation import NAMED, Normalisation, parse_normalisation

LOOKED_AT = 512  # examples whose units are told
STRAY = 0.01  # share of examples that may be in other units than the rest
CLEARLY = 2  # times nearer, at which other units are believed
AS_NEAR = 1.1  # times as far as a fitted line, up to which usual units are named
ALIKE = 0.5  # correlation with its sample, from which an example looks like it
NEITHER = 0.1  # times the contrast of the clean images, below which values in [0, 1] are no images in [0, 1]

BEYOND = 0.3  # how far beyond [0, 1] perturbed images may reach

# (mean, deviation) of units that are no usual normalisation.
OWN = {
    "1": ((0.0,), (1.0,)), "1/255": ((0.0,), (255.0,)), "65535": ((0.0,), (1 / 65535,)), "-128..127": ((128 / 255,), (1 / 255,)),
}  # fmt: skip
TOLD = ("1", "255", "1/255", "65535", "-1..1", "-128..127", *(name for name in NAMED if name not in ("half", "0..255")))
BLUE_FIRST = ("bgr", "255+bgr", "-1..1+bgr", "cifar10+bgr", "imagenet+bgr")

InBall = Callable[[Tensor, Tensor], Tensor]


def named_units(text: str) -> Normalisation:
    """Return the units of a name: those of `OWN`, or any that `--normalize` takes. Raises UserError."""
    if text in OWN:
        return Normalisation(text, *OWN[text])
    try:
        units = parse_normalisation(text)
    except UserError:
        units = None
    if units is None:
        raise unknown("scale", text, (*TOLD, "bgr"), see="Or give the means and then the deviations: --scale 0.5,0.5.")
    return units


def scaled(images: Tensor, units: Normalisation) -> Tensor:
    """Return images (n, C, H, W) in these units as images in [0, 1]. Raises UserError where the channels do not fit."""
    channels = max(len(units.mean), len(units.std))
    if channels not in (1, images.shape[1]):
        raise UserError(
            f"The scale {units.text!r} is for {channels} channels; the examples have {images.shape[1]}.",
            code="bad-scale",
        )
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (units.mean, units.std))
    plain = images.flip(1) if units.bgr else images
    return plain if units.text == "1" else plain * std + mean


def to_unit(
    images: Tensor, clean: Tensor, in_ball: InBall, *, scale: str | None, whole_numbers: bool
) -> tuple[Tensor, list[str]]:
    """Return images in [0, 1], and what was done.

    Args:
        images: the examples (n, C, H, W) in whatever units.
        clean: the samples that they stand for (n, C, H, W) in [0, 1].
        in_ball: tells which examples lie in the ball about their samples, given both.
        scale: the name of their units; found out if not given.
        whole_numbers: whether the file holds whole numbers.

    Raises:
        UserError: bad-scale, for units that have to be named, are named wrongly, or are not the same for all.
    """
    few = slice(0, LOOKED_AT)
    low, high = _ends(images)
    start, notes = ("1" if scale is None else scale), []
    if scale is None and whole_numbers and low >= 0 and 1 < high <= 255:
        start, notes = "255", ["Pixels are bytes, 0 to 255."]
    read = scaled(images, named_units(start))
    if float(in_ball(read[few], clean[few]).double().mean()) < 0.5:
        nearer = _nearer(images[few], clean[few], start)
        if nearer == "255" and start == "1" and low >= 0:
            span = f"values from {low:.4g} to {high:.4g}"
            read, start = scaled(images, named_units(nearer)), nearer
            notes = [f"Pixels are {span}: read as 0 to 255, as which they look like the samples."]
        elif nearer is not None or _is_change(images[few], clean[few], in_ball):
            raise _other_units(images, clean[few], start, nearer, in_ball)
    return read, notes


def _candidates(images: Tensor, start: str) -> list[str]:
    """Return the names of units worth trying on images (n, C, H, W); of what lies in [0, 1] few are."""
    low, high = _ends(images)
    names = [start or "1", *TOLD] if low < 0 or high > 1 or start != "1" else ["1", "1/255"]
    fitting = [name for name in dict.fromkeys(names) if len(named_units(name).mean) in (1, images.shape[1])]
    return [*fitting, *(BLUE_FIRST if images.shape[1] == 3 else ())]


def _nearer(images: Tensor, clean: Tensor, start: str) -> str | None:
    """Return the units in which images are clearly nearer to the clean ones than as `start`; None where there are none.

    Where no usual ones fit, they are told by a straight line for each channel: "mean,…,std,…".
    """
    far = {name: _distance(scaled(images, named_units(name)), clean) for name in _candidates(images, start)}
    best = min(far, key=lambda name: far[name])
    low, high = _ends(images)
    line, slope = _line(images, clean)
    if (
        low < -BEYOND or high > 1 + BEYOND or slope < NEITHER
    ):  # a little beyond [0, 1] is a violation, in the same units
        far[line] = _distance(scaled(images, named_units(line)), clean)
        best = line if AS_NEAR * far[line] < far[best] else best
    return best if CLEARLY * far[best] < far[start] else None


def _line(images: Tensor, clean: Tensor) -> tuple[str, float]:
    """Return the normalisation that makes images of the clean ones as nearly as a line can, and its smallest slope."""
    x, y = (each.transpose(0, 1).flatten(1).double().nan_to_num(0.0, 0.0, 0.0) for each in (clean, images))
    x_mean, y_mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(dim=1) / (x - x_mean).square().sum(dim=1).clamp(min=1e-12)
    slope = slope.clamp(min=1e-6)
    mean = x_mean[:, 0] - y_mean[:, 0] / slope
    return ",".join(f"{value:.4g}" for value in [*mean.tolist(), *(1 / slope).tolist()]), float(slope.min())


def _is_change(images: Tensor, clean: Tensor, in_ball: InBall) -> bool:
    """Tell whether images are what was added to the clean ones, rather than the sum."""
    inside = float(in_ball(clean + images, clean).double().mean()) >= 0.5
    return inside and float(own_likeness(images, clean).median()) < ALIKE


def _other_units(images: Tensor, clean: Tensor, start: str, nearer: str | None, in_ball: InBall) -> UserError:
    low, high = _ends(images)
    span = f"The examples have values from {low:.4g} to {high:.4g}"
    if _is_change(images[: len(clean)], clean, in_ball):
        return UserError(
            f"{span}, and look like what was added to the images: save the sums, clean + added.", code="bad-scale"
        )
    line = nearer is not None and nearer not in (*TOLD, *BLUE_FIRST)
    like = f"as {nearer!r} they look like the samples: give --scale {nearer}, if they are in that"
    if line:
        like = (
            f"they look like the samples with about these means and deviations: --scale {nearer}. Give those that you "
            "normalised with"
        )
    are = "are no images in [0, 1]" if start == "1" else f"are not in the units {start!r}"
    return UserError(f"{span}, and {are}: {like}, or save them before they are normalised.", code="bad-scale")


def check_alike(images: Tensor, clean: Tensor, in_ball: InBall) -> None:
    """Raise UserError where some examples (n, C, H, W), said to be in [0, 1], are in other units than the rest."""
    step = -(-len(images) // LOOKED_AT)
    rows = (~in_ball(images[::step], clean[::step])).nonzero()[:, 0] * step
    rows = rows[own_likeness(images[rows], clean[rows]) >= ALIKE]
    if not len(rows):
        return
    own = _each_distance(images[rows], clean[rows])
    names = [name for name in _candidates(images, "") if name != "1"]
    far = {name: _each_distance(scaled(images[rows], named_units(name)), clean[rows]) for name in names}
    best = torch.stack(list(far.values())).min(dim=0)
    other = (CLEARLY * best.values < own).nonzero()[:, 0]
    looked_at = len(images[::step])
    if len(other) > STRAY * looked_at:
        first = int(other[0])
        raise UserError(
            f"{len(other)} of {looked_at} examples are in other units than the rest: example {int(rows[first])} looks like its "
            f"sample as {names[int(best.indices[first])]!r}. Save all in [0, 1].",
            code="bad-scale",
        )


def standard(images: Tensor) -> Tensor:
    """Return images as rows (n, pixels) without mean and contrast: their products are correlations; 0 where flat."""
    flat = images.float().flatten(1).nan_to_num(0.0, 0.0, 0.0)
    flat = flat - flat.mean(dim=1, keepdim=True)
    rows: Tensor = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-12)
    return rows


def own_likeness(images: Tensor, clean: Tensor) -> Tensor:
    """Return the correlation of each image with its clean one (n,); 0 where one is flat."""
    return (standard(images) * standard(clean)).sum(dim=1)


def _ends(images: Tensor) -> tuple[float, float]:
    finite = images[images.isfinite()]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _each_distance(images: Tensor, clean: Tensor) -> Tensor:
    return (images - clean).square().flatten(1).mean(dim=1).sqrt().nan_to_num(torch.inf)


def _distance(images: Tensor, clean: Tensor) -> float:
    return float(_each_distance(images, clean).median())
