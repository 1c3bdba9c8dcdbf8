"""Small robust and standard networks for 32x32 images, and the recipe that trains them on two CPU cores.

    python -m benchmarks.networks --data path/to/cifar10 --out nets [--names cnn-a,resnet-b]

writes NAME.safetensors and NAME.json (seconds, clean accuracy, accuracy under 20 steps of PGD) for each. As a model spec:
`robustdup/bench/networks.py:cnn_a@nets/cnn-a.safetensors`. Names that end in `-a` are there for tuning; those that end in
`-b` differ in architecture, width, training or seed and are held out, for the tests of what was tuned.

One step of training is N-FGSM (https://arxiv.org/abs/2202.01181), several are PGD (https://arxiv.org/abs/1706.06083);
`trades` follows https://arxiv.org/abs/1901.08573. The inner steps see the network in eval mode, so that running statistics
are of the training pass alone.

Seen on CIFAR-10 stored as JPEG, 500 test images, clean and under 20 steps of PGD at Linf 8/255: cnn-a 56.0% and 35.8%,
resnet-b 59.2% and 29.0%, silu-b 55.2% and 32.0%, cnn-standard 78.0% and 0.2%.
An epoch of 50,000 images takes one core 40 to 170 s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.attacks.losses import fooled
from robustdup.attacks.passes import Passes
from robustdup.attacks.pgd import pgd
from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.errors import UserError, unknown
from robustdup.models.small import Normalise
from robustdup.plugins import Registry, load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
CLASSES = 10

Progress = Callable[[str], None]


class Network(nn.Module):
    """Normalisation, a body that ends in flat features, and a linear head: (N, 3, 32, 32) in [0, 1] -> logits (N, 10)."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.normalise = Normalise(MEAN, STD)
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in [0, 1] -> the inputs (N, D) of the last layer."""
        return self.body(self.normalise(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in [0, 1] -> logits (N, 10)."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut, as in https://arxiv.org/abs/1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(inputs, outputs, stride=stride), nn.ReLU(), *conv_bn(outputs, outputs)
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, size=1, stride=stride))

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return F.relu(self.residual(images) + self.shortcut(images))


def conv_bn(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and its BatchNorm."""
    return [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    ]  # fmt: skip


def cnn(width: int) -> Network:
    """Return a plain network of five convolutions, BatchNorm and ReLU; 7 million multiply-adds at width 24."""
    body = nn.Sequential(
        *conv_bn(3, width, size=5, stride=2), nn.ReLU(),
        *conv_bn(width, 2 * width), nn.ReLU(),
        *conv_bn(2 * width, 4 * width, stride=2), nn.ReLU(),
        *conv_bn(4 * width, 4 * width, stride=2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
    )  # fmt: skip
    return Network(body, 128)


def resnet(width: int) -> Network:
    """Return a ResNet of three basic blocks, at 16, 8 and 4 pixels; 7 million multiply-adds at width 24."""
    body = nn.Sequential(
        *conv_bn(3, width, stride=2), nn.ReLU(),
        BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Network(body, 4 * width)


def silu(width: int) -> Network:
    """Return a smooth network: SiLU, average pooling in place of strides; 6 million multiply-adds at width 16."""
    body = nn.Sequential(
        *conv_bn(3, width), nn.SiLU(), nn.AvgPool2d(2),
        *conv_bn(width, 3 * width), nn.SiLU(), nn.AvgPool2d(2),
        *conv_bn(3 * width, 6 * width), nn.SiLU(), nn.AvgPool2d(2),
        *conv_bn(6 * width, 8 * width), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return Network(body, 32 * width)


def cnn_a() -> Network:
    """Return the untrained network of `cnn-a`."""
    return cnn(24)


def cnn_b() -> Network:
    """Return the untrained network of `cnn-b`: wider than `cnn-a`."""
    return cnn(28)


def cnn_standard() -> Network:
    """Return the untrained network of `cnn-standard`."""
    return cnn(24)


def cnn_l2() -> Network:
    """Return the untrained network of `cnn-l2`."""
    return cnn(24)


def resnet_a() -> Network:
    """Return the untrained network of `resnet-a`."""
    return resnet(24)


def resnet_b() -> Network:
    """Return the untrained network of `resnet-b`: narrower than `resnet-a`."""
    return resnet(20)


def silu_b() -> Network:
    """Return the untrained network of `silu-b`."""
    return silu(16)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. `threat` None is standard training; `trades` is its beta, 0 for cross-entropy."""

    factory: Callable[[], nn.Module]
    seed: int
    threat: ThreatModel | None = None
    steps: int = 1
    trades: float = 0.0
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    smoothing: float = 0.1


LINF, L2 = ThreatModel("Linf", "8/255"), ThreatModel("L2", "0.5")
RECIPES = {
    "cnn-a": Recipe(cnn_a, seed=1, threat=LINF, epochs=5),
    "resnet-b": Recipe(resnet_b, seed=2, threat=LINF, steps=2, trades=4.0, epochs=4),
    "cnn-standard": Recipe(cnn_standard, seed=3, epochs=5),
    "resnet-a": Recipe(resnet_a, seed=4, threat=LINF, epochs=3),
    "silu-b": Recipe(silu_b, seed=5, threat=LINF, steps=2, epochs=2),
    "cnn-b": Recipe(cnn_b, seed=6, threat=LINF, epochs=3),
    "cnn-l2": Recipe(cnn_l2, seed=7, threat=L2, steps=2, epochs=2),
}


def train(recipe: Recipe, pixels: Tensor, labels: Tensor, *, progress: Progress = lambda line: None) -> nn.Module:
    """Return a network trained by `recipe`, in eval mode. Deterministic for its seed with a fixed number of threads.

    `pixels` uint8 (N, 3, 32, 32), `labels` int64 (N,). One cycle of SGD with Nesterov momentum; every image is cropped
    from a padding of 2 pixels and flipped. `progress` takes one line an epoch. The global generator is left alone.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = recipe.factory().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = max(len(pixels) // recipe.batch_size, 1)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.epochs * batches, pct_start=0.25,
        anneal_strategy="linear", cycle_momentum=False,
    )  # fmt: skip
    for epoch in range(recipe.epochs):
        total, started = 0.0, time.perf_counter()
        order = torch.randperm(len(pixels), generator=generator)
        for batch in range(batches):  # the rest of an epoch that fills no batch is left out
            rows = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            images = augment(pixels[rows], generator).to(memory_format=torch.channels_last)
            loss = objective(model, images, labels[rows], recipe, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        seconds = time.perf_counter() - started
        progress(f"epoch {epoch + 1} of {recipe.epochs}: loss {total / batches:.3f}, {seconds:.0f} s")
    return model.eval()


def objective(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return the mean loss of a batch; the model is left in train mode."""
    if recipe.threat is None:
        return F.cross_entropy(model.train()(images), labels, label_smoothing=recipe.smoothing)
    model.eval()
    loss = partial(F.cross_entropy, target=labels, reduction="sum")
    if recipe.trades:
        with torch.no_grad():
            clean = model(images).softmax(dim=1)
        loss = partial(_divergence, clean)
    adv_images = training_examples(model, images, loss, recipe.threat, steps=recipe.steps, generator=generator)
    model.train()
    if not recipe.trades:
        return F.cross_entropy(model(adv_images), labels, label_smoothing=recipe.smoothing)
    clean_logits, adv_logits = model(torch.cat([images, adv_images])).chunk(2)
    drift = _divergence(clean_logits.softmax(dim=1), adv_logits) / len(images)
    return F.cross_entropy(clean_logits, labels, label_smoothing=recipe.smoothing) + recipe.trades * drift


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="sum")


def training_examples(
    model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor], threat: ThreatModel, *, steps: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Return images (N, C, H, W) that raise `loss`, a sum over rows of the model's logits, in `steps` gradient steps.

    One step is N-FGSM: noise of twice the radius, then a step of the radius, and no projection, against catastrophic
    overfitting. More are PGD from a random point of the ball. L1 raises a UserError.
    """
    if threat.norm == "L1":
        raise UserError("Training in L1 is not offered. Choose Linf or L2.")
    free = steps == 1 and threat.norm == "Linf"
    reach = 2 * threat.radius if free else threat.radius
    delta = torch.empty_like(images).uniform_(-1, 1, generator=generator)
    delta = reach * (delta if threat.norm == "Linf" else _unit_l2(delta))
    step_size = threat.radius if steps == 1 else 1.5 * threat.radius / steps
    for _ in range(steps):
        adv_images = (images + delta).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model(adv_images)), adv_images)
        delta = delta + step_size * (gradient.sign() if threat.norm == "Linf" else _unit_l2(gradient))
        if threat.norm == "L2":
            delta = delta * (threat.radius / _length_l2(delta).clamp(min=threat.radius))
        elif not free:
            delta = delta.clamp(-threat.radius, threat.radius)
    return (images + delta).clamp(0, 1).detach()


def _length_l2(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length.clamp(min=1e-12).view(-1, 1, 1, 1)


def _unit_l2(delta: Tensor) -> Tensor:
    return delta / _length_l2(delta)


def augment(pixels: Tensor, generator: torch.Generator, *, padding: int = 2) -> Tensor:
    """Return random crops, half of them flipped, as float images: uint8 (N, C, H, W) -> float32 in [0, 1]."""
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    sample, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]].float() / 255


def accuracies(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel = LINF, *, steps: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Return clean accuracy, and accuracy under PGD on the cross-entropy from one random start, both in [0, 1]."""
    passes = Passes(model.eval(), 64)
    with torch.no_grad():
        right = ~fooled(passes(images), labels)
    rng = SampleRng(seed, torch.arange(len(labels)))[right]
    adv_images = pgd(passes, images[right], labels[right], threat, rng=rng, steps=steps)
    with torch.no_grad():
        held = ~fooled(passes(adv_images), labels[right])
    return float(right.double().mean()), float(held.double().sum()) / len(labels)


def training_pixels(spec: str, cache: Path, registry: Registry) -> tuple[Tensor, Tensor]:
    """Return the training split of a dataset as uint8 (N, 3, 32, 32) and int64 (N,), decoded once and kept in `cache`.

    Raises UserError for images of another size.
    """
    from safetensors.torch import load_file, save_file

    if not cache.exists():
        data = load_images(spec, DataOptions(split="train"), registry=registry)
        if data.images.shape[1:] != (3, 32, 32):
            raise UserError(
                f"{spec} has images of shape {tuple(data.images.shape[1:])}; these networks take (3, 32, 32)."
            )
        save_file({"pixels": (data.images * 255).round().to(torch.uint8), "labels": data.labels}, cache)
    content = load_file(cache)
    return content["pixels"], content["labels"]


def main(arguments: list[str] | None = None) -> None:
    """Train the named networks, one after the other, and write weights and accuracies into the folder."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 or alike, with splits train and test: folder or Hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, accuracies and decoded images")
    parser.add_argument("--names", default=",".join(RECIPES), help="which networks, in order")
    parser.add_argument("--test-points", type=int, default=500, help="test images to measure accuracies on")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.names.split(",")]
    for name in names:
        if name not in RECIPES:
            raise unknown("network", name, RECIPES)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order
    registry = load_plugins()
    pixels, labels = training_pixels(options.data, options.out / "training-images.safetensors", registry)
    test = load_images(options.data, n=options.test_points, registry=registry)
    for name in names:
        started = time.perf_counter()
        model = train(RECIPES[name], pixels, labels, progress=partial(_say, name))
        seconds = round(time.perf_counter() - started)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, options.out / f"{name}.safetensors")
        threat = RECIPES[name].threat or LINF
        clean, robust = accuracies(model, test.images, test.labels, threat)
        seen = {"name": name, "n": len(test), "clean_accuracy": clean, "pgd20_accuracy": robust, "threat": str(threat)}
        (options.out / f"{name}.json").write_text(json.dumps(seen | {"training_seconds": seconds}) + "\n")
        _say(name, f"{clean:.1%} clean, {robust:.1%} under PGD-20 ({threat}), {seconds} s")


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
