"""What an objective keeps of each training entry from epoch to epoch: values of an image's shape that follow crop and flip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustdup.data.augment import Moves
from robustdup.errors import UserError

LARGEST = 8 * 2**30  # bytes that are kept


class Memory:
    """Values of `entries` images of (C, H, W) = `shape`, by name, as float16; zeros before they are written.

    They are kept in the frame of the stored image with `padding` pixels around it: reading cuts out the window that a
    batch saw and mirrors it, writing puts it back. Raises UserError where there is no room for two sets of them.
    """

    def __init__(self, entries: int, shape: tuple[int, int, int], *, padding: int, device: torch.device) -> None:
        channels, height, width = shape
        self._shape = (entries, channels, height + 2 * padding, width + 2 * padding)
        self._device = device
        self._values: dict[str, Tensor] = {}
        needed = 4 * torch.Size(self._shape).numel()
        if needed > LARGEST:
            raise UserError(
                f"The objective keeps two values for each pixel of {entries:,} training images, {needed / 2**30:.0f} GiB; at "
                f"most {LARGEST / 2**30:.0f} are taken. Train on fewer images (n, sample), or take n_fgsm.",
                code="out-of-memory",
            )

    def read(self, name: str, positions: Tensor, moves: Moves) -> Tensor:
        """Return the values (n, C, H, W), float32, of the entries at `positions` (n,) as a batch sees their images."""
        return moves.take(self._of(name)[positions]).float()

    def write(self, name: str, positions: Tensor, moves: Moves, values: Tensor) -> None:
        """Keep values (n, C, H, W) for the entries at `positions` (n,); pixels outside the window stay as they were."""
        every = self._of(name)
        every[positions] = moves.put(every[positions], values.to(every.dtype))

    def _of(self, name: str) -> Tensor:
        if name not in self._values:
            self._values[name] = torch.zeros(self._shape, dtype=torch.float16, device=self._device)
        return self._values[name]

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return dict(self._values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._values = {name: value.to(self._device).clone() for name, value in state.items()}
