"""What the commands computed before the refactoring (commit d8ec123), value by value.

Each file in fixtures/first_edition holds the commands of one run and what they left: counts, outcomes, names and hashes
(exact), and floats of six significant digits (TOLERANCE). `bits` are hashes of computed floats (weights, adversarial
images): they are compared on the kind of CPU that made them alone, since others add in another order; there floats and
what hangs on them are compared with LOOSE. Only the command line is used here. What is new in a record is not looked at.
`fixtures/first_edition/make.py` wrote the files; a value that is meant to change is changed there by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# What is called otherwise now: {old: new}. `old` is a key, or a whole path without list numbers ("record.attacks.n_broken");
# `new` is a key or dotted path beside it; None: it is gone on purpose. A text value that was renamed is mapped the same way.
RENAMED: dict[str, str | None] = {
    "survived": "robust",
    "fooled_after": "broken_after",
    "seen": "signs",
    "min_distance.found": "n_found",
    "record.min_distance.found": "n_found",
    "schema_version": None,
    "n_kept_out": "n_excluded",
    "record.duplication.readings": "rates",
    "record.rows": "runs",
    "record.readings": "duplication_rates",
    "record.crossovers": "image_differences",
    "cells.*.measured": "measurements",
    "cells.*.readings": "duplication",
    "cells.*.points": "samples",
    "cells.*.points.row": "index",
    "cells.*.points.right": "correct",
    "cells.*.points.held": "robust",
    "cells.*.run": "training",
    "cells.*.run.duplication.readings": "rates",
    "rank.images.n_points": "n_samples",
    "padding": None,  # fewer: calls come in more sizes, and are filled with rows that an attack will need
    "padding_rows": None,
}

TOLERANCE = {"rel_tol": 2e-5, "abs_tol": 2e-6}  # of floats that were rounded to six digits
LOOSE = {"rel_tol": 0.1, "abs_tol": 0.1}  # on another kind of CPU
LOOSE_COUNTS = 0.05  # on another kind of CPU: share by which counts of passes may differ

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).resolve().parent / "fixtures" / "first_edition"
PLACES = [os.environ.get("ROBUSTDUP_TEST_DATA"), ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
DATA = next((Path(place) for place in PLACES if place and (Path(place) / "cifar10-lossless").is_dir()), None)

EVAL = ["--threads", "1", "--device", "cpu", "--workers", "1", "--seed", "0", "--out", "{tmp}/run"]
TRAIN = ["--threads", "1", "--device", "cpu", "--seed", "0", "--out", "{tmp}/run"]
CIFAR_NET = ["--model", "{fixtures}/nets.py:cifar_net@{fixtures}/cifar_net.safetensors", "--data", "{data}"]
DIGITS = ["--model", "builtin:digits-robust", "--data", "builtin:digits", "--micro-batch", "16", "--batch-size", "32"]
MASKED = ["--model", "{fixtures}/nets.py:masked_digits_net@{fixtures}/digits_net.safetensors", *DIGITS[2:]]
SMALL_CALLS = ["--eps", "8/255", "--micro-batch", "4", "--batch-size", "16"]

RECIPE = """
name: first-edition
base: {data: builtin:digits, n: 400, model: small-cnn(width=4), objective: pgd_at, attack: pgd(steps=3), eps: 0.15,
       augment: none, batch_size: 32, epochs: 4, optimizer: adamw, lr: 0.02, validation: 50, validate_every: 10,
       evaluate: pgd(steps=3), test_n: 60, duplicate: {scheme: uniform}}
factors: {dose: [0, 0.3]}
seeds: [3]
metrics_on: 50
"""


@dataclass(frozen=True)
class Run:
    """Commands that run one after the other, what is read afterwards, and what must be there for it."""

    commands: list[list[str]]
    read: Callable[[Path, list[str]], dict[str, Any]]
    needs: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda tmp: None


# --- what is read -----------------------------------------------------------------------------------------------------

# Times, places, machines, versions and sentences, which may be put otherwise.
LEFT_OUT = {
    "about", "advice", "command", "config", "created", "device_name",
    "model_a", "model_b", "error", "events", "file", "host", "images_per_second",
    "interval_about", "leaderboard_date", "leaderboard_source", "message", "note", "notes", "peak_memory", "platform",
    "python", "reasons", "run_id", "schema_version", "seconds", "sheet", "sheets", "spec", "text", "to", "validation_seconds",
    "versions", "folder", "conclusions", "title", "sentence", "analysis_since",
}  # fmt: skip
BITS = re.compile(
    r"(^|\.)(bits\.[^.]*|initial_fingerprint|checkpoints\.fingerprint|evaluation_(best|last)\.record\.model\.fingerprint)$"
)
PASSES = re.compile(r"(passes|padding_rows|fooled_after|passes\.\w+|step|steps_to\w*|samples_to\w*)$")


def kept(value: Any) -> Any:
    """What identifies a result: without LEFT_OUT, floats with six digits."""
    if isinstance(value, dict):
        return {key: kept(inner) for key, inner in value.items() if key not in LEFT_OUT and not _path(inner)}
    if isinstance(value, list | tuple):
        return [kept(inner) for inner in value if not (isinstance(inner, dict) and inner.get("metric") == "seconds")]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def columns(path: Path, by: tuple[str, ...]) -> dict[str, list[Any]]:
    """A table as lists, its rows in a fixed order; the long hashes of images as one hash of them all."""
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: [(row[key] is None, row[key]) for key in by])
    table = {name: [kept(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    if "image_sha256" in table:
        table["image_sha256"] = [hashlib.sha256("".join(table["image_sha256"]).encode()).hexdigest()]
    return table


def tensors_hash(path: Path) -> str:
    """SHA-256 over the values of all tensors, by name; names and metadata may change."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "record": kept(load(folder / "record.json")),
        "samples": columns(folder / "samples.parquet", ("eps", "stage", "position")),
    }
    images = folder / "images" / "adversarial.safetensors"
    return {**found, "bits": {"adversarial": tensors_hash(images)}} if images.is_file() else found


def read_evaluation(tmp: Path, out: list[str]) -> dict[str, Any]:
    return evaluation(tmp / "run")


def read_two_evaluations(tmp: Path, out: list[str]) -> dict[str, Any]:
    return {
        **evaluation(tmp / "run"),
        "other": evaluation(tmp / "other"),
        "compare": kept(json.loads(out[2])),
        "rank": kept(json.loads(out[3])),
    }


def read_training(tmp: Path, out: list[str]) -> dict[str, Any]:
    folder = tmp / "run"
    found: dict[str, Any] = {"record": kept(load(folder / "record.json"))}
    found["bits"] = {name: tensors_hash(folder / f"{name}.safetensors") for name in ("best", "last")}
    for name in ("best", "last"):
        if (folder / f"evaluation-{name}" / "record.json").is_file():
            found[f"evaluation_{name}"] = evaluation(folder / f"evaluation-{name}")
    return found


MEASURED_SINCE = ("class_imbalance", "prior_adjusted_accuracy", "seconds_to_")  # metrics that the first edition had not


def read_study(tmp: Path, out: list[str]) -> dict[str, Any]:
    folder = tmp / "run"
    cells = {cell["key"]: kept(cell) for cell in map(load, sorted(folder.glob("cells/*/cell.json")))}
    table = columns(folder / "cells.parquet", ("dose", "seed"))
    record = kept(load(folder / "record.json"))
    for part in ("means", "comparisons"):
        record[part] = [one for one in record[part] if not one["metric"].startswith(MEASURED_SINCE)]
    return {
        "record": record,
        "cells": cells,
        "table": {name: values for name, values in table.items() if name not in LEFT_OUT},
    }


def read_detection(tmp: Path, out: list[str]) -> dict[str, Any]:
    found = {}
    for name in ("run", "against"):
        if (tmp / name).is_dir():
            pairs = columns(tmp / name / "pairs.parquet", ("row_a", "row_b"))
            record = kept(load(tmp / name / "record.json"))
            record["pairs"].sort(
                key=lambda pair: (pair["a"]["row"], pair["b"]["row"])
            )  # scores may be as good as equal
            found[name] = {"record": record, "pairs": pairs}
    return {**found, "described": kept(json.loads(out[-1]))}


def read_duplication(tmp: Path, out: list[str]) -> dict[str, Any]:
    plan = {f"plan_{number}": kept(json.loads(text)) for number, text in enumerate(out)}
    written = pq.read_table(next((tmp / "first" / "data").glob("train-*.parquet")))
    rows = {name: written[name].to_pylist() for name in written.column_names if name != "image"}
    return {**plan, "rows": {name: values for name, values in rows.items() if not isinstance(values[0], dict)}}


# --- what is made first -----------------------------------------------------------------------------------------------


def write_recipe(tmp: Path) -> None:
    (tmp / "recipe.yaml").write_text(RECIPE)


def write_images(tmp: Path) -> None:
    """260 CIFAR-10 images with 40 copies (same, shifted, mirrored, brighter); 80 test images with 20 of the first ones."""
    import numpy as np
    from PIL import Image

    def changed(row: dict[str, Any], how: int) -> dict[str, Any]:
        pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        pixels = (
            pixels,
            np.roll(pixels, (2, 1), axis=(0, 1)),
            pixels[:, ::-1],
            np.minimum(pixels.astype(int) + 25, 255).astype(np.uint8),
        )[how]
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG")
        return {"img": {"bytes": stream.getvalue(), "path": None}, "label": row["label"]}

    assert DATA is not None
    tables = {name: pq.read_table(DATA / "cifar10-lossless" / f"{name}.parquet") for name in ("train", "test")}
    train, test = tables["train"].slice(0, 260).to_pylist(), tables["test"].slice(0, 80).to_pylist()
    mixed = {
        "train": train + [changed(train[5 * number], number % 4) for number in range(40)],
        "test": test + [changed(train[7 * number + 1], number % 4) for number in range(20)],
    }
    (tmp / "images").mkdir()
    for name, rows in mixed.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=tables[name].schema), tmp / "images" / f"{name}.parquet")


# --- the runs ---------------------------------------------------------------------------------------------------------

RUNS = {
    "eval_digits_autoattack": Run(
        [["eval", *DIGITS, "--attacks", "autoattack", "--n", "20", *EVAL]],
        read_evaluation,
    ),
    "eval_digits_short_ensemble": Run(  # AutoAttack's stages with fewer steps; made later, at 7611a76
        [
            [
                "eval", *DIGITS, "--eps", "0.12", "--n", "20", *EVAL, "--attacks",
                "apgd-ce(steps=10),apgd-t(steps=10,targets=3),fab-t(steps=10,targets=3),square(queries=50)",
            ]
        ],
        read_evaluation,
    ),
    "eval_digits_fast_curve": Run(
        [["eval", *DIGITS, "--attacks", "fast", "--n", "40", "--eps", "0.1,0.15", *EVAL]],
        read_evaluation,
    ),
    "eval_digits_l2_individual": Run(
        [
            [
                "eval", *DIGITS, "--norm", "L2", "--eps", "0.5", "--individual", "--sample", "30",
                "--attacks", "noise,fgsm,pgd(steps=10,restarts=2),apgd-ce(steps=20),square(queries=100)", *EVAL,
            ]
        ],
        read_evaluation,
    ),
    "eval_cifar_autoattack_and_rank": Run(
        [
            ["eval", *CIFAR_NET, *SMALL_CALLS, "--attacks", "autoattack", "--n", "16", *EVAL],
            ["eval", *CIFAR_NET, *SMALL_CALLS, "--attacks", "fast", "--n", "16", *EVAL[:-1], "{tmp}/other"],
            ["compare", "{tmp}/run", "{tmp}/other", "--json"],
            ["leaderboard", "rank", "{tmp}/run", "--json"],
        ],
        read_two_evaluations,
        needs=("cifar",),
    ),
    "eval_digits_masked_fast": Run(
        [["eval", *MASKED, "--attacks", "fast", "--n", "12", "--eps", "0.1", *EVAL]],
        read_evaluation,
    ),
    "train_digits_pgd_at": Run(
        [
            [
                "train", "--data", "builtin:digits", "--model", "small-cnn(width=8)", "--objective", "pgd_at",
                "--attack", "pgd(steps=5)", "--augment", "crop-flip", "--padding", "1", "--lr", "0.05", "--steps", "40",
                "--batch-size", "64", "--ema", "0.8", "--validation", "100", "--validate-every", "10",
                "--validation-attack", "pgd(steps=3)", "--evaluate", "pgd(steps=5)", "--test-n", "60", *TRAIN,
            ]
        ],
        read_training,
    ),
    "train_digits_trades_duplicated": Run(
        [
            [
                "train", "--data", "builtin:digits", "--model", "small-cnn(width=8)", "--objective", "trades(beta=6)",
                "--update", "awp(gamma=0.005)", "--attack", "pgd(steps=3)", "--augment", "none", "--optimizer", "adamw",
                "--lr", "0.01", "--steps", "20", "--batch-size", "32", "--validation", "60", "--validate-every", "10",
                "--validation-attack", "pgd(steps=3)", "duplicate.scheme=uniform", "duplicate.dose=0.3",
                "evaluate=null", *TRAIN,
            ]
        ],
        read_training,
    ),
    "train_cifar_n_fgsm": Run(
        [
            [
                "train", "--data", "{data}", "--model", "{fixtures}/nets.py:cifar_net", "--objective", "n_fgsm(k=1.1875)",
                "--eps", "8/255", "--padding", "2", "--optimizer", "muon", "--schedule", "linear", "--warmup", "0.15",
                "--n", "600", "--steps", "12", "--batch-size", "32", "--validation", "50", "--validate-every", "6",
                "--validation-attack", "pgd(steps=3)", "evaluate=null", *TRAIN,
            ]
        ],
        read_training,
        needs=("cifar",),
    ),
    "study_cell": Run(
        [["study", "run", "{tmp}/recipe.yaml", "threads=1", "device=cpu", "--workers", "1", "--out", "{tmp}/run"]],
        read_study,
        needs=("study",),
        prepare=write_recipe,
    ),
    "data_detect": Run(
        [
            ["data", "detect", "{tmp}/images", "--workers", "1", "--to", "{tmp}/clean", "--out", "{tmp}/run"],
            ["data", "detect", "{tmp}/images", "--against", "test", "--workers", "1", "--out", "{tmp}/against"],
            ["data", "describe", "{tmp}/clean", "--json"],
        ],
        read_detection,
        needs=("cifar", "detect"),
        prepare=write_images,
    ),
    "data_duplicate": Run(
        [
            [
                "data", "duplicate", "builtin:digits", "--scheme", "uniform", "--dose", "0.3", "--seed", "5",
                "--to", "{tmp}/first", "--json",
            ],
            [
                "data", "duplicate", "builtin:digits", "--scheme", "power_law", "--dose", "0.3", "--seed", "5",
                "--near", "shift(pixels=1)", "--to", "{tmp}/second", "--json",
            ],
        ],
        read_duplication,
    ),
}  # fmt: skip


# Both ensembles once in the quick lane: `eval_digits_short_ensemble` and `eval_digits_masked_fast`.
LONG = ("eval_digits_autoattack", "eval_digits_fast_curve", "eval_cifar_autoattack_and_rank")


# --- running and comparing --------------------------------------------------------------------------------------------


def missing(run: Run) -> str | None:
    """Say why a run cannot be made here; None where it can."""
    if "cifar" in run.needs and DATA is None:
        return "needs cifar10-lossless in ../shared/data or ROBUSTDUP_TEST_DATA"
    for what, modules in (
        ("detect", ("robustdup_detect", "robustdup.data.detect")),
        ("study", ("robustdup_study", "robustdup.study")),
    ):
        if what in run.needs and not any(map(_installed, modules)):
            return f"needs robustdup_{what}"
    return None


def _installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None  # an empty folder that is left over has no origin


def filled(words: list[str], tmp: Path) -> list[str]:
    data = str(DATA / "cifar10-lossless") if DATA else ""
    return [
        word.replace("{tmp}", str(tmp)).replace("{fixtures}", str(FIXTURES)).replace("{data}", data) for word in words
    ]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Some commands take a thread for each core that they may use: one, whatever the machine."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def command_line(words: list[str]) -> str:
    """Run the installed command `robustdup` in this process and return what it printed."""
    entry = next(iter(entry_points(group="console_scripts", name="robustdup")))
    out, code = io.StringIO(), 0
    with one_core(), mock.patch.object(sys, "argv", ["robustdup", *words]), contextlib.redirect_stdout(out):
        try:
            entry.load()()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    assert code == 0, f"robustdup {' '.join(words)}: exit code {code}\n{out.getvalue()}"
    return out.getvalue()


def computed(name: str, tmp: Path) -> dict[str, Any]:
    """Run the commands of a run in `tmp` and return what they left."""
    run = RUNS[name]
    run.prepare(tmp)
    return run.read(tmp, [command_line(filled(words, tmp)) for words in run.commands])


def cpu() -> dict[str, str]:
    """The kind of CPU, and the torch that computes: where both are the same, so is every bit."""
    import torch

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        else:
            model = platform.processor()
    return {"model": model, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


GONE = object()


def differences(old: Any, new: Any, path: str = "", place: str = "", *, same_cpu: bool = True) -> Iterator[str]:
    """Say where `new` is not what `old` is; `path` is without list numbers, `place` with them."""
    if isinstance(old, dict):
        for key, value in old.items():
            here = f"{path}.{'*' if re.fullmatch('[0-9a-f]{16}', key) else key}".lstrip(".")
            name = RENAMED.get(here, RENAMED.get(key, key))
            if name is not None:
                yield from differences(value, _inside(new, name), here, f"{place}.{key}".lstrip("."), same_cpu=same_cpu)
    elif new is GONE:
        yield f"{place}: gone (was {str(old)[:80]})"
    elif isinstance(old, list):
        if not isinstance(new, list) or len(new) != len(old):
            if same_cpu or not PASSES.search(path):
                yield f"{place}: {str(old)[:120]} became {str(new)[:120]}"
            return
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, path, f"{place}.{number}", same_cpu=same_cpu)
    elif not _same(old, new, path, same_cpu):
        yield f"{place}: {old!r} became {new!r}"


def _inside(new: Any, name: str) -> Any:
    """What is called `name` in a mapping, or GONE: a key, or a path of keys."""
    if isinstance(new, dict) and name in new:
        return new[name]
    first, dot, rest = name.partition(".")
    return _inside(new[first], rest) if dot and isinstance(new, dict) and first in new else GONE


def _same(old: Any, new: Any, path: str, same_cpu: bool) -> bool:
    number = isinstance(new, int | float) and not isinstance(new, bool)
    if BITS.search(path):
        return not same_cpu or old == new
    if isinstance(old, float):
        return number and math.isclose(old, new, **(TOLERANCE if same_cpu else LOOSE))
    if isinstance(old, str):
        return old == new or (old in RENAMED and RENAMED[old] == new)
    if not same_cpu and PASSES.search(path):
        return number == isinstance(old, int) and (
            not number or math.isclose(old, new, rel_tol=LOOSE_COUNTS, abs_tol=50)
        )
    return type(old) is type(new) and old == new


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in RUNS])
def test_same_as_first_edition(name, tmp_path):
    reason = missing(RUNS[name])
    if reason:
        pytest.skip(reason)
    golden = load(FIXTURES / f"{name}.json")
    assert golden["commands"] == RUNS[name].commands, "the commands are not those whose values were kept"
    found = list(differences(golden["values"], computed(name, tmp_path), same_cpu=golden["cpu"] == cpu()))
    assert not found, f"{len(found)} values differ:\n" + "\n".join(found[:40])
