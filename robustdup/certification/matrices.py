"""A network's operations as the checker's steps: each layer is asked, in float64, what it answers to images of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse

from robustdup.certification.checker import Step
from robustdup.certification.graph import Operation

ROWS = 256
LARGEST = 2**17  # numbers in a value; above that the matrices take too long to read


def checker_steps(operations: Sequence[Operation]) -> list[Step]:
    """Return the steps of operations that `read_network` read; their numbers stay.

    The entries are weights, or products of a BatchNorm's numbers in float64: nothing is added up on the way.
    """
    steps = []
    for operation in operations:
        if operation.kind != "affine":
            windows = None if operation.windows is None else operation.windows.numpy()
            steps.append(Step(operation.kind, operation.inputs, slope=operation.slope, windows=windows))
            continue
        shape = operations[operation.inputs[0]].shape
        size, out = int(np.prod(shape)), int(np.prod(operation.shape))
        assert operation.linear is not None
        blocks = []
        with torch.no_grad():
            for start in range(0, size, ROWS):
                rows = torch.zeros(min(ROWS, size - start), size, dtype=torch.float64)
                rows[torch.arange(len(rows)), start + torch.arange(len(rows))] = 1
                blocks.append(sparse.csr_array(operation.linear(rows.view(-1, *shape)).flatten(1).numpy()))
        matrix = sparse.csr_array(sparse.vstack(blocks).T)
        assert matrix.shape == (out, size)
        bias, shift = _spread(operation.bias, operation.shape), _spread(operation.shift, operation.shape)
        steps.append(Step("affine", operation.inputs, matrix, bias, shift))
    return steps


def _spread(value: torch.Tensor | float, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return a bias of any shape that broadcasts, per output, flat in float64."""
    spread: np.ndarray[Any, Any] = torch.as_tensor(value, dtype=torch.float64).expand(shape).flatten().cpu().numpy()
    return spread
