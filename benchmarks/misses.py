"""What does `fast` miss? `python -m benchmarks.misses model=… data=… n=… --out FILE`.

For each seed, `fast` beside the truth: what AutoAttack, a long APGD-T or any of the runs of `fast` broke. Each run adds its
line to FILE, and lines that are there are not run again. Without settings it only sums up what FILE holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import beta

from benchmarks.parity import append, broken, done, read, right
from robustdup.config import EvalConfig, build
from robustdup.errors import RobustdupError
from robustdup.jobs import run_evaluation

TRUTH = "autoattack,apgd-t(steps=200)"
KEY = ("model", "norm", "eps", "n")


def one_run(settings: Sequence[str], attacks: str, seed: int) -> dict[str, Any]:
    """Evaluate once and return a line: which rows of the split stood and fell, and the passes of AutoAttack or `fast`.

    The long APGD-T of the truth is not counted in its passes.
    """
    values = {"attacks": attacks, "seed": seed, "diagnostics": False, "save_images": False, "certify": False}
    config = build(EvalConfig, overrides=settings, values=values)
    result = run_evaluation(config)
    record = result.record
    counted = record.attacks[:-1] if attacks == TRUTH else record.attacks
    looked = record.escalation.forward_passes + record.escalation.backward_passes if record.escalation else 0
    return {
        "attacks": attacks, "model": record.config["model"], "norm": record.threat.norm, "eps": record.threat.eps_text,
        "n": record.n, "asked_n": config.n, "seed": seed, "right": sorted(right(result)), "broken": broken(result),
        "passes": looked + sum(attack.forward_passes + attack.backward_passes for attack in counted),
        "seconds": record.seconds, "escalated": bool(record.escalation and record.escalation.escalated),
    }  # fmt: skip


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sum up the lines of one model: what `fast` misses, in points of all points; None where either side is not there.

    `mean` is over seeds; `upper` is the upper 95% Clopper-Pearson limit for the seed that misses most: seeds share their
    points, so that pooling them would promise too much. `ratio` is AutoAttack's passes over those of `fast`.
    """
    truths = [line for line in lines if line["attacks"] == TRUTH]
    runs = [line for line in lines if line["attacks"] == "fast"]
    if not truths or not runs:
        return None
    union = set().union(*(line["broken"] for line in lines))
    missed = [len(union - set(line["broken"])) for line in runs]
    n, most = runs[0]["n"], max(missed)
    passes = sum(line["passes"] for line in runs) / len(runs)
    return {
        "n": n, "seeds": len(runs), "robust": (len(runs[0]["right"]) - len(union)) / n, "missed": missed,
        "mean": sum(missed) / len(missed) / n, "upper": float(beta.ppf(0.95, most + 1, n - most)) if most < n else 1.0,
        "only_fast": len(union - set().union(*(line["broken"] for line in truths))),
        "ratio": truths[0]["passes"] / passes, "escalated": sum(line["escalated"] for line in runs),
    }  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row a model, and all of them pooled."""
    rows = ["| model, norm | points | seeds | robust | missed by seed | mean (points) | upper 95% limit | fewer passes | "
            "escalated |", "|---|---:|---:|---:|---|---:|---:|---:|---:|"]  # fmt: skip
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in KEY), []).append(line)
    summaries = {key: summed for key, group in groups.items() if (summed := summary(group)) is not None}
    for (model, norm, eps, _), of in summaries.items():
        rows.append(
            f"| {model.split('@')[0]}, {norm} {eps} | {of['n']} | {of['seeds']} | {of['robust']:.2%} | "
            f"{', '.join(map(str, of['missed']))} | {100 * of['mean']:.2f} | {100 * of['upper']:.2f} | "
            f"{of['ratio']:.1f}x | {of['escalated']} of {of['seeds']} |"
        )
    if len(summaries) > 1 and len({of["seeds"] for of in summaries.values()}) == 1:
        n = sum(of["n"] for of in summaries.values())
        missed = [sum(each) for each in zip(*(of["missed"] for of in summaries.values()), strict=True)]
        upper = float(beta.ppf(0.95, max(missed) + 1, n - max(missed)))
        mean = sum(missed) / len(missed) / n
        rows.append(
            f"| all | {n} | {len(missed)} | | {', '.join(map(str, missed))} | {100 * mean:.2f} | {100 * upper:.2f} | | |"
        )
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table of all that FILE holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.misses", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("settings", nargs="*", help="KEY=VALUE settings of robustdup eval: model=… data=… n=… eps=…")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one JSON line a run")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds of fast, separated by commas")
    parser.add_argument("--truth-seed", type=int, default=100, help="seed of AutoAttack and the long APGD-T")
    given = parser.parse_intermixed_args(words)
    try:
        config = build(EvalConfig, overrides=given.settings)
        runs = [(TRUTH, given.truth_seed), *(("fast", int(seed)) for seed in given.seeds.split(","))]
        for attacks, seed in runs if given.settings else ():
            key = (attacks, config.model, config.norm, config.eps, config.n, seed)
            if key in {done(line, "attacks") for line in read(given.out)}:
                continue
            line = one_run(given.settings, attacks, seed)
            append(given.out, line)
            print(f"{attacks} seed {seed}: {line['seconds']:.0f} s", file=sys.stderr)
    except RobustdupError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(read(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
