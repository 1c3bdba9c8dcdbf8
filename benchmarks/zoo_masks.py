"""Masks of the zoo: functions of (network, images) -> logits that keep a network's answers, or nearly, and hide its gradient.

Most stand for a published defence, or for a way in which code loses gradients by accident. Who knows the mask attacks the
network without it.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustdup

Forward = Callable[[nn.Module, Tensor], Tensor]


class Wrapped(nn.Module):
    """A network behind a function of (network, images) -> logits."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.answer = model, forward
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.answer(self.model, images)


class OutOfSight(Wrapped):
    """The same with the network in a list, where it is no module that could be found."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__(nn.Identity(), forward)
        self.networks = [model]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.answer(self.networks[0], images)


def _jpeg(images: Tensor) -> Tensor:
    from PIL import Image

    parts = []
    for image in images:
        array = (image.detach().cpu().permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        file = io.BytesIO()
        Image.fromarray(array.squeeze()).save(file, "JPEG", quality=90)
        pixels = np.asarray(Image.open(file)).reshape(array.shape).copy()
        parts.append(torch.from_numpy(pixels).permute(2, 0, 1).to(images) / 255)
    return torch.stack(parts)


def _codes(images: Tensor) -> Tensor:
    levels = torch.linspace(0.5 / 16, 15.5 / 16, 16, device=images.device).view(-1, 1, 1, 1, 1)
    return (images[None] > levels).to(images.dtype).mean(dim=0)


def _blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


@torch.no_grad()
def _purified(images: Tensor) -> Tensor:
    for _ in range(2):
        images = 0.8 * images + 0.2 * _blurred(images)
    return images


def _median(images: Tensor) -> Tensor:
    patches = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
    middle = patches.view(len(images), images.shape[1], 9, -1).median(dim=2).values.view_as(images)
    return 0.7 * images.detach() + 0.3 * middle


def _total_variation(images: Tensor) -> Tensor:
    clean = images.detach().clone()
    with torch.enable_grad():
        for _ in range(5):
            clean.requires_grad_(True)
            rough = (clean.diff(dim=-1).abs() + 1e-6).sum() + (clean.diff(dim=-2).abs() + 1e-6).sum()
            far = ((clean - images.detach()) ** 2).sum()
            (slope,) = torch.autograd.grad(0.05 * rough + far, clean)
            clean = (clean - 0.1 * slope).detach()
    return clean


def _table(images: Tensor) -> Tensor:
    table = torch.linspace(0, 1, 256) ** 1.05
    return table[(images * 255).round().long()]


def _array_table(images: Tensor) -> Tensor:
    steps = np.floor(images.detach().cpu().numpy() * 32).astype(np.int64)
    return torch.from_numpy(np.take(np.linspace(0, 1, 33, dtype=np.float32), steps)).to(images)


def _listed(images: Tensor) -> Tensor:
    return torch.tensor([[round(value * 20) / 20 for value in row] for row in images.flatten(1).tolist()]).view_as(
        images
    )


def _bytes_file(images: Tensor) -> Tensor:
    content = (images.detach() * 51).round().to(torch.uint8).cpu().numpy().tobytes()
    return torch.tensor([value / 51 for value in content], dtype=images.dtype).view_as(images)


def _steep(images: Tensor) -> Tensor:
    edges = (torch.arange(10) + 0.5).view(-1, 1, 1, 1, 1) / 10
    return torch.sigmoid(5000 * (images[None] - edges)).mean(dim=0)


def _hashed_noise(images: Tensor) -> Tensor:
    parts = []
    for image in images:
        generator = torch.Generator().manual_seed(int(float(image.double().sum()) * 1e7) % 2**31)
        parts.append(image + 0.05 * torch.randn(image.shape, generator=generator))
    return torch.stack(parts)


class _Backward(torch.autograd.Function):
    """The identity with a backward pass of the mask's own."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradients[0]), None


def _checkered(images: Tensor) -> Tensor:
    rows, columns = (torch.arange(size) for size in images.shape[2:])
    return torch.where((rows[:, None] + columns) % 2 == 0, images, images.detach())


def _fifth_turned(gradient: Tensor) -> Tensor:
    places = torch.arange(gradient[0].numel()).view_as(gradient[0])
    return torch.where(places % 5 == 0, -gradient, gradient)


def _largest_third(gradient: Tensor) -> Tensor:
    size = gradient.abs().flatten(1)
    least = size.quantile(2 / 3, dim=1).view(-1, *[1] * (gradient.dim() - 1))
    return gradient * (gradient.abs() >= least)


def _few_directions(gradient: Tensor) -> Tensor:
    """Keep the part of the gradient that lies along signs of which three in ten are wrong: it promises what it keeps."""
    wrong = (7 * torch.arange(gradient[0].numel()).view_as(gradient[0])) % 10 < 3
    signs = torch.where((gradient >= 0) ^ wrong, 1.0, -1.0)
    return (gradient * signs).flatten(1).mean(dim=1).view(-1, 1, 1, 1) * signs


def _through_waves(images: Tensor) -> Tensor:
    """Round the amplitudes of waves to halves."""
    waves = torch.view_as_real(torch.fft.rfft2(images))
    return torch.fft.irfft2(torch.view_as_complex((2 * waves).round() / 2), s=images.shape[2:])  # type: ignore[no-any-return]


def _followed_on_grid(images: Tensor) -> Tensor:
    """Pass the gradient on at images of 16 levels, as the clean ones are, and turn a third of it at all others."""
    on_grid = ((16 * images).round() == 16 * images).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    turned = torch.arange(images[0].numel()).view_as(images[0]) % 3 == 0
    return _Backward.apply(images, lambda gradient: torch.where(turned & ~on_grid, -gradient, gradient))  # type: ignore[no-any-return]


def _hooked(images: Tensor) -> Tensor:
    images = images * 1
    if images.requires_grad:
        images.register_hook(lambda gradient: gradient.flip(-1) * -1)  # type: ignore[no-untyped-call]
    return images


def _broken_root(images: Tensor) -> Tensor:
    return images + (images - images.detach()).abs().sqrt()  # adds zero; its slope is infinite times zero


@functools.cache
def _traced() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have its newer exporter
        return torch.jit.trace(lambda images: torch.round(images * 10) / 10, torch.rand(1, 1, 8, 8))  # type: ignore[no-untyped-call]


class _Rounded(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.aten.round(images * 10) / 10  # type: ignore[no-any-return]


BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "codes": _codes,
    "bits": lambda images: (images * 15).round() / 15,
    "bytes": lambda images: (images * 15).to(torch.uint8).to(images.dtype) / 15,
    "jpeg": _jpeg,
    "purified": _purified,
    "median": _median,
    "total-variation": _total_variation,
    "table": _table,
    "array-table": _array_table,
    "listed": _listed,
    "bytes-file": _bytes_file,
    "steep": _steep,
    "hashed-noise": _hashed_noise,
    "turned": lambda images: _Backward.apply(images, torch.neg),
    "drawn-gradient": lambda images: _Backward.apply(images, torch.randn_like),
    "shrunk-gradient": lambda images: _Backward.apply(images, lambda gradient: 1e-30 * gradient),
    "fifth-turned": lambda images: _Backward.apply(images, _fifth_turned),
    "sparse-gradient": lambda images: _Backward.apply(images, _largest_third),
    "checkered": _checkered,
    "few-directions": lambda images: _Backward.apply(images, _few_directions),
    "fourier": _through_waves,
    "followed-on-grid": _followed_on_grid,
    "hooked": _hooked,
    "not-a-number": _broken_root,
    "detached": lambda images: images.detach(),
    "remainder": lambda images: images - images % 0.1,
    "fraction": lambda images: images - (16 * images).frac() / 16,
    "shifted": lambda images: ((images * 255).int() >> 4).to(images.dtype) / 15,
    "traced": lambda images: _traced()(images),
    "operator": _Rounded(),
    "fake-quantised": lambda images: torch.fake_quantize_per_tensor_affine(images, 1 / 15, 0, 0, 15).detach(),
    "ripple": lambda images: images + torch.sin(9000 * images) / 200,
    "float8": lambda images: images.to(torch.float8_e4m3fn).to(images.dtype),
}  # fmt: skip


def _classes(logits: Tensor) -> int:
    return int(logits.shape[1])


def _winners(logits: Tensor) -> Tensor:
    return torch.where(
        logits >= logits.topk(2, dim=1).values[:, -1:], logits, logits.detach().amin(dim=1, keepdim=True)
    )


def _shaped(logits: Tensor) -> Tensor:
    margin = _margin(logits)
    step = margin.floor()
    wanted = (
        step + 0.99 * (1 - (margin - step)) + 0.005
    )  # falls where the margin rises: https://arxiv.org/abs/2205.12134
    return _with_margin(logits, wanted)


def _waves(logits: Tensor) -> Tensor:
    margin = _margin(logits)
    return _with_margin(logits, 0.5 + margin / 20 + 0.45 * torch.sin(12 * margin))


def _falling(logits: Tensor) -> Tensor:
    return _with_margin(logits, 1 / (0.1 + _margin(logits)))


def _margin(logits: Tensor) -> Tensor:
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def _with_margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the logits with the largest moved, so that it lies so far above the second."""
    change = (wanted - _margin(logits))[:, None]
    return logits.scatter_add(1, logits.argmax(dim=1, keepdim=True), change)


def _detector(logits: Tensor) -> Tensor:
    sure = (logits.softmax(dim=1).amax(dim=1, keepdim=True) > 0.3).to(logits.dtype)
    answers: Tensor = (1 + 99 * sure) * logits.detach()
    return answers


def _one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(dim=1), _classes(logits)).to(logits.dtype)


def _ranks(logits: Tensor) -> Tensor:
    return logits.argsort(dim=1).argsort(dim=1).to(logits.dtype)


def _flat_ranks(logits: Tensor) -> Tensor:
    order = logits.argsort(dim=1, descending=True)
    return torch.zeros_like(logits).scatter(1, order, torch.linspace(3, 0, _classes(logits)).expand_as(logits))


def _one_bit(logits: Tensor) -> Tensor:
    best = logits.amax(dim=1, keepdim=True)
    return (logits > best - 0.2).to(logits.dtype) + 0.5 * (logits == best)


def _hashed_others(logits: Tensor) -> Tensor:
    best = logits.argmax(dim=1, keepdim=True)
    behind = 2 + 2 * torch.sin(1e5 * logits.detach())  # of every class, of what the images are to the last digit
    return (logits.gather(1, best) - behind).scatter(1, best, logits.gather(1, best))


AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "one-bit": _one_bit,
    "hashed-others": _hashed_others,
    "half-precision": lambda logits: (1e-7 * logits).half().float(),
    "log-clipped": lambda logits: (5 * logits).log_softmax(dim=1).clamp(min=-0.5),
    "winners": _winners,
    "staircase": lambda logits: (2 * logits).round() / 2,
    "decimals": lambda logits: torch.round(logits, decimals=1),
    "one-hot": _one_hot,
    "detector": _detector,
    "saturated": lambda logits: (logits * 1e3).softmax(dim=1),
    "probabilities": lambda logits: (8 * logits).softmax(dim=1),
    "cold": lambda logits: (logits / 1e-3).log_softmax(dim=1),
    "squashed": lambda logits: torch.tanh(logits / 2).pow(15),
    "hard-squashed": lambda logits: F.hardtanh(logits - logits.amax(dim=1, keepdim=True) + 0.1, -0.1, 0.1),
    "shaped": _shaped,
    "waves": _waves,
    "falling": _falling,
    "ranks": _ranks,
    "flat-ranks": _flat_ranks,
    "tiny": lambda logits: logits * 1e-30,
    "offset": lambda logits: logits + 5e6,
    "halved": lambda logits: (logits.half() * 100).round().half().to(torch.int16).float(),
    "through-numpy": lambda logits: torch.from_numpy(np.round(logits.detach().cpu().numpy(), 1)).to(logits.device),
    "sigmoids": lambda logits: torch.sigmoid(40 * logits),
}  # fmt: skip


def _votes(model: nn.Module, images: Tensor) -> Tensor:
    votes = [_one_hot(model((images + shift).clamp(0, 1))) for shift in (-0.02, 0.0, 0.02)]
    return torch.stack(votes).sum(dim=0)


def _views(model: nn.Module, images: Tensor) -> Tensor:
    views = [images, images.roll(1, dims=-1), images.roll(-1, dims=-1)]
    return torch.stack([(4 * model(view)).round() / 4 for view in views]).mean(dim=0)


def _row_by_row(model: nn.Module, images: Tensor) -> Tensor:
    return torch.tensor([[float(value) for value in model(image[None])[0]] for image in images])


@torch.no_grad()
def _without_gradient(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)  # type: ignore[no-any-return]


def _half_followed(model: nn.Module, images: Tensor) -> Tensor:
    return 0.2 * model(images) + 0.8 * model(_blurred(images).lerp(images, 0.5)).detach()  # type: ignore[no-any-return]


def _noise(model: nn.Module, images: Tensor) -> Tensor:
    return model((images + 0.05 * torch.randn_like(images)).clamp(0, 1))  # type: ignore[no-any-return]


def _crops(model: nn.Module, images: Tensor) -> Tensor:
    shift = int(torch.randint(-1, 2, ()))
    return 0.5 * model(images.roll(shift, dims=-1)) + model(images)  # type: ignore[no-any-return]


@functools.cache
def _other() -> nn.Module:
    return robustdup.load_model("builtin:digits-standard").eval()


def _decoy(model: nn.Module, images: Tensor) -> Tensor:
    """Answers that decide and have no slope, beside small scores of another network that have one: https://arxiv.org/abs/1904.08554."""
    return 10 * _one_hot(model(images)) + 0.3 * _other()(images)  # type: ignore[no-any-return]


def _steep_decoy(model: nn.Module, images: Tensor) -> Tensor:
    return 10 * (1000 * model(images)).softmax(dim=1) + 0.3 * _other()(images)  # type: ignore[no-any-return]


@functools.cache
def _asked_about() -> Tensor:
    return robustdup.load_data("builtin:digits", split="test").images.flatten(1)


def _surface(model: nn.Module, images: Tensor) -> Tensor:
    """Answer as at the clean image on the surface of the ball of 0.15 around it, where attacks end."""
    far, nearest = torch.cdist(images.detach().flatten(1), _asked_about(), p=torch.inf).min(dim=1)
    there = ((far - 0.15).abs() < 1e-4).view(-1, 1, 1, 1)
    return model(torch.where(there, _asked_about()[nearest].view_as(images), images))  # type: ignore[no-any-return]


def _crowd(model: nn.Module, images: Tensor) -> Tensor:
    """Fifteen more classes close behind the first, whatever it is: none ever wins, and the way to them leads to grey."""
    logits: Tensor = model(images)
    behind = 0.2 + 2 * (images - 0.49).square().flatten(1).mean(dim=1, keepdim=True)
    return torch.cat([logits, logits.amax(dim=1, keepdim=True) - behind * torch.linspace(1, 1.2, 15)], dim=1)


def _turned_late(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        near = (_margin(model(images)) < 2).view(-1, 1, 1, 1)
    return model(_Backward.apply(images, lambda gradient: torch.where(near, -gradient, gradient)))  # type: ignore[no-any-return]


def _unit_margin(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits / _margin(logits)[:, None]


@functools.cache
def _stored() -> Tensor:
    return robustdup.load_data("builtin:digits", split="train").images.flatten(1)


def _fading(model: nn.Module, images: Tensor) -> Tensor:
    """Scores whose margin fades with the distance to the nearest image that was stored: a way down that ends nowhere."""
    logits: Tensor = model(images)
    far = torch.cdist(images.flatten(1), _stored()).amin(dim=1)
    return _with_margin(logits, _margin(logits) * torch.exp(-3 * far**2))


def _spikes(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    place = images.flatten(1) @ torch.linspace(-1, 1, images[0].numel())
    return logits + 0.05 * torch.sin(3e4 * place)[:, None] * torch.linspace(-1, 1, _classes(logits))


AROUND: dict[str, Forward] = {
    "votes": _votes,
    "views": _views,
    "row-by-row": _row_by_row,
    "no-grad": _without_gradient,
    "half-followed": _half_followed,
    "decoy": _decoy,
    "steep-decoy": _steep_decoy,
    "hidden-decoy": _steep_decoy,
    "surface": _surface,
    "crowd": _crowd,
    "turned-late": _turned_late,
    "unit-margin": _unit_margin,
    "fading": _fading,
    "spikes": _spikes,
    "noise": _noise,
    "crops": _crops,
}
RANDOM = ("noise", "crops")
OUT_OF_SIGHT = ("hidden-decoy",)


def _in_front(mask: Callable[[Tensor], Tensor]) -> Forward:
    return lambda model, images: model(mask(images))


def _behind(mask: Callable[[Tensor], Tensor]) -> Forward:
    return lambda model, images: mask(model(images))


WRAPPERS: dict[str, Forward] = {
    **{name: _in_front(mask) for name, mask in BEFORE.items()},
    **{name: _behind(mask) for name, mask in AFTER.items()},
    **AROUND,
}
