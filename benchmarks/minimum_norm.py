"""Median distance that each minimum-norm attack finds, beside the passes it takes.

    python -m benchmarks.minimum_norm --model SPEC --data SPEC [--n 100] [--norm L2] [--attacks 'fmn(steps=100),…'] [--beside]
        [--right 100] [--out FILE]

Samples that the model gets wrong are left out; --right takes the first so many of the others. --beside adds adv-lib's and
foolbox's attacks in the norm, with about 200 passes a sample where they can be told how many. Each result is judged by the
referee without any eps: what is not misclassified counts as infinitely far. Passes are rows through the model, forward and
backward, of all samples together, over the number of samples. With --out each line is appended to FILE as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Passes
from robustdup.config import DataOptions
from robustdup.config.base import parse_attacks
from robustdup.data.sources import load_images
from robustdup.evaluation.referee import judge, judge_images
from robustdup.models.load import load_model
from robustdup.plugins import Registry, load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

EPS = {"Linf": "8/255", "L2": "0.5", "L1": "12", "L0": "20", "L0-pixels": "10"}
MICRO_BATCH = 50
CONTENDERS = {
    "L2": "fab-t,superdeepfool,superdeepfool(steps=40),ddn,ddn(steps=300),fmn,fmn(steps=300)",
    "Linf": "fab-t,superdeepfool,superdeepfool(steps=40),fmn,fmn(steps=300),fmn(steps=600)",
    "L1": "fab-t,superdeepfool,superdeepfool(steps=40),fmn,fmn(steps=300)",
    "L0": "sigma-zero,sigma-zero(steps=100),fmn,fmn(steps=300)",
    "L0-pixels": "sigma-zero,sigma-zero(steps=100),fmn,fmn(steps=300)",
}

BESIDE = {
    "L2": "advlib:ddn(steps=100,levels=0),advlib:fmn(steps=100),advlib:alma(num_steps=100,init_lr_distance=0.1),"
    "advlib:pdgd(num_steps=100),advlib:sdf(steps=5,df_steps=10),advlib:df(steps=20),advlib:tr(iter=20),foolbox:DDNAttack,"
    "foolbox:L2FMNAttack,foolbox:L2DeepFoolAttack(steps=20),advlib:fab(n_iter=18)",
    "Linf": "advlib:fmn(steps=100),advlib:pdpgd(num_steps=100),advlib:df(steps=20),advlib:tr(iter=20),foolbox:LInfFMNAttack,"
    "foolbox:LinfDeepFoolAttack(steps=20),advlib:fab(n_iter=18)",
    "L1": "advlib:fmn(steps=100),advlib:alma(num_steps=100,init_lr_distance=0.5),advlib:pdpgd(num_steps=100),"
    "foolbox:L1FMNAttack,advlib:fab(n_iter=18)",
    "L0": "advlib:sigma_zero(num_steps=100),advlib:fmn(steps=100),advlib:pdpgd(num_steps=100),advlib:vfga(max_iter=100),"
    "foolbox:L0FMNAttack",
    "L0-pixels": "",
}


def measure(
    model: nn.Module, images: Tensor, labels: Tensor, norm: str, name: str, options: dict[str, Any], registry: Registry
) -> dict[str, Any]:
    """Run one attack to the end on images (N, C, H, W) that the model gets right; return its distances and passes."""
    spec, threat = registry.get_attack(name), ThreatModel(norm, EPS[norm])
    if "stop_within_eps" in spec.parameters:
        options = {**options, "stop_within_eps": False}
    passes = Passes(model, MICRO_BATCH if spec.batching == "pool" else None)
    rng, started = SampleRng(0, torch.arange(len(images))).fold(name), time.process_time()
    assert spec.function is not None
    with isolated(model, seed=0):
        adv_images = spec.function(passes, images, labels, threat, rng=rng, **spec.check_options(options))
    seconds = time.process_time() - started
    verdict = judge(model, images, adv_images, labels, threat, bounded=False)
    distance = torch.where(verdict.raw_is_adv, verdict.raw_distance, torch.inf)
    return {
        "norm": norm, "attack": name, "options": options, "n": len(images), "found": int(verdict.raw_is_adv.sum()),
        "median": float(distance.quantile(0.5, interpolation="lower")),
        "mean": float(distance[verdict.raw_is_adv].mean()) if bool(verdict.raw_is_adv.any()) else None,
        "passes": (passes.count.forward + passes.count.backward) / len(images), "seconds": seconds,
        "distances": [round(value, 6) for value in distance.tolist()],
    }  # fmt: skip


def row(line: dict[str, Any]) -> str:
    """Return a line as a row of a Markdown table."""
    options = ", ".join(f"{name}={value}" for name, value in line["options"].items() if name != "stop_within_eps")
    return (
        f"| {line['norm']} | {line['attack']}{f'({options})' if options else ''} | {line['passes']:,.0f} | "
        f"{line['median']:.4f} | {line['mean'] if line['mean'] is None else format(line['mean'], '.4f')} | "
        f"{line['found']} of {line['n']} | {line['seconds']:.0f} |"
    )


def main() -> None:
    """Measure as the command line says, and print a row of a Markdown table for each attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="builtin:digits-robust")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--norm", default="L2", choices=list(EPS))
    parser.add_argument("--attacks", help="attacks with options, as --attacks of robustdup eval")
    parser.add_argument("--beside", action="store_true", help="adv-lib's and foolbox's attacks too")
    parser.add_argument("--right", type=int, help="take the first so many samples that the model gets right")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    registry = load_plugins()
    model = load_model(given.model, registry=registry).eval().requires_grad_(False)
    data = load_images(given.data, DataOptions(split="test"), n=given.n, registry=registry)
    answers = judge_images(Passes(model, MICRO_BATCH), data.images, data.labels)
    right = (~answers.is_adv).nonzero()[: given.right, 0]
    print("| norm | attack | passes a sample | median | mean | found | CPU seconds |")
    print("|---|---|---:|---:|---:|---:|---:|")
    attacks = ",".join(
        filter(None, [given.attacks or CONTENDERS[given.norm], BESIDE[given.norm] if given.beside else ""])
    )
    for name, options in parse_attacks(attacks):
        line = measure(model, data.images[right], data.labels[right], given.norm, name, options, registry)
        print(row(line), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps({"model": given.model, **line}) + "\n")


if __name__ == "__main__":
    main()
