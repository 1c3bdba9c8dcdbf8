"""Whether gradients lead where they point: zero ones, erratic ones, ones of which a part is lost or turned, and what lies beside.

Each is measured on some samples in a few passes; `masking` says from which size on it counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import ce, cw, fools, margin, misclassified
from robustdup.attacks.passes import input_gradient
from robustdup.attacks.pgd import ascent, pgd
from robustdup.projections import per_sample, row_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

# The gradient should hold over steps as attacks make them. On honest networks, standard or robust, 95% of samples rise
# by over 0.7 of what it promises for any step up to eps; behind a ripple all rise by less than 0.1 of it.
STEPS = (1 / 16, 1 / 2)  # of eps
FOLLOWS = 0.5  # of the rise that the gradient promises
# A gradient of which a part is lost or turned still leads, and is followed, but not to the end. On ordinary networks, of all
# objectives here and in all three norms, the median over the small step is within 7% of what is promised, and no pixel has
# a gradient of exactly zero.
MOST_KEPT = 1000.0  # times the promise, which is all that is noted
UNSEEN = 0.02  # of what the gradient promises over the large step: a change by pixels of zero gradient that matters
# Clean images are special to a model: on the grid of 8 bits, perhaps known to it. So gradients are looked at beside them too.
APART = 1 / 4  # of eps, from a clean image to one that is no better than others
BESIDE = 1 / 50  # of the way or of eps, from the worst image found, or the surface, to its neighbours
FALLS = 0.05  # of the margin: less is rounding, or no way down
# Where the boundary lies is what attacks are after. On ordinary networks the gradient of the margin, beside an image on it, tells
# on which side random steps from there end, for 95% of the samples or more, in all three norms.
SIDES = 4  # random steps from there
TOLD = 0.75  # of the sides of a sample, at least
ACROSS = 1 / 16  # of eps: a step's length; over half of eps networks for photographs are too curved
# But over so short steps the answers of what rounds images to few levels hang on single pixels: of opposite ones a third or more
# end on the same side, elsewhere a tenth. There a longer one must do.
RAGGED, LONGER = 0.2, 1 / 2
EXACT = 1 / 10  # of how far a random step goes along a gradient: as near as the boundary must be met
# And it leads there: what lies so near an image that is known to be misclassified, an attack must break.
PLANTED = 3 / 4  # of eps
PLANTED_STEPS = 20  # of PGD


def gradient_signs(
    model: nn.Module, clean: Tensor, adv_images: Tensor, labels: Tensor, threat: ThreatModel
) -> dict[str, float]:
    """Return signs that gradients mislead, of samples `clean`, `adv_images` (n, C, H, W), `labels` (n,).

    `zero_gradients`: the share of samples with a zero gradient, of the cross-entropy or the margin. The others are looked at
    from the clean image and from one apart from it. `erratic`: the share of those where over a step against the gradient of
    the margin, a small one or a large one, the margin falls by less than half of what the gradient promises. `kept_promise`:
    which part of the promise is kept over the small step, at the median; the worse of the two. `unseen`: the share of those
    where pixels whose gradient is zero change the margin. `evades` and `misses_boundary`: see there.
    """
    rows = torch.zeros_like(labels, dtype=torch.bool)
    zero, erratic, unseen, kept = rows.clone(), rows.clone(), rows.clone(), 1.0
    for images in (clean, adv_images):
        gradient, _, _ = input_gradient(model, images, lambda logits, rows: ce(logits, labels[rows]))
        zero |= is_zero(gradient)
    for images in (clean, apart(clean, threat)):
        gradient, before, _ = input_gradient(model, images, lambda logits, rows: cw(logits, labels[rows]))
        zero |= is_zero(gradient)
        gradient = gradient.nan_to_num(0, 0, 0)
        direction = ascent(images, gradient, threat)
        for step in STEPS:
            moved = (images + step * threat.radius * direction).clamp(0, 1)
            promised = row_sum((gradient * (moved - images)).flatten(1))
            rise = _rise(model, moved, labels, before)
            erratic |= (promised > 0) & ~(rise > FOLLOWS * promised)
            if step == STEPS[0] and bool((promised > 0).any()):
                part = min(max(float((rise / promised)[promised > 0].median()), -MOST_KEPT), MOST_KEPT)
                kept = max(kept, part, key=_off)
        unseen |= unseen_matter(model, images, gradient, labels, before, promised, threat)
    evading = evades(model, clean, adv_images, labels, threat)
    missing = misses_boundary(model, model, clean, labels, threat)
    shares = {
        "zero_gradients": zero, "erratic": erratic, "unseen": unseen, "evades": evading, "misses_boundary": missing,
    }  # fmt: skip
    return {name: float(rows.double().mean()) for name, rows in shares.items()} | {"kept_promise": kept}


def _off(kept: float) -> float:
    """Return by which factor a promise was not kept, or kept more than once."""
    return max(kept, 1 / kept) if kept > 0 else float("inf")


def apart(clean: Tensor, threat: ThreatModel) -> Tensor:
    """Return an image inside the ball for each clean one (n, C, H, W), a quarter of eps away in a random direction."""
    return (clean + APART * _direction(clean, threat, torch.Generator().manual_seed(0))).clamp(0, 1)


def evades(model: nn.Module, clean: Tensor, adv_images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Tell for which samples the model answers otherwise just where attacks end: (n,) bool.

    Models that know the surface of the ball, or images of 8 bits, do. Either an image beside the worst one found, inside the
    ball, is misclassified: a little nearer to the clean one, rounded to 8 bits towards it, or moved at random. Or the margin,
    which falls on the way to the surface by more than a trifle, comes back by half over the last step.

    Args:
        model: images (n, C, H, W) in [0, 1] -> logits (n, K).
        clean: clean images (n, C, H, W) in [0, 1].
        adv_images: the worst images found (n, C, H, W).
        labels: their classes (n,).
        threat: the threat model.
    """
    levels, change = 255 * adv_images, adv_images - clean
    towards = torch.where(change > 0, levels.floor(), levels.ceil()) / 255
    shift = BESIDE / APART * (apart(clean, threat) - clean)
    fall = torch.zeros_like(labels, dtype=torch.bool)
    end = clean + threat.sphere_scale(change.sign() if threat.norm == "Linf" else change)
    with torch.no_grad():
        for images in (torch.lerp(adv_images, clean, BESIDE), towards, adv_images + shift):
            fall |= misclassified(model(threat.project(clean, images).clamp(0, 1)), labels)
        way = (clean, torch.lerp(end, clean, BESIDE).clamp(0, 1), end.clamp(0, 1))
        start, near, last = (margin(model(images), labels).double() for images in way)
    down = start - near
    return fall | ((down > FALLS * start) & (last - near > 0.5 * down))


def misses_boundary(judged: nn.Module, route: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Tell for which samples the gradient of `route` does not lead to the judged model's boundary: (n,) bool.

    What leads along values that decide nothing does not: decoys beside answers of another kind, classes that never win,
    gradients that turn near the boundary or lie in a few directions. The boundary is met halfway to the nearest sample of
    another class, by halvings. Either the gradient beside it does not tell on which side random steps end (`tells_sides`). Or
    an attack, from three quarters of eps before it, does not cross it, though it is known that it can be crossed there (a
    test that is known to be solvable, as https://arxiv.org/abs/2206.13991 asks of attacks).

    Args:
        judged: images (n, C, H, W) in [0, 1] -> logits (n, K).
        route: the same, whose gradient is looked at.
        images: images of several classes (n, C, H, W) that the judged model gets right.
        labels: their classes (n,).
        threat: the threat model, which says how long steps are.
    """
    far = torch.cdist(images.flatten(1), images.flatten(1)).masked_fill(labels[:, None] == labels, torch.inf)
    distance, other = far.min(dim=1)
    rows = distance.isfinite().nonzero()[:, 0]
    missed = torch.zeros_like(labels, dtype=torch.bool)
    if not len(rows):
        return missed
    scale = ACROSS * threat.sphere_scale(torch.ones_like(images[:1])).norm() / images[0].numel() ** 0.5
    halvings = math.ceil(math.log2(max(float(distance[rows].max()) / (EXACT * float(scale)), 2)))
    clean, beyond, classes = images[rows], images[other[rows]], labels[rows]
    right = clean
    for _ in range(halvings):
        middle = (right + beyond) / 2
        wrong = per_sample(fools(judged, middle, classes), middle)
        right, beyond = torch.where(wrong, right, middle), torch.where(wrong, middle, beyond)
    astray = ~tells_sides(judged, route, beyond, classes, threat, ACROSS)
    if bool(astray.any()) and _ragged(judged, beyond[astray], classes[astray], threat) > RAGGED:
        astray[astray.clone()] = ~tells_sides(judged, route, beyond[astray], classes[astray], threat, LONGER)
    missed[rows] = astray
    share = (PLANTED * threat.radius / threat.distance(beyond, clean)).clamp(max=1)
    planted = torch.lerp(beyond, clean, per_sample(share.to(clean.dtype), clean))
    solvable = ~fools(judged, planted, classes)
    if bool(solvable.any()):
        start, classes, rows = planted[solvable], classes[solvable], rows[solvable]
        rng = SampleRng(0, rows).fold("planted")
        adv_images = pgd(route, start, classes, threat, rng=rng, steps=PLANTED_STEPS, loss="margin")
        missed[rows] |= ~fools(judged, threat.project(start, adv_images), classes)
    return missed


def tells_sides(
    judged: nn.Module, route: nn.Module, beyond: Tensor, labels: Tensor, threat: ThreatModel, length: float
) -> Tensor:
    """Tell where the gradient of `route` says on which side of the judged model's boundary random steps end: (n,) bool.

    Steps start at images upon it, on the far side, `beyond` (n, C, H, W), of classes `labels` (n,); they are `length` eps
    long. Which side they end on is compared with the sign that the gradient gives them (as https://arxiv.org/abs/1904.02144
    estimates gradients from answers): that beside the boundary, where attacks go, not upon it.
    """
    generator = torch.Generator().manual_seed(1)

    def step() -> Tensor:
        return (beyond + length * _direction(beyond, threat, generator)).clamp(0, 1)

    gradient, _, _ = input_gradient(route, step(), lambda logits, part: cw(logits, labels[part]))
    gradient = gradient.nan_to_num(0, 0, 0)
    told = torch.zeros(len(labels), device=beyond.device)
    said = torch.zeros_like(told)
    for _ in range(SIDES):
        moved = step()
        promised = row_sum((gradient * (moved - beyond)).flatten(1)).to(told)
        said += promised.abs()
        told += promised.abs() * ((promised > 0) == fools(judged, moved, labels))
    return (told >= TOLD * said) & (said > 0)


def _ragged(judged: nn.Module, beyond: Tensor, labels: Tensor, threat: ThreatModel) -> float:
    """Return the share of short steps from the boundary that end on the same side of it as the opposite ones do."""
    generator = torch.Generator().manual_seed(2)
    same = 0.0
    for _ in range(SIDES):
        step = ACROSS * _direction(beyond, threat, generator)
        step *= (beyond - step.abs() >= 0) & (beyond + step.abs() <= 1)
        both = fools(judged, beyond + step, labels) == fools(judged, beyond - step, labels)
        same += float(both.double().mean()) / SIDES
    return same


def _direction(images: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Draw a step of length eps for each image (n, C, H, W)."""
    noise = torch.randn(images.shape, generator=generator).to(images)
    return threat.sphere_scale(noise.sign() if threat.norm == "Linf" else noise)


def unseen_matter(
    model: nn.Module, clean: Tensor, gradient: Tensor, labels: Tensor, before: Tensor, promised: Tensor,
    threat: ThreatModel,
) -> Tensor:  # fmt: skip
    """Tell of which samples pixels whose gradient is exactly zero change the margin, where others have one: (n,) bool.

    Args:
        model: images (n, C, H, W) in [0, 1] -> logits (n, K).
        clean: clean images (n, C, H, W) in [0, 1].
        gradient: of the margin there (n, C, H, W).
        labels: their classes (n,).
        before: the margin against the model there (n,).
        promised: by how much the gradient promises that to rise over the large step (n,).
        threat: the threat model.
    """
    hidden = (gradient == 0) & ~per_sample(is_zero(gradient), gradient)
    rows = hidden.flatten(1).any(dim=1)
    if not bool(rows.any()):
        return rows
    towards_grey = torch.where(clean < 0.5, 1.0, -1.0).to(clean) * hidden
    moved = (clean + STEPS[1] * threat.sphere_scale(towards_grey)).clamp(0, 1)
    return rows & (_rise(model, moved, labels, before).abs() > UNSEEN * promised)


def _rise(model: nn.Module, images: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Return by how much the margin against the model is above what it was (n,)."""
    with torch.no_grad():
        return (cw(model(images), labels) - before).double()


def is_zero(gradient: Tensor) -> Tensor:
    """Tell of which samples the gradient (N, ...) is exactly zero everywhere, or not finite: (N,) bool."""
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1) | ~flat.isfinite().all(dim=1)
