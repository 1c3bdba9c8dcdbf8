"""Mistakes on the command line, each to be answered by one message: made here, driven by test_mistakes.py."""

from __future__ import annotations

import os
from pathlib import Path

NUMBERS = (
    "abc",
    "1e999999999",
    "1e-400",
    "nan",
    "inf",
    "-1",
    "0",
    "1.5",
    "9" * 400,
    "1/0",
    "1e",
    "0x10",
    "٣",
    "--",
    "1,5,",
)
EVAL = ("eval", "--attacks", "fgsm", "--n", "4", "--no-diagnostics")
TRAIN = ("train", "--n", "8", "--epochs", "1", "--batch-size", "4")

# What each number is a mistake for: some of NUMBERS are right there.
EPS = [("eval", "--attacks", "fgsm", "--n", "4", "--eps", n) for n in NUMBERS if n not in ("1,5,",)]
INTEGERS = [
    (*EVAL, flag, n)
    for flag in (
        "--batch-size",
        "--micro-batch",
        "--judge-draws",
        "--workers",
        "--threads",
        "--n",
        "--sample",
        "--seed",
    )
    for n in ("abc", "nan", "inf", "1.5", "9" * 400, "1/0", "1e", "-7", "٣٣٣x")
]
WORDS = [
    (*EVAL, "--norm", "L3"), (*EVAL, "--norm", ""), (*EVAL, "--device", "gpu7"), (*EVAL, "--device", "cuda:99"),
    (*EVAL, "--mode", "sleep"), (*EVAL, "--precision", "fp7"), (*EVAL, "--compile", "maybe"), (*EVAL, "--runner", "slurm"),
    (*EVAL, "--loss", "nope"), (*EVAL, "--model", "nope"), (*EVAL, "--model", "builtin:nope"), (*EVAL, "--model", "x.py"),
    (*EVAL, "--model", "x.py:"), (*EVAL, "--model", "x.py:f@"), (*EVAL, "--model", "nothere.py:f"), (*EVAL, "--model", ""),
    (*EVAL, "--model", ":"), (*EVAL, "--model", "\x1b[31m"), (*EVAL, "--model", "[/bold]"), (*EVAL, "--model", "a\0b.py:f"),
    (*EVAL, "--data", "nope:"), (*EVAL, "--data", ""), (*EVAL, "--data", "/nowhere/at/all"), (*EVAL, "--data", "[/bold]"),
    (*EVAL, "--data", "a\0b"), (*EVAL, "--plugin", "nope.py"), (*EVAL, "--plugin", ""),
    ("eval", "--attacks", "fgsm", "n=true"), (*EVAL, "seed=false"), (*EVAL, "batch_size=yes"), (*EVAL, "unknown=1"),
    (*EVAL, "=1"), (*EVAL, "--out", ""), (*EVAL, "--out", "a\0b"),
    (*EVAL, "n=[1"), (*EVAL, "options.fgsm=3"), (*EVAL, "options.nope.x=3"), (*EVAL, "a.b.c=1"), (*EVAL, "nofile.yaml"),
    (*EVAL, "nofile"), (*EVAL, "--resume", "/nowhere"), (*EVAL, "--bogus"), (*EVAL, "--padding", "1000"), ("bogus",),
    ("eval", "--attacks", ""), ("eval", "--attacks", ","), ("eval", "--attacks", "nope"), ("eval", "--attacks", "fgsm("),
    ("eval", "--attacks", "fgsm(x)"), ("eval", "--attacks", "fgsm(x=1)"), ("eval", "--attacks", "pgd(steps=0)"),
    ("eval", "--attacks", "pgd(steps=-1)"), ("eval", "--attacks", "pgd(steps=nan)"), ("eval", "--attacks", "pgd(steps=1e400)"),
    ("eval", "--attacks", "pgd(steps=true)"), ("eval", "--attacks", "pgd(steps=[1])"), ("eval", "--attacks", "pgd(loss=3)"),
    ("eval", "--attacks", "pgd(loss=nope)"), ("eval", "--attacks", "autoattack(x=1)"), ("eval", "--attacks", "\x1b[2J"),
    ("eval", "--attacks", "[/bold]"), ("eval", "--attacks", "()"), ("eval", "--attacks", "(" * 3000),
    ("eval", "--attacks", "pgd(step_size=nan)"), ("eval", "--attacks", "pgd(step_size=-1)"),
    ("eval", "--attacks", "pgd(steps=1.5)"),
    (*EVAL, "n={" + "a: {" * 3000), (*EVAL, "n=" + "[" * 3000), (*EVAL, "--eot", "0"), (*EVAL, "--eot", "-3"),
    (*EVAL, "--image-column", "nope"), (*EVAL, "--label-column", "nope"), (*EVAL, "--split", "nope"),
    (*TRAIN, "--objective", "nope"), (*TRAIN, "--objective", "trades(beta=nan)"), (*TRAIN, "--objective", "trades(beta=-1)"),
    (*TRAIN, "--objective", ""), (*TRAIN, "--objective", "("), (*TRAIN, "--model", "nope"), (*TRAIN, "--data", "nope:"),
    (*TRAIN, "--optimizer", "nope"), (*TRAIN, "--schedule", "nope"), (*TRAIN, "--augment", "nope"),
    ("data", "bogus"), ("data", "duplicate"), ("config", "show", "nope"),
    ("config", "show", "../../etc/passwd"), ("config", "copy", "nope"), ("attacks", "show", "nope"),
    ("attacks", "show", "[/bold]"),
    ("attacks", "list", "--norm", "L9"), ("attacks", "check", "nope"), ("attacks", "check", ""), ("plot", "/nowhere"),
    ("report", "/nowhere"), ("compare", "/nowhere", "/nowhere2"), ("compare",), ("verify",), ("verify", "/nowhere"),
    ("leaderboard", "rank", "/nowhere"), ("leaderboard", "bogus"), ("plot", "--kind", "nope", "/nowhere"), ("report",),
]  # fmt: skip

# What a path may lead to besides a file or folder, and who reads one.
PATHS = ("fifo", "/dev/zero", "loop", "zero.json", "holes.json", "holes.yaml", "holes.pt", "holes.parquet", "a\0b", "\udcff",
         "x" * 5000, "file/inner", "/proc/self/mem", "https://x.invalid/a.zip", "~no-such-user/x")  # fmt: skip
WHO_READS = {
    "model": (*EVAL, "--model", "PATH"), "factory": (*EVAL, "--model", "PATH:make"), "data": (*EVAL, "--data", "PATH"),
    "weights": (*EVAL, "--model", "small-cnn@PATH"), "network": (*EVAL, "--model", "run:PATH"), "recipe": (*EVAL, "./PATH"),
    "plugin": (*EVAL, "--plugin", "PATH"), "resume": (*EVAL, "--resume", "PATH"), "replay": (*EVAL, "--replay", "PATH"),
    "init": (*TRAIN, "--init", "PATH"), "verify": ("verify", "PATH"), "report": ("report", "PATH"), "plot": ("plot", "PATH"),
    "compare": ("compare", "PATH", "PATH"), "gate": ("gate", "PATH", "--min", "0.1"), "rank": ("leaderboard", "rank", "PATH"),
    "describe": ("data", "describe", "PATH"), "check": ("attacks", "check", "PATH"),
}  # fmt: skip


def odd_paths(folder: Path) -> None:
    """Make what PATHS names: a pipe, links, and files of 20 GB that nobody wrote."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "file").write_text("hello")
    for kind in ("json", "yaml", "pt", "parquet"):
        (folder / f"holes.{kind}").touch()
        os.truncate(folder / f"holes.{kind}", 20 << 30)


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BROKEN_JSON = {
    "empty": "", "text": "hello", "list": "[]", "null": "null", "number": "7", "deep": DEEP, "deep list": "[" * 100_000,
    "long integer": '{"schema_name": "robustdup.evaluation", "schema_version": ' + "9" * 10_000 + "}",
    "integer with a long name": '{"' + "x" * 100_000 + '": 1}', "nan": '{"schema_name": NaN}', 
    "bom": "\ufeff{}", "nul": "\0" * 100,
    "other": '{"schema_name": "robustdup.other", "schema_version": 1}',
    "future": '{"schema_name": "robustdup.evaluation", "schema_version": 99}',
    "version text": '{"schema_name": "robustdup.evaluation", "schema_version": "x"}',
    "version missing": '{"schema_name": "robustdup.evaluation"}',
    "no fields": '{"schema_name": "robustdup.evaluation", "schema_version": 3}',
    "name is a list": '{"schema_name": [], "schema_version": 3}', "markup": '{"schema_name": "[/bold]\\u001b[31m"}',
    "surrogate": '{"schema_name": "\\udcff"}', "cut": '{"schema_name": "robustdup.eval',
    "training": '{"schema_name": "robustdup.training", "schema_version": 1}',
}  # fmt: skip
READERS = {
    "report": ("report", "RUN"), "compare": ("compare", "RUN", "RUN"), "plot": ("plot", "RUN"),
    "rank": ("leaderboard", "rank", "RUN"), "resume": ("eval", "--resume", "RUN"), "verify": ("verify", "RUN"),
}  # fmt: skip

YAML = {
    "empty": "", "comment": "# nothing\n", "null": "null\n", "list": "- 1\n", "number": "7\n", "twice": "n: 4\nn: 5\n",
    "nested twice": "options:\n  fgsm: {}\n  fgsm: {}\n", "deep": "n: " + "[" * 5000, "unknown": "nope: 1\n",
    "tab": "n:\t4\n\tseed: 1\n", "python tag": "n: !!python/object/apply:os.system [id]\n", "unknown alias": "a: &a [1]\nb: *c\n",
    "alias bomb": "attacks:\n  - &a0 [x]\n" + "".join(f"  - &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
    "alias of itself": "attacks: &a [pgd, *a]\n",
    "long integer": "n: " + "9" * 10_000 + "\n", "binary": "\0\1\2", "bool": "n: true\n", "date": "n: 2020-01-01\n",
    "infinite": "n: .inf\n",
    "text": "n: many\n", "negative": "n: -3\n", "octal": "n: 0o10x\n", "key is a list": "[1]: 2\n",
}  # fmt: skip


def broken_run(folder: Path, content: str) -> Path:
    """Make a run folder with this text as its record, and as the configuration of an unfinished run."""
    (folder / "state").mkdir(parents=True)
    (folder / "record.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    (folder / "state" / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    return folder


MODELS = """
import sys, os, torch
from torch import nn
def model(answer):
    class Model(nn.Module):
        def forward(self, images):
            return answer(images)
    return Model
def leaves(images):
    raise SystemExit(0)
def fails(images):
    raise ValueError("\\x1b[31m[/bold] \\udcff")
class Nameless(BaseException):
    def __str__(self):
        raise RuntimeError
def nameless(images):
    raise Nameless
forward_exit = model(leaves)
forward_fails = model(fails)
complex_logits = model(lambda x: torch.zeros(len(x), 10, dtype=torch.complex64))
integer_logits = model(lambda x: torch.zeros(len(x), 10, dtype=torch.int64))
bool_logits = model(lambda x: torch.zeros(len(x), 10, dtype=torch.bool))
nan_logits = model(lambda x: torch.full((len(x), 10), float("nan")))
no_logits = model(lambda x: None)
tuple_logits = model(lambda x: (torch.zeros(len(x), 10), 1))
flat_logits = model(lambda x: torch.zeros(len(x)))
one_logit = model(lambda x: torch.zeros(len(x), 1))
few_logits = model(lambda x: torch.zeros(len(x), 3))
wrong_rows = model(lambda x: torch.zeros(1, 10))
empty_logits = model(lambda x: torch.zeros(len(x), 0))
sparse_logits = model(lambda x: torch.zeros(len(x), 10).to_sparse())
other_size = lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
def exits(): sys.exit(0)
def ends(): os._exit(0)
def raises(): raise ValueError("[/bold]\\x1b[2J")
def raises_nothing(): raise Nameless
def returns_none(): return None
def returns_class(): return nn.Linear
def needs(argument): return None
number = 3
"""
FACTORIES = [line.split(" = ")[0].split("(")[0].removeprefix("def ") for line in MODELS.splitlines()
             if " = model(" in line or " = lambda" in line or (line.startswith("def ") and "(images)" not in line
             and "(answer)" not in line) or line.startswith("number")]  # fmt: skip

PLUGINS = {
    "syntax": "def f(:\n", "empty": "", "exit": "import sys; sys.exit(0)\n", "os exit": "import os; os._exit(0)\n",
    "raises": "raise ValueError('[/bold]\x1b[2J')\n", "import": "import nothing_of_this_name\n", "nul": "\0",
    "register": "register = 3\n", "register raises": "def register(registry): raise SystemExit(0)\n",
}  # fmt: skip
