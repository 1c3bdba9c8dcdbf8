"""A network's operations as the checker's steps: each layer is asked, in float64, what it answers to images of one pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from robustdup.certify.checker import Step
from robustdup.certify.graph import Operation

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
        assert operation.forward is not None
        with torch.no_grad():
            zero = operation.forward(torch.zeros(1, *shape, dtype=torch.float64))
            shift = torch.zeros_like(zero[0]) if operation.shift is None else operation.shift.double().expand_as(zero[0])
            blocks = []
            for start in range(0, size, ROWS):
                rows = torch.zeros(min(ROWS, size - start), size, dtype=torch.float64)
                rows[torch.arange(len(rows)), start + torch.arange(len(rows))] = 1
                assert operation.forward is not None
                # Without its bias, so that a weight is not lost beside a large one.
                blocks.append(sparse.csr_array(_linear(operation, rows.view(-1, *shape)).flatten(1).numpy()))
        matrix = sparse.csr_array(sparse.vstack(blocks).T)
        assert matrix.shape == (out, size)
        steps.append(
            Step("affine", operation.inputs, matrix, zero.flatten().numpy(), shift.flatten().numpy())
        )
    return steps


def _linear(operation: Operation, images: torch.Tensor) -> torch.Tensor:
    """Return Wx of an affine operation by its derivative, which has no bias in it."""
    assert operation.forward is not None
    _, moved = torch.func.jvp(operation.forward, (torch.zeros_like(images),), (images,))
    return moved
