"""Whatever the weights, the slopes and the cases that are claimed: what the checker proves holds at every image that is tried."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustdup.certification.checker import Tree, proven_margin
from robustdup.certification.graph import read_network
from robustdup.certification.matrices import checker_steps
from robustdup.certification.region import region_of
from robustdup.threat import ThreatModel

HIDDEN = 4
LARGEST = {"Linf": 0.4, "L2": 0.8, "L1": 1.5}


def draw_tree(steps, rng, depth):
    """Return a tree over inputs of rectifiers, drawn at random, with weights of any size."""
    rectifiers = [number for number, step in enumerate(steps) if step.kind == "rectifier"]
    splits, n_weights = [], 0

    def grow(level):
        nonlocal n_weights
        if level < depth and rng.random() < 0.8:
            splits.append((int(rng.choice(rectifiers)), int(rng.integers(HIDDEN))))
            grow(level + 1)
            grow(level + 1)
        else:
            splits.append((-1, -1))
            n_weights += level

    grow(0)
    return Tree(np.array(splits), rng.normal(size=n_weights) * 10.0 ** rng.integers(-2, 3))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), norm=st.sampled_from(["Linf", "L2", "L1"]), share=st.floats(0.01, 1),
    scale=st.floats(0.1, 30), leak=st.sampled_from([0.0, 0.1, 0.9]), depth=st.integers(0, 4),
)  # fmt: skip
def test_no_image_is_below_what_is_proven(seed, norm, share, scale, leak, depth):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, HIDDEN), nn.LeakyReLU(leak), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
    ).requires_grad_(False)  # fmt: skip
    for part in model[1::2]:
        part.weight.mul_(scale)
    image, threat = torch.rand(1, 2, 2, 2), ThreatModel(norm, round(LARGEST[norm] * share, 6))
    label = int(model(image).argmax())
    steps = checker_steps(read_network(model, image))
    slopes = {number: rng.normal(0.5, 1, HIDDEN) for number, step in enumerate(steps) if step.kind == "rectifier"}
    trees = {other: draw_tree(steps, rng, depth) for other in range(3) if other != label}
    proven = proven_margin(
        steps, image.double().flatten().numpy(), label, norm=norm, radius=region_of(image, threat).radius, slopes=slopes,
        trees=trees,
    )  # fmt: skip
    noise = torch.randn(400, 2, 2, 2)
    noise[::2] = noise[::2].sign()
    images = threat.project(image.expand(400, -1, -1, -1), image + threat.sphere_scale(noise))
    logits = model(images)
    margin = logits[:, label] - logits.index_fill(1, torch.tensor([label]), -torch.inf).amax(1)
    assert proven <= float(margin.min())
