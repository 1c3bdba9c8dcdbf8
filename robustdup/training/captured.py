"""The steps of the inner attack as one CUDA graph: recorded once, started by one call for each batch.

A small network waits for the launches of its kernels, some two thousand a step of training, many times longer than it
computes. A graph reads and writes fixed places in memory, so that images and labels are copied into it, and so are the
numbers that were baked in: what a graph serves is told by its key. Nothing hangs on it: where recording fails, where its
images are not those of the steps made one by one, and where places in memory change, the steps are made one by one.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Steps = Callable[[Tensor, Tensor, Tensor], None]  # moves images (n, C, H, W) in place, given clean ones and labels (n,)

WARM_UP = 3  # times that the steps are made before they are recorded: kernels are chosen, compiled code is made
MOST = 4  # graphs, each of which keeps memory
KINDS = 16  # keys that may come before it is clear that they never come again
CHECKED = 2  # first uses of a graph that are compared with steps made one by one: of the second, weights have moved
TOLERANCE = 0.1  # of the length of all changes: by which kernels that add in another order may differ


@dataclass
class _Graph:
    """What was recorded: the places that it works on, and what starts it."""

    places: tuple[Tensor, Tensor, Tensor]
    replay: Callable[[], None]
    uses: int = 0

    def run(self, moving: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Do with a batch what was recorded."""
        for place, values in zip(self.places, (moving, clean, labels), strict=True):
            place.copy_(values)
        self.replay()
        moving.copy_(self.places[0])
        self.uses += 1


class CapturedSteps:
    """Makes steps as graphs where it can; `notes` says where it cannot. Keys that come once are not recorded."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._off = False

    def __call__(
        self, steps: Steps, moving: Tensor, clean: Tensor, labels: Tensor, *, key: Hashable, weights: Iterable[Tensor]
    ) -> None:
        """Move `moving` (n, C, H, W) in place by `steps`.

        Args:
            steps: the steps, with nothing random in them.
            moving: images to start from, and where they arrive.
            clean: the clean images.
            labels: classes (n,).
            key: every number that the steps depend on.
            weights: every tensor that they depend on besides, which may change in place.
        """
        place = (key, moving.shape, moving.stride(), *(tensor.data_ptr() for tensor in weights))
        graph = self._graphs.get(place)
        if graph is None and not self._off and place in self._seen and len(self._graphs) < MOST:
            graph = self._record(place, steps, (moving, clean, labels))
        if graph is None:
            self._note_kind(place)
            steps(moving, clean, labels)
        elif graph.uses < CHECKED:
            self._run_checked(graph, steps, moving, clean, labels)
        else:
            graph.run(moving, clean, labels)

    def _record(self, place: Hashable, steps: Steps, given: tuple[Tensor, Tensor, Tensor]) -> _Graph | None:
        """Record the steps in places of their own; None, with a note, where that fails."""
        places = given[0].clone(), given[1].clone(), given[2].clone()
        try:
            graph = _Graph(places, record(lambda: steps(*places)))
        except Exception as error:  # whatever it is: the steps are made one by one then  # noqa: BLE001
            self._stop(
                f"could not be recorded ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__})"
            )
            return None
        self._graphs[place] = graph
        return graph

    def _run_checked(self, graph: _Graph, steps: Steps, moving: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Make the steps both ways and take those of the graph if they agree; waits for the device."""
        expected = moving.clone()
        steps(expected, clean, labels)
        graph.run(moving, clean, labels)
        gap, length = (torch.linalg.vector_norm(values.float()) for values in (moving - expected, expected - clean))
        if not bool(gap <= TOLERANCE * length):
            self._stop("gave other images than the steps made one by one")
            moving.copy_(expected)

    def _note_kind(self, place: Hashable) -> None:
        self._seen.add(place)
        if len(self._seen) > KINDS and not self._off:
            self._stop("would be another for each batch")

    def _stop(self, why: str) -> None:
        self._off = True
        self._graphs.clear()
        self.notes.append(f"The inner attack ran without a CUDA graph, which {why}.")


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Record what `work` does on the current CUDA device, and return what does it again, on the same places in memory."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
