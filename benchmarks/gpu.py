"""What robustdup does on a GPU, in one command of less than eight minutes: is it right, how fast is it, what comes out.

    python -m benchmarks.gpu --data path/to/cifar10 --out gpu.jsonl        # on a machine with a GPU
    python -m benchmarks.gpu --device cpu --out small.jsonl                # the same parts, small, to see that they run
    python -m benchmarks.gpu --parts pgd --share 4 --data path/to/cifar10  # the goal of 48.5%, in a call of its own
    python -m benchmarks.gpu --resume --data path/to/cifar10 --out gpu.jsonl    # only what the file does not have yet

Each part runs in a process of its own with a limit of time, and writes what it measured at once, a line of JSON each; one
that fails, hangs or runs out of time does not stop the others. On a CPU, where nothing is measured, a limit is ten times as
long. Recipes train for as many epochs, up to 30, as leave half of the part's time for the verdict. Without `--data` images
are made up: speeds hold, accuracies mean nothing. What is missing on the machine is said first. Neither a network nor an
installation is needed, only torch and the packages that robustdup needs. Goals stand beside what they are held against.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GROUP = "robustdup.plugins"
# Parts in order, with their seconds: together below eight minutes.
PARTS = {
    "machine": 30, "bits": 20, "broken": 30, "training": 95, "attacks": 80, "n_fgsm": 45, "pgd": 105, "memory": 20,
    "toolkits": 25, "doses": 25,
}  # fmt: skip
# What the module of a package is called, where that is not the package's name.
MODULES = {
    "vl-convert-python": "vl_convert",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "typing-extensions": "typing_extensions",
}
COMPARED = ("torchattacks", "art", "pyautoattack")
SMALL = 10.0  # times a part's limit on a CPU: any machine, old or busy, is to come to the end of the small form
# What is promised, as it is said of a figure.
GOALS = {
    "training_over_plain_loop": "3", "exact_over_pyautoattack": "2", "fast_seconds_for_10000": "15 or less",
    "robust_accuracy": "48.5%",
}  # fmt: skip
# How figures are said; others by their name, and these not at all.
SAID = {
    "images_per_second": "{:,.0f} images/s",
    "images_per_second_before": "{:,.0f} images/s before",
    "training_over_plain_loop": "{:.2f} times the plain loop",
    "exact_over_pyautoattack": "robustdup {:.2f} times as quick",
    "fast_seconds_for_10000": "{:.1f} s for 10,000 samples",
    "robust_accuracy": "{:.1%} robust by AutoAttack",
    "seconds": "{:.1f} s",
    "clean": "{:.1%} clean",
    "robust": "{:.1%} robust",
    "same": "the same: {}",
    "largest_difference": "largest difference {:.2g}",
}
UNSAID = ("part", "what", "at", "status", "switches")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for, print a summary, and return 0 where all of them went through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="CIFAR-10: a folder, a file, anything that load_data reads")
    parser.add_argument("--device", default="auto", help="cuda, cpu (small), or auto")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"with commas: {', '.join(PARTS)}")
    parser.add_argument("--out", default="gpu.jsonl", help="file that lines are appended to")
    parser.add_argument("--share", type=float, default=1.0, help="of each part's limit of time")
    parser.add_argument("--resume", action="store_true", help="leave out parts that --out says are done")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # of the process of a part
    options = parser.parse_args(arguments)
    if options.part:
        from benchmarks import gpu_parts

        limit = PARTS[options.part] * options.share
        gpu_parts.run(options.part, data=options.data, device=options.device, out=Path(options.out), limit=limit)
        return 0
    wanted = [name.strip() for name in options.parts.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    out = Path(options.out)
    earlier = read(out) if out.exists() else []
    done = {line["part"] for line in earlier if options.resume and line.get("status") == "done"}
    absent = missing()
    write(out, {"part": "packages", "missing": absent, "compared_missing": [m for m in COMPARED if not _is_there(m)]})
    if absent:
        print(f"Missing here: {', '.join(absent)}. What needs them will fail: carry their wheels.", file=sys.stderr)
        if needed := sorted(set(absent) & {"torch", "pydantic", "numpy"}):
            print(f"Nothing runs without {', '.join(needed)}.", file=sys.stderr)
            return 1
    small = is_small(options.device)
    longer = options.share * (SMALL if small else 1)
    ended = [run_part(name, options, PARTS[name] * longer) for name in wanted if name not in done]
    lines = [line for line in earlier if line["part"] in done] + read(out)[len(earlier) :]
    print(summary(lines, goals=not small))
    return 0 if all(ended) else 1


def is_small(device: str) -> bool:
    """Return whether parts run small: on a CPU, asked for or found."""
    if device != "auto":
        return device == "cpu"
    import torch

    return not torch.cuda.is_available()


def run_part(name: str, options: argparse.Namespace, limit: float) -> bool:
    """Run one part in a process of its own, write how it ended, and return whether it went through."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--data", options.data, "--device", options.device,
             "--share", str(options.share)]  # fmt: skip
    started, status = time.perf_counter(), "done"
    with registered() as folder, tempfile.TemporaryFile() as said:
        places = [folder, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
        command = [*words, "--out", str(Path(options.out).resolve())]
        try:
            # A file and no pipe: what a killed part leaves running, such as compilers, would hold a pipe open.
            done = subprocess.run(
                command, timeout=limit, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, check=False
            )
            if done.returncode:
                status = "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        said.seek(0)
        error = "" if status == "done" else said.read().decode(errors="replace").strip()[-2000:]
    seconds = round(time.perf_counter() - started, 1)
    write(
        Path(options.out), {"part": name, "status": status, "seconds": seconds, **({"error": error} if error else {})}
    )
    print(f"{name}: {status} after {seconds} s of {limit:g}", flush=True)
    return status == "done"


def missing() -> list[str]:
    """Return the packages of robustdup's own requirements that are not on this machine."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = [re.split(r"[\s<>=!~;\[(]", need, maxsplit=1)[0].lower() for need in needs]
    return [name for name in names if not _is_there(MODULES.get(name, name.replace("-", "_")))]


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@contextmanager
def registered() -> Iterator[str]:
    """Yield a folder for PYTHONPATH in which robustdup's entry points are named, where it is not installed; else ""."""
    if importlib.metadata.entry_points(group=GROUP):
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        name_entry_points(Path(folder))
        yield folder


def name_entry_points(folder: Path) -> None:
    """Write what Python reads of an installed robustdup into a folder: its name, version and entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "robustdup-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustdup\nVersion: 0.0.0\n", encoding="utf-8")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {place}" for name, place in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(out: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON and see that it is on the disk: the next moment may end the process."""
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")  # a kind that was not expected loses no figure
        file.flush()
        os.fsync(file.fileno())


def read(out: Path) -> list[dict[str, Any]]:
    """Return the lines that were written so far."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def summary(lines: Sequence[Mapping[str, Any]], *, goals: bool = True) -> str:
    """Return what was measured as text, part by part; each figure with its goal where there is one and `goals` is true."""
    parts: dict[str, list[str]] = {}
    for line in lines:
        texts = parts.setdefault(line["part"], [])
        told = [name for name, value in line.items() if name not in UNSAID and value not in ([], "", None)]
        if "status" in line:
            texts.insert(0, f"{line['part']}: {line['status']} after {line['seconds']:g} s")
            told = [name for name in told if name == "error"]
        if told:
            said = ", ".join(_said(name, line[name], goals) for name in told)
            texts.append(f"  {line['what']}: {said}" if "what" in line else f"  {said}")
    if not goals:
        parts["small"] = ["On a CPU everything is small: these figures say that the parts run, and nothing else."]
    return "\n".join(text for texts in parts.values() for text in texts)


def _said(name: str, value: Any, goals: bool) -> str:
    """Return a figure in words, with its goal."""
    if name == "bytes":
        return f"{value / 2**30:.2f} GiB"
    if name == "error":  # a traceback ends with what went wrong
        return f"error: {str(value).splitlines()[-1]}"
    if isinstance(value, bool):
        value = "yes" if value else "NO"
    elif isinstance(value, list):
        value = "; ".join(map(str, value))
    elif isinstance(value, float) and name not in SAID:
        value = f"{value:.4g}"
    said = SAID[name].format(value) if name in SAID else f"{name.replace('_', ' ')} {value}"
    return f"{said} (goal {GOALS[name]})" if goals and name in GOALS else said


if __name__ == "__main__":
    sys.exit(main())
