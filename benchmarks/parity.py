"""Does the native AutoAttack say what the reference says? `python -m benchmarks.parity --model … --out FILE`.

Each attack alone on all points that the model gets right, and both whole ensembles, over seeds; each run adds its lines
to FILE, and lines that are there are not run again. Without a model it only sums up what FILE holds: points that one
side broke and the other did not, and the difference with its interval, pooled over models and seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.config import EvalConfig, build
from robustdup.errors import RobustdupError
from robustdup.jobs import Evaluation, run_evaluation
from robustdup.leaderboard.compare import paired_difference

WHOLE = "whole"
PAIRS = {"apgd-ce": "robustbench:APGD-CE", "apgd-t": "robustbench:APGD-T", "fab-t": "robustbench:FAB-T",
         "square": "robustbench:Square", WHOLE: "robustbench:AutoAttack"}  # fmt: skip
NATIVE_L1 = {"apgd-ce": "apgd-ce(restarts=5,larger_eps=true)", "apgd-t": "apgd-t(targets=5,larger_eps=true)"}


def call_text(name: str, norm: str) -> str:
    """Return how the native counterpart of `PAIRS` is called, with the published settings of the norm."""
    if name == WHOLE:
        return "autoattack"
    return NATIVE_L1.get(name, name) if norm == "L1" else name


def compare_once(settings: Sequence[str], name: str, seed: int) -> dict[str, Any]:
    """Run one native attack and its reference on the same points and seed; return a line of outcomes by point.

    `settings` are KEY=VALUE words of `robustdup eval`; points are named by their row in the split.
    """
    config = build(EvalConfig, overrides=settings)
    sides = {}
    for side, attacks in (("native", call_text(name, config.norm)), ("reference", PAIRS[name])):
        values = {"attacks": attacks, "seed": seed, "diagnostics": False, "save_images": False, "certify": False}
        sides[side] = run_evaluation(build(EvalConfig, overrides=settings, values=values))
    line: dict[str, Any] = {
        "attack": name, "model": config.model, "norm": config.norm, "eps": config.eps, "seed": seed,
        "n": sides["native"].record.n, "asked_n": config.n,
    }  # fmt: skip
    for side, result in sides.items():
        line[f"broken_{side}"] = broken(result)
        line[f"seconds_{side}"] = sum(attack.seconds for attack in result.record.attacks)
        line[f"passes_{side}"] = [result.record.passes.attacks_forward, result.record.passes.attacks_backward]
    line["attacked"] = sorted(right(sides["native"]))
    return line


def right(result: Evaluation) -> set[int]:
    """Return the rows of the split that the model gets right on the clean image."""
    table = result.samples
    rows = zip(table["index"], table["attack"], table["outcome"], strict=True)
    return {index for index, attack, outcome in rows if attack == "clean" and outcome == "correct"}


def broken(result: Evaluation) -> list[int]:
    """Return the rows of the split that any attack broke."""
    rows = zip(result.samples["index"], result.samples["outcome"], strict=True)
    return sorted({index for index, outcome in rows if outcome == "broken"})


def summary(lines: Iterable[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """Pool the lines of one attack: points, broken by one side only, difference of robust accuracies with its interval.

    A positive difference means that the native attack leaves more points standing. None where there are no lines.
    """
    native, reference = [], []
    for line in lines:
        if line["attack"] == name:
            points = np.array(line["attacked"])
            native.append(~np.isin(points, line["broken_native"]))
            reference.append(~np.isin(points, line["broken_reference"]))
    if not native:
        return None
    # Points that are wrong already stand on neither side, and belong to the accuracies all the same.
    wrong = sum(line["n"] - len(line["attacked"]) for line in lines if line["attack"] == name)
    nowhere = np.zeros(wrong, dtype=bool)
    difference = paired_difference(np.concatenate([*native, nowhere]), np.concatenate([*reference, nowhere]))
    return {"attack": name, "points": difference.n, "attacked": difference.n - wrong, "only_reference_broke": difference.only_a,
            "only_native_broke": difference.only_b, "native": difference.a, "reference": difference.b,
            "difference": difference.difference, "low": difference.low, "high": difference.high}  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the pooled comparison, and one row a model and norm, as Markdown."""
    rows = ["| attack | model, norm | points | robust, native | robust, reference | only native broke | "
            "only reference broke | difference, 95% interval (points) |", "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in PAIRS:
        of_attack = [line for line in lines if line["attack"] == name]
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for line in of_attack:
            groups.setdefault(f"{line['model'].split('@')[0]}, {line['norm']} {line['eps']}", []).append(line)
        groups |= {"all": of_attack} if len(groups) > 1 else {}
        for title, members in groups.items():
            figures = summary(members, name)
            if figures is not None:
                rows.append(
                    f"| {name} | {title} | {figures['points']} | {figures['native']:.2%} | {figures['reference']:.2%} | "
                    f"{figures['only_native_broke']} | {figures['only_reference_broke']} | "
                    f"{100 * figures['difference']:+.2f} [{100 * figures['low']:+.2f}, {100 * figures['high']:+.2f}] |"
                )
    return "\n".join(rows)


def done(line: Mapping[str, Any], column: str) -> tuple[Any, ...]:
    """Return what tells a line from those of other runs: `what` was run on which model and points, with which seed."""
    return line[column], line["model"], line["norm"], line["eps"], line.get("asked_n", line["n"]), line["seed"]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines that a file of results holds so far; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to a file of results."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table of all that FILE holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("settings", nargs="*", help="KEY=VALUE settings of robustdup eval: model=… data=… n=… eps=…")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one JSON line a comparison")
    parser.add_argument("--attacks", default=",".join(PAIRS), help=f"of {', '.join(PAIRS)}")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas")
    given = parser.parse_intermixed_args(words)
    try:
        config = build(EvalConfig, overrides=given.settings)
        for seed in map(int, given.seeds.split(",")) if given.settings else ():
            for name in given.attacks.split(","):
                key = (name, config.model, config.norm, config.eps, config.n, seed)
                if key in {done(line, "attack") for line in read(given.out)}:
                    continue
                line = compare_once(given.settings, name, seed)
                append(given.out, line)
                print(f"{name} seed {seed}: done", file=sys.stderr)
    except RobustdupError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(read(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
