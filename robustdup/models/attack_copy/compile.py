"""torch.compile, for attack copies and for the model that is trained: which mode, and what happens where it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Tensor], Any]
OPTIONS = ("auto", "off", "on", "cudagraphs")


def compile_mode(
    asked: str,
    device: torch.device,
    notes: list[str],
    *,
    subject: str = "model",
    randomized: bool = False,
    worth_it: bool = True,
) -> str:
    """Return the mode for the option `compile`: auto is off on a CPU and on with CUDA.

    Args:
        asked: one of `OPTIONS`.
        device: where the model computes.
        notes: gets a sentence where what was asked for cannot be.
        subject: what that sentence calls the model.
        worth_it: whether the run is long enough for `auto` to compile on CUDA, which takes up to a minute.
        randomized: whether the model draws at random: it is not compiled, which could freeze a draw.

    Returns:
        "off", "default" or "cudagraphs" (torch's mode "reduce-overhead").
    """
    cuda = device.type == "cuda"
    if asked == "off" or (asked == "auto" and not (cuda and worth_it)):
        return "off"
    if randomized:
        notes.append("A randomised model is not compiled: compiling could freeze a random draw.")
        return "off"
    if asked == "cudagraphs" and not cuda:
        notes.append(f"CUDA graphs are for CUDA: the {subject} is not compiled.")
        return "off"
    return "cudagraphs" if asked == "cudagraphs" else "default"


def compiled(net: Call, mode: str) -> Call:
    """Return a network, or a part of one, compiled for one shape, in the mode "default" or "cudagraphs".

    Compiled code draws at random as the network itself does: dropout takes the masks that it has uncompiled.

    https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    """
    options: dict[str, Any] = {"fallback_random": True}
    if mode == "cudagraphs":
        options["triton.cudagraphs"] = True
    network: Call = torch.compile(net, dynamic=False, options=options)
    return network


def compiled_call(net: Call, mode: str) -> Call:
    """Return a call of the compiled network that is hidden from nn.Module, which would list the layers twice."""
    network = compiled(net, mode)
    return lambda images: network(images)


def compiler(mode: str, rows: Callable[[], int], notes: list[str]) -> Callable[[nn.Module], nn.Module] | None:
    """Return what compiles the attack copy of training for calls of `rows()` images; None for the mode "off".

    What it returns goes on as the network itself where compiling fails, and `notes` says why.
    """
    return None if mode == "off" else lambda net: CompiledCopy(net, mode, rows(), notes)


class CompiledCopy(nn.Module):
    """A frozen network with compiled code for `rows` images; other numbers, and all where compiling fails, go uncompiled.

    The first call with a graph also makes the backward pass once: its code is made, and may fail, only there.
    """

    def __init__(self, net: nn.Module, mode: str, rows: int, notes: list[str]) -> None:
        super().__init__()
        self.net, self.mode, self.rows, self.notes = net, mode, rows, notes
        self._fast: Call | None = compiled_call(net, mode)
        self._tried: set[bool] = set()  # with and without a graph

    def forward(self, images: Tensor) -> Any:
        """Return what the network returns for `images`."""
        if self._fast is None or images.shape[0] != self.rows:
            return self.net(images)
        graph = torch.is_grad_enabled() and images.requires_grad
        if graph not in self._tried:
            try:
                self._try(self._fast, images.detach().requires_grad_(graph))
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._fast = None
                self.notes.append(f"The inner attack ran without torch.compile, which failed: {_first_line(error)}.")
                return self.net(images)
            self._tried.add(graph)
        logits = self._fast(images)
        return logits.clone() if self.mode == "cudagraphs" else logits

    def _try(self, fast: Call, images: Tensor) -> None:
        logits = fast(images)
        if images.requires_grad:
            torch.autograd.grad(logits.float().sum(), images)


def _first_line(error: Exception) -> str:
    return str((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


class TrainedModel(nn.Module):
    """The model that is trained, as an objective sees it: images (n, C, H, W) -> logits (n, K); the rest is the model's own.

    Counts rows forward, and rows backward for passes that keep a graph. Compiled code serves batches of a multiple of
    `rows` images, so that a last, smaller one is not compiled for; `compiled` is "off", "default" or "cudagraphs". Where
    compiling fails the model goes on as it is, and `notes` says why.
    """

    def __init__(self, net: nn.Module, *, compiled: str = "off", rows: int = 1) -> None:
        super().__init__()
        self.net = net
        self.compiled, self.rows = compiled, rows
        self.forward_rows = self.backward_rows = 0
        self.notes: list[str] = []
        self._fast: dict[str, Call] = {}  # what was compiled, by what of the model it is

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, images: Tensor) -> Any:
        """Return the logits of `images`."""
        return self._asked("logits", self.net, images)

    def features(self, images: Tensor) -> Any:
        """Return the features (n, D) before the model's last layer."""
        return self._asked("features", self.net.features, images)  # type: ignore[arg-type]

    def _asked(self, what: str, call: Call, images: Tensor) -> Any:
        self._count(images)
        if self.compiled == "off" or images.shape[0] % self.rows or images.shape[0] == 0:
            return call(images)
        try:
            if what not in self._fast:
                self._fast[what] = compiled_call(call, self.compiled)
            values = self._fast[what](images)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.compiled = "off"
            self.notes.append(f"The model was trained without torch.compile, which failed: {_first_line(error)}.")
            return call(images)
        # A CUDA graph's own memory is written again by the next call.
        return values.clone() if self.compiled == "cudagraphs" else values

    def _count(self, images: Tensor) -> None:
        self.forward_rows += images.shape[0]
        if torch.is_grad_enabled():
            self.backward_rows += images.shape[0]
