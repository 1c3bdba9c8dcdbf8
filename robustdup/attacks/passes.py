"""The counted, micro-batched model call.

`Passes` packs any number of rows into micro-batches padded to one fixed shape, so that compiled models hold, memory is
bounded, and a row's logits do not depend on who shares its batch. What is left over may go into another shape, where
the model was seen to compute the same bits in it. It counts rows, forward and backward. For an attack that knows nothing of
models that answer at random, it answers with the mean of several draws, which gives any attack by gradient EOT.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustdup.errors import UserError, error_text

LONGEST_CALL = 1.25  # micro-batches that a call may hold, where few rows would be left over


@dataclass
class Count:
    """Rows through a model: `forward` and `backward` asked for, `padding` computed besides (forward rows): to fill calls."""

    forward: int = 0
    backward: int = 0
    padding: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(self.forward - other.forward, self.backward - other.backward, self.padding - other.padding)

    def __add__(self, other: Count) -> Count:
        return Count(self.forward + other.forward, self.backward + other.backward, self.padding + other.padding)

    def copy(self) -> Count:
        """Return the count as it stands."""
        return Count(self.forward, self.backward, self.padding)


class _CountBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, count: Count) -> Tensor:
        ctx.count = count
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.count.backward += grads[0].shape[0]
        return grads[0], None


class _MeanOfDraws(torch.autograd.Function):
    """The mean logits of several draws; their gradient is that of as many fresh draws, of which one is kept in memory at a time.

    Gradients are so averaged over draws: EOT, https://arxiv.org/abs/1707.07397.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, asked: Callable[[Tensor], Tensor], draws: int) -> Tensor:
        ctx.asked, ctx.draws = asked, draws
        ctx.save_for_backward(images.clone())
        return _mean(asked, images, draws)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        total = torch.zeros_like(images)
        for _ in range(ctx.draws):
            with torch.enable_grad():
                draw = images.detach().requires_grad_(True)
                total += torch.autograd.grad(ctx.asked(draw), draw, grad)[0]
        return total / ctx.draws, None, None


def _mean(asked: Callable[[Tensor], Tensor], images: Tensor, draws: int) -> Tensor:
    total = asked(images)
    for _ in range(draws - 1):
        total = total + asked(images)
    return total / draws


class Passes(nn.Module):
    """A model that counts its rows and, with `micro_batch`, runs them in padded micro-batches of that many rows.

    Takes and returns what the model does: images (N, C, H, W) -> logits (N, K), for any N (with micro-batches). The last
    call takes what is left over and is padded to the smallest of `sizes`, other numbers of rows that holds it. With `draws`
    above 1 an answer is the mean of so many of the model's. `fill` is for a model that repeats itself: up to so many rows
    it pays to ask at once what would be asked one after the other (see `robustdup.attacks.ahead`); 0 for any other.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch: int | None = None,
        sizes: Sequence[int] = (),
        *,
        draws: int = 1,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.micro_batch = micro_batch
        self.sizes = tuple(sorted(sizes))
        self.draws = draws
        self.fill = fill
        self.count = Count()
        self.looks: list[tuple[int, int]] = []  # of each look at the samples: rows, and passes of all rows before it
        self.watch: Callable[[], None] | None = None  # called before every pass
        self.lost_gradient = False  # whether the model has answered without a gradient where one was asked for
        self._looking = False
        self.training = model.training  # mirror, without touching the model

    @contextlib.contextmanager
    def one_look(self, rows: int) -> Iterator[None]:
        """Note what happens in the block as one look at `rows` samples.

        The looks of an attack that drops misclassified samples say how many were left after how many passes.
        """
        self.looks.append((rows, self.count.forward + self.count.backward))
        before, self._looking = self._looking, True
        try:
            yield
        finally:
            self._looking = before

    def calls(self, rows: int) -> Iterator[slice]:
        """Walk `rows` rows as they are computed: whole micro-batches, the last of which may take in a few rows more."""
        size = self.micro_batch or max(rows, 1)
        if rows <= size:  # most calls, once few samples are left
            yield slice(0, rows)
            return
        largest = max((other for other in self.sizes if other <= LONGEST_CALL * size), default=size)
        start = 0
        while rows - start > max(largest, size):
            yield slice(start, start + size)
            start += size
        yield slice(start, rows)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`; gradients flow as through the model itself."""
        if self.watch is not None:
            self.watch()
        if not self._looking:
            self.looks.append((images.shape[0], self.count.forward + self.count.backward))
        if self.draws == 1:
            return self._asked(images)
        if images.requires_grad and torch.is_grad_enabled():
            return _MeanOfDraws.apply(images, self._asked, self.draws)  # type: ignore[no-any-return, no-untyped-call]
        return _mean(self._asked, images, self.draws)

    def _asked(self, images: Tensor) -> Tensor:
        self.count.forward += images.shape[0]
        if self.micro_batch is None or images.shape[0] == 0:
            logits = self._checked(self._answer(_own(images)), images.shape[0])
        else:
            logits = torch.cat([self._padded(images[rows]) for rows in self.calls(images.shape[0])])
        if images.requires_grad and not logits.requires_grad and torch.is_grad_enabled():
            self.lost_gradient = True  # not set at every call: a module takes long to set anything
        return _CountBackward.apply(logits, self.count) if logits.requires_grad else logits  # type: ignore[no-any-return, no-untyped-call]

    def _padded(self, part: Tensor) -> Tensor:
        rows = part.shape[0]
        larger = self.sizes[bisect.bisect_left(self.sizes, rows) :][:1]
        missing = min(size for size in (*larger, self.micro_batch or rows) if size >= rows) - rows
        if missing:
            self.count.padding += missing
            part = torch.cat([part, part[-1:].detach().expand(missing, *part.shape[1:])])
        return self._checked(self._answer(_own(part)), part.shape[0])[:rows]

    def _answer(self, images: Tensor) -> Any:
        try:
            return self.model(images)
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt):
                raise
            raise UserError(f"The model wanted to end the program ({error_text(error)}).", code="no-logits") from error

    def _checked(self, logits: Any, rows: int) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
            got = (
                f"a tensor of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else f"a {type(logits).__name__}"
            )
            raise UserError(
                f"The model returned {got} for {rows} images; a classifier returns logits of shape ({rows}, classes). "
                "Wrap it so that its forward returns the logits tensor alone.",
                code="no-logits",
            )
        if not logits.dtype.is_floating_point:
            kind = str(logits.dtype).removeprefix("torch.")
            raise UserError(
                f"The model returned logits of {kind}; a classifier returns real floating-point numbers, such as float32.",
                code="no-logits",
            )
        return logits


def _own(images: Tensor) -> Tensor:
    """A contiguous copy for the model: one that works in place must not change the caller's images, nor a leaf."""
    return images.clone(memory_format=torch.contiguous_format)


def in_micro_batches(model: nn.Module, rows: int) -> Iterator[slice]:
    """Walk `rows` rows in slices of the model's micro-batch (all at once where it has none), as one look at them."""
    if isinstance(model, Passes):
        with model.one_look(rows):
            yield from model.calls(rows)
    else:
        yield slice(0, rows)


def input_gradient(
    model: nn.Module, images: Tensor, loss: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient of the loss by the images, loss (N,), logits (N, K)) with one forward and backward pass a row.

    `loss(logits, rows)` returns one value a row; `rows` is the slice of `images` that the logits belong to. A model
    that is a `Passes` with micro-batches is walked one micro-batch at a time, so that memory stays bounded for any N.
    """
    grads, values, outputs = [], [], []
    for rows in in_micro_batches(model, images.shape[0]):
        with torch.enable_grad():
            part = images[rows].detach().requires_grad_(True)
            logits = model(part)
            value = loss(logits, rows)
            (grad,) = torch.autograd.grad(value.sum(), part)
        grads.append(grad)
        values.append(value.detach())
        outputs.append(logits.detach())
    return torch.cat(grads), torch.cat(values), torch.cat(outputs)
