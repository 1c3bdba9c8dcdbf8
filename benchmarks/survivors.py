"""What a few surviving samples cost: `python -m benchmarks.survivors --model … --data … --out FILE`.

The four attacks of AutoAttack on samples that survive them, each with fewer steps and queries so that a run takes seconds:
asked one after the other and padded to 8, 16 or 32 rows, as commit f50960a did; in all sizes that give the same bits, with
targets side by side and queries ahead; and pyautoattack in batches of several sizes, of which the quickest counts. They take
turns, in CPU seconds. The first two must leave the same images. With `--mixed` the samples are those that the model
classifies rightly, whether or not they survive. How long the passes of *now* take as nothing but calls of the model, through
its attack copy and through itself, says what is left to be won: no more than all that is not the model.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd import apgd_ce
from robustdup.attacks.apgd_t import apgd_t
from robustdup.attacks.fab_t import fab_t
from robustdup.attacks.losses import misclassified
from robustdup.attacks.passes import Count, Passes
from robustdup.attacks.square import square
from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.evaluation.micro_batch import same_bits, worth_filling
from robustdup.models.attack_copy.prepare import prepare
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

ROWS = 32  # of a micro-batch
CANDIDATES = 256  # samples among which survivors are looked for


def ours(model: Passes, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int) -> Tensor:
    """Return what the attacks of AutoAttack leave of all samples (N, C, H, W), with `steps` steps in place of 100.

    As in an evaluation each attack gets the samples that those before it have not broken.
    """
    rng, adv_images = SampleRng(0, torch.arange(len(images))), images.clone()
    index = torch.arange(len(images))
    attacks = (
        functools.partial(apgd_ce, steps=steps), functools.partial(apgd_t, steps=steps),
        functools.partial(fab_t, steps=steps), functools.partial(square, queries=50 * steps),
    )  # fmt: skip
    for number, attack in enumerate(attacks):
        if len(index):
            given, true = images[index], labels[index]
            adv_images[index] = threat.project(given, attack(model, given, true, threat, rng=rng[index].fold(number)))
            with torch.no_grad():
                index = index[~misclassified(model(adv_images[index]), true)]
    return adv_images


def reference(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int, batch: int) -> Tensor:
    """Run pyautoattack in batches of so many samples, with `steps` steps in place of 100."""
    from pyautoattack import AutoAttack

    whole = AutoAttack(model, norm="Linf", eps=threat.radius, seed=0, device="cpu")
    for part in (whole.apgd, whole.apgd_targeted, whole.fab):
        part.n_iter = steps
    whole.square.n_queries = 50 * steps
    adv_images: Tensor
    adv_images, _ = whole.run_standard_evaluation(images.clone(), labels.clone(), batch_size=batch)
    return adv_images


def survivors(
    model: Passes, images: Tensor, labels: Tensor, threat: ThreatModel, count: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Return `count` samples (N, C, H, W) and labels (N,) that APGD-T leaves; of 0 steps those that are right when clean.

    Raises SystemExit for too few.
    """
    rng = SampleRng(0, torch.arange(len(images)))
    adv_images = apgd_t(model, images, labels, threat, rng=rng, steps=steps, targets=3) if steps else images
    with torch.no_grad():
        left = ~misclassified(model(adv_images), labels)
    rows = left.nonzero()[:count, 0]
    if len(rows) < count:
        raise SystemExit(f"{len(rows)} of {len(images)} samples survive, {count} are asked for: take a smaller --eps.")
    return images[rows], labels[rows]


def alone(model: nn.Module, images: Tensor, count: Count) -> float:
    """Return the CPU seconds of so many passes, as nothing but calls of `model` with all images (n, C, H, W)."""
    leaf, calls = images.clone().requires_grad_(), 5

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def both() -> None:
        torch.autograd.grad(model(leaf).logsumexp(dim=1).sum(), leaf)

    seconds = [median(timed(call)[1] for _ in range(calls)) / len(images) for call in (forward, both)]
    return (count.forward - count.backward) * seconds[0] + count.backward * seconds[1]


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return what a call returns and the CPU seconds that it took."""
    started = time.process_time()
    result = call(*arguments)
    return result, time.process_time() - started


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a line for each number of samples: CPU seconds of each contender in each round, and passes."""
    torch.set_num_threads(1)
    registry, threat = load_plugins(), ThreatModel("Linf", given.eps)
    model = load_model(given.model, registry=registry).eval().requires_grad_(False)
    data = load_images(given.data, DataOptions(split="test"), n=CANDIDATES, registry=registry)
    examples = data.images[:ROWS]
    copy = prepare(
        model, examples, micro_batch=ROWS, fold=True, channels_last=True, compile="off", precision="fp32", randomized=False
    ).model  # fmt: skip
    sizes = same_bits(copy, examples, ROWS)
    fill = worth_filling(copy, examples[0], ROWS, sizes)
    print(f"sizes with the same bits: {sizes}; calls are filled up to {fill} rows", file=sys.stderr)
    lines = []
    for count in map(int, given.counts.split(",")):
        few = Passes(copy, ROWS, sizes, fill=fill)
        steps = 0 if given.mixed else given.steps
        images, labels = survivors(few, data.images, data.labels, threat, count, steps)
        line: dict[str, Any] = {
            "model": given.model, "parameters": sum(p.numel() for p in model.parameters()), "eps": given.eps,
            "steps": given.steps, "samples": count, "mixed": given.mixed, "sizes": sizes, "fill": fill, "before": [], "now": [],
            "reference": {}, "copy_alone": [], "model_alone": [],
        }  # fmt: skip
        task = images, labels, threat, given.steps
        for _ in range(given.rounds):
            before, now = Passes(copy, ROWS, (8, 16)), Passes(copy, ROWS, sizes, fill=fill)
            left = []
            for name, passes in (("before", before), ("now", now)):
                adv_images, seconds = timed(ours, passes, *task)
                line[name].append(seconds)
                left.append(adv_images)
            for batch in sorted({min(batch, count) for batch in map(int, given.batches.split(","))}):
                line["reference"].setdefault(str(batch), []).append(timed(reference, model, *task, batch)[1])
            for name, asked in (("copy_alone", copy), ("model_alone", model)):
                line[name].append(alone(asked, examples, now.count))
            line |= {"passes_before": vars(before.count), "passes_now": vars(now.count)}
            line["same_images"] = torch.equal(*left)
            with torch.no_grad():
                line["survivors"] = count - int(misclassified(few(left[1]), labels).sum())
        lines.append(line)
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a row for each line as Markdown: median seconds, and of the rounds' ratios median, smallest and largest."""
    heads = ("parameters", "samples", "survivors", "before, s", "now, s", "pyautoattack, s", "its batch", "before / now",
             "pyautoattack / now", "calls of the copy alone, s", "of the model alone, s", "padding")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    for line in lines:
        best = min(line["reference"], key=lambda batch: median(line["reference"][batch]))
        ratios = []
        for other in (line["before"], line["reference"][best]):
            each = sorted(a / b for a, b in zip(other, line["now"], strict=True))
            ratios.append(f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})")
        seconds = [f"{median(times):.2f}" for times in (line["before"], line["now"], line["reference"][best])]
        least = [f"{median(line[name]):.2f}" for name in ("copy_alone", "model_alone")]
        padding = f"{line['passes_now']['padding'] / line['passes_now']['forward']:.0%}"
        names = [f"{line['parameters']:,}", str(line["samples"]), str(line["survivors"])]
        rows.append(f"| {' | '.join([*names, *seconds, best, *ratios, *least, padding])} |")
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write a line of JSON for each number of samples, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.survivors", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="as for robustdup eval")
    parser.add_argument("--data", required=True, help="as for robustdup eval; its test split")
    parser.add_argument("--eps", default="8/255", help="in Linf")
    parser.add_argument("--counts", default="1,8,33", help="numbers of samples")
    parser.add_argument("--mixed", action="store_true", help="samples that may break, in place of survivors")
    parser.add_argument("--batches", default="16,32,1000", help="of pyautoattack; at most all samples")
    parser.add_argument("--steps", type=int, default=10, help="of APGD and FAB; Square makes 50 times as many queries")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the three take turns")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one JSON line a number of samples")
    print(table(measure(parser.parse_args(words))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
