"""How tight CROWN's bounds are, and how quick, beside another implementation of CROWN that shares no code with it.

    python -m benchmarks.tightness --n 32

The other one is written out below with whole matrices in NumPy, for networks of dense layers; convolutions become such layers
by asking them about images of one pixel. A line of JSON for each: share of samples proven, mean of the least margins, CPU
seconds; and by how much the margins differ.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import robustdup
from robustdup.certification.checker import proven_margin
from robustdup.certification.crown import margins
from robustdup.certification.graph import read_network
from robustdup.certification.matrices import checker_steps
from robustdup.certification.region import Region, region_of
from robustdup.threat import ThreatModel

Array = np.ndarray[Any, Any]
Layers = list[tuple[Array, Array]]  # weight (outputs, inputs) and bias of each; a ReLU between two


def dense_layers(parts: Sequence[nn.Module], shape: tuple[int, ...]) -> Layers:
    """Return a network as dense layers, in float64, from what stands between its ReLUs."""
    blocks: list[list[nn.Module]] = [[]]
    for part in parts:
        if isinstance(part, nn.ReLU):
            blocks.append([])
        else:
            blocks[-1].append(part)
    layers = []
    for block in blocks:
        affine = copy.deepcopy(nn.Sequential(*block)).double().eval()
        with torch.no_grad():
            bias = affine(torch.zeros(1, *shape, dtype=torch.float64))
            size = int(np.prod(shape))
            columns = affine(torch.eye(size, dtype=torch.float64).view(size, *shape)) - bias
        shape = tuple(bias.shape[1:])
        layers.append((columns.flatten(1).numpy().T.copy(), bias.flatten().numpy()))
    return layers


def dense_crown(layers: Layers, image: Array, label: int, radius: float) -> float:
    """Return the least margin in Linf by CROWN, in float64, of an image (D,)."""
    box = np.maximum(image - radius, 0), np.minimum(image + radius, 1)

    def least(rows: Array, known: Sequence[tuple[Array, Array]]) -> Array:
        """Bound rows times the output of the layer after the known ones, from below."""
        constant = np.zeros(len(rows))
        for depth in range(len(known), -1, -1):
            weight, bias = layers[depth]
            constant, rows = constant + rows @ bias, rows @ weight
            if depth:
                low, high = known[depth - 1]
                crossing = (low < 0) & (high > 0)
                above = np.where(crossing, high / np.where(crossing, high - low, 1), low >= 0)
                below = np.where(crossing, high > -low, low >= 0)
                positive, negative = np.maximum(rows, 0), np.minimum(rows, 0)
                constant = constant + negative @ np.where(crossing, -above * low, 0)
                rows = positive * below + negative * above
        total: Array = constant + np.maximum(rows, 0) @ box[0] + np.minimum(rows, 0) @ box[1]
        return total

    known: list[tuple[Array, Array]] = []
    ends = box
    for weight, bias in layers[:-1]:
        low, high = (np.maximum(weight, 0) @ ends[i] + np.minimum(weight, 0) @ ends[1 - i] + bias for i in (0, 1))
        eye = np.eye(len(bias))  # intervals, and linear bounds where these are tighter
        low, high = np.maximum(low, least(eye, known)), np.minimum(high, -least(-eye, known))
        known.append((low, high))
        ends = np.maximum(low, 0), np.maximum(high, 0)
    classes = len(layers[-1][1])
    return float(least(np.delete(np.eye(classes)[label] - np.eye(classes), label, axis=0), known).min())


def measure(model: Any, images: torch.Tensor, labels: torch.Tensor, eps: str) -> list[dict[str, Any]]:
    """Return a row for the float32 bounds, one for the checker, one for the dense implementation, and how they differ."""
    threat = ThreatModel("Linf", eps)
    region, radius = region_of(images, threat), threat.radius + threat.tolerance
    flat, rows, by_method = images.double().flatten(1).numpy(), [], {}

    def timed(name: str, bounds: Any) -> None:
        started = time.process_time()
        least = np.array(bounds(), dtype=np.float64)
        seconds = time.process_time() - started
        by_method[name] = least
        rows.append({"bounds": name, "eps": eps, "n": len(images), "proven": int((least > 0).sum()),
                     "mean_margin": round(float(least.mean()), 4), "cpu_seconds": round(seconds, 2)})  # fmt: skip

    operations = read_network(model, images[:4])
    steps = checker_steps(operations)
    layers = dense_layers([model.normalise, *model.body, model.head], tuple(images.shape[1:]))
    timed("CROWN, float32", lambda: torch.cat([
        margins(operations, Region(part, "Linf", region.radius), own)[0]
        for part, own in zip(torch.split(images, 16), torch.split(labels, 16), strict=True)
    ]).tolist())  # fmt: skip
    timed("checker, rounding counted", lambda: [
        proven_margin(steps, x, int(y), norm="Linf", radius=radius) for x, y in zip(flat, labels, strict=True)
    ])  # fmt: skip
    timed("dense matrices", lambda: [dense_crown(layers, x, int(y), radius) for x, y in zip(flat, labels, strict=True)])
    ours, checked, other = by_method.values()
    rows.append(
        {"largest_difference": float(np.abs(ours - other).max()), "given_to_rounding": float((other - checked).max())}
    )
    return rows


def main() -> None:
    """Read the command line and print lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=32, help="images")
    parser.add_argument("--model", default="builtin:digits-robust", help="a network of the built-in digits' kind")
    parser.add_argument("--eps", nargs="+", default=["4/255", "8/255", "0.1"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, model = robustdup.load_data("builtin:digits", n=given.n), robustdup.load_model(given.model)
    for eps in given.eps:
        for row in measure(model, data.images, torch.as_tensor(data.labels), eps):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
