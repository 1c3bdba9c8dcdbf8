"""`robustdup certify`: prove that samples have no adversarial example."""

from __future__ import annotations

import json as json_module
import sys
from typing import Any

import typer
from rich.console import Console

from robustdup.cli.flags import split_words, with_flags
from robustdup.config import EvalConfig, build
from robustdup.errors import UserError
from robustdup.report.format import escape

USED = (
    *("model", "allow_pickle", "norm", "eps", "seed", "plugin", "threads"),
    *EvalConfig.panels["Data"],
)


def _certify(
    words: list[str],
    flags: dict[str, Any],
    smoothing: float = typer.Option(
        0.0, "--smoothing", help="Certify by votes under noise of this standard deviation, in L2; bounds where 0."
    ),
    draws: int = typer.Option(1000, "--draws", help="With --smoothing: noisy copies per sample."),
    seconds: float = typer.Option(0.0, "--seconds", help="Begin no sample after this time; no limit where 0."),
    branch: float = typer.Option(
        1.0,
        "--branch",
        help="Seconds of CPU for each sample that bounds leave open: proofs by cases, for small networks.",
    ),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON, and nothing else."),
) -> int:
    """Prove, for as many samples as possible, that no adversarial example exists: a lower bound of robust accuracy."""
    file, overrides = split_words(words)
    config = build(EvalConfig, file, overrides, flags)

    from robustdup import jobs
    from robustdup.api.certification import certify
    from robustdup.models.load import load_model
    from robustdup.plugins import load_plugins

    registry = load_plugins(config.plugin)
    threats = jobs.parse_threats(config)
    if len(threats) > 1:
        raise UserError("certify takes one eps.", code="bad-option")
    data = jobs.load_data(config, registry)
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    progress = None if json or not sys.stderr.isatty() else _progress
    result = certify(
        model, data, eps=threats[0].eps_text, norm=threats[0].norm, seconds=seconds or None, progress=progress,
        branch_seconds=branch, seed=config.seed, draws=draws, method="smoothing" if smoothing else "bounds",
        sigma=smoothing or 0.25,
    )  # fmt: skip
    if json:
        parts = {name: vars(getattr(result, name)) for name in ("clean_accuracy", "certified_accuracy")}
        head = {"n": len(data), "threat": result.threat, "method": result.method, "confidence": result.confidence}
        columns = data.index.tolist(), result.certified.tolist(), result.margins.tolist()
        samples = [
            {"index": index, "certified": certified, "margin": None if margin == float("-inf") else margin}
            for index, certified, margin in zip(*columns, strict=True)
        ]
        print(
            json_module.dumps({**head, **parts, "seconds": result.seconds, "notes": result.notes, "samples": samples})
        )
        return 0
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{escape(config.model)} on {escape(config.data)}")
    console.print(f"[bold]{escape(str(result))}[/]")
    for note in result.notes:
        console.print(escape(note))
    console.print(
        "[dim]Samples that are not certified may be robust all the same: robustdup eval gives the upper bound.[/]"
    )
    return 0


def _progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} samples", end="" if done < total else "\n", file=sys.stderr, flush=True)


certify_command = with_flags(EvalConfig, _certify, only=USED)
