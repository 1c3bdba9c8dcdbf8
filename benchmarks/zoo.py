"""A zoo that tries to fool an evaluation: what is reported of each network, what is true, and what was said of it.

    python -m benchmarks.zoo --out FOLDER [--half develop|held-back|all] [--only NAMES] [--n 30] [--attacks fast]
    python -m benchmarks.zoo --out FOLDER --table [--half …]
    python -m benchmarks.zoo --out FOLDER --half all --behind MODEL --data DATA --eps 8/255 --only staircase,…

Ordinary networks of all objectives, networks masked by training, a robust network behind masks, and closed ones. Each writes
one file, and what is written is not run again. The halves go by a fixed rule, the parity of a hash of the name: one to
develop on, one that is held back.

The truth is the lowest of what anything leaves: the run that is judged, a long targeted APGD, Square, and, where there is a
mask, an attack on the network without it whose images the masked one is asked about (`--attack-model`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import robustdup
from benchmarks.masked import AFTER, BEFORE, masked
from benchmarks.zoo_masks import OUT_OF_SIGHT, RANDOM, WRAPPERS, OutOfSight, Wrapped
from benchmarks.zoo_networks import ORDINARY, OVERFITTED, OWN, train_by_recipe, train_own
from benchmarks.zoo_opaque import OPAQUE
from robustdup.attacks.ensembles import STANDARD
from robustdup.plugins import load_plugins

BEHIND, DIGITS = "builtin:digits-robust", "builtin:digits"
BUILT_IN = ("digits-robust", "digits-standard", "digits-certified")
MASKS = (*WRAPPERS, *BEFORE, *AFTER)
KINDS: dict[str, tuple[str, ...]] = {
    "ordinary": (*BUILT_IN, *ORDINARY),
    "trained": (*OVERFITTED, *OWN),
    "masked": MASKS,
    "closed": tuple(OPAQUE),
}
NAMES = tuple(name for names in KINDS.values() for name in names)
WEAK = ("standard", "mixup", "hot", "distilled", "decayed", "small-eps", "ibp", "certified", "labels", "l2", "nearest")
STRONG = "apgd-t(steps=100),square(queries=1000)"


@dataclass(frozen=True)
class Member:
    """A network of the zoo, what who knows it attacks in its place (None: itself), and the radius in Linf."""

    model: nn.Module
    known: nn.Module | None
    eps: str


def kind_of(name: str) -> str:
    """Return the kind of a network by its name."""
    return next(kind for kind, names in KINDS.items() if name in names)


def held_back(name: str) -> bool:
    """Say whether a network is held back: where the SHA-256 of its name is odd."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def wrapped(name: str, model: nn.Module) -> nn.Module:
    """Return the network behind the mask of that name."""
    if name not in WRAPPERS:
        return masked(name, model)
    wrap = OutOfSight if name in OUT_OF_SIGHT else Wrapped
    return wrap(model, WRAPPERS[name]).eval()


def member(name: str, folder: Path, behind: str = BEHIND, eps: str = "") -> Member:
    """Return a network of the zoo; what is to be trained keeps its weights in the folder, masks stand before `behind`."""
    eps = eps or ("0.06" if any(word in name for word in WEAK) else "0.15")
    kind = kind_of(name)
    if name in BUILT_IN:
        return Member(robustdup.load_model(f"builtin:{name}").eval(), None, eps)
    if kind == "ordinary" or name in OVERFITTED:
        return Member(train_by_recipe({**ORDINARY, **OVERFITTED}[name], folder / name), None, eps)
    if kind == "trained":
        return Member(train_own(name, folder / f"{name}.safetensors"), None, eps)
    network = robustdup.load_model(behind).eval()
    if kind == "closed":
        make, known = OPAQUE[name]
        return Member(make(network).eval(), known(network), eps)
    return Member(wrapped(name, network), network, eps)


def measure(
    name: str, folder: Path, n: int, attacks: str = "fast", behind: str = BEHIND, data: str = DIGITS, eps: str = ""
) -> dict[str, Any]:
    """Evaluate a network with the attacks, look for the truth, and return what is written of it."""
    of, started = member(name, folder / "weights", behind, eps), time.process_time()
    samples = robustdup.load_data(data, n=min(n, 12) if name in RANDOM else n)
    record = robustdup.evaluate(of.model, samples, eps=of.eps, attacks=attacks).record
    spent = time.process_time() - started
    values = [record.robust_accuracy.value]
    if of.known is not None:
        known = robustdup.evaluate(
            of.model, samples, eps=of.eps, attacks="fast", attack_model=of.known, diagnostics=False
        )
        values.append(known.record.robust_accuracy.value)
    elif name not in RANDOM:
        more = "square(queries=2000),rays" if kind_of(name) == "closed" else STRONG
        further = robustdup.evaluate(of.model, samples, eps=of.eps, attacks=more, diagnostics=False)
        values.append(further.robust_accuracy.value)
    signs = [sign.code for sign in record.diagnostics if sign.severity == "serious"]
    return {
        "name": name, "kind": kind_of(name), "held_back": held_back(name), "n": record.n, "eps": of.eps,
        "clean": record.clean_accuracy.value, "reported": values[0], "true": min(values), "reliable": record.reliable,
        "escalated": bool(record.escalation and record.escalation.escalated), "n_undecided": record.n_undecided, "signs": signs,
        "passes": record.passes.attacks_forward + record.passes.attacks_backward,
        "looks": record.passes.diagnostics_forward + record.passes.diagnostics_backward, "cpu_seconds": round(spent, 1),
    }  # fmt: skip


def autoattack_passes(row: dict[str, Any]) -> int:
    """Return what AutoAttack spends at least, computed and not measured: its passes for each sample that nothing breaks."""
    registry, each = load_plugins(), 0.0
    for stage in STANDARD:
        if "Linf" in stage.norms or not stage.norms:
            spec = registry.get_attack(stage.attack)
            each += sum(spec.passes(spec.check_options(dict(stage.options))) or (0.0,))
    return round(each * float(row["true"]) * int(row["n"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return two Markdown tables: what became of each kind in each half, and a line for each network.

    A miss is how many points what was reported and believed lies above the true value. Passes are of the median network: of
    the attacks, and of the looks at the model (at 64 samples at most).
    """
    kinds = [(half, kind) for half in (False, True) for kind in KINDS]
    parts = [(*key, [row for row in rows if (row["held_back"], row["kind"]) == key]) for key in kinds]
    return "\n".join([
        "| half | kind | networks | escalated | believed | missed | worst | passes a sample | looks | AutoAttack, computed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_sums(half, kind, part) for half, kind, part in parts if part),
        "",
        "| network | kind | reported | true | believed | escalated | passes | AutoAttack, computed |",
        "|---|---|---:|---:|---|---|---:|---:|",
        *map(_line, rows),
    ])  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['name']} | {row['kind']} | {row['reported']:.1%} | {row['true']:.1%} | "
        f"{'yes' if row['reliable'] else 'no: an upper bound'} | {'yes' if row['escalated'] else 'no'} | {row['passes']:,} | "
        f"{autoattack_passes(row):,} |"
    )


def _sums(held: bool, kind: str, rows: Sequence[dict[str, Any]]) -> str:
    misses = [100 * (row["reported"] - row["true"]) for row in rows if row["reliable"]]
    missed = f"{sum(misses) / len(misses):.2f} | {max(misses):.1f}" if misses else " | "
    passes = [
        median(count / row["n"] for count, row in zip(counts, rows, strict=True))
        for counts in ([row["passes"] for row in rows], [row["looks"] for row in rows], map(autoattack_passes, rows))
    ]
    return (
        f"| {'held back' if held else 'develop'} | {kind} | {len(rows)} | {sum(row['escalated'] for row in rows)} | "
        f"{len(misses)} | {missed} | {' | '.join(f'{count:,.0f}' for count in passes)} |"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, or print the table of what is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="a file for each network, and the weights")
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--attacks", default="fast", help="what is measured; a folder holds the results of one")
    parser.add_argument("--behind", default=BEHIND, help="the network behind the masks")
    parser.add_argument("--data", default=DIGITS)
    parser.add_argument("--eps", default="", help="the radius in Linf; by the name of the network if not given")
    parser.add_argument("--half", choices=("develop", "held-back", "all"), default="develop")
    parser.add_argument("--only", default="", help="names or kinds, with commas between them")
    parser.add_argument("--table", action="store_true", help="run nothing, and print what is there")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    only, rows = options.only.split(","), []
    for name in NAMES:
        here = options.half == "all" or held_back(name) == (options.half == "held-back")
        if not here or (options.only and name not in only and kind_of(name) not in only):
            continue
        file = options.out / f"{name}.json"
        if not file.is_file() and not options.table:
            options.out.mkdir(parents=True, exist_ok=True)
            row = measure(name, options.out, options.n, options.attacks, options.behind, options.data, options.eps)
            file.write_text(json.dumps(row, indent=1), encoding="utf-8")
            print(f"{name}: {file.read_text(encoding='utf-8')}", flush=True)
        if file.is_file():
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
