"""`robustdup verify`: recheck claimed adversarial examples by the referee alone, without running an attack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from robustdup.cli.flags import split_words, with_flags
from robustdup.config import EvalConfig, build
from robustdup.errors import UserError, how_to_install
from robustdup.report.format import escape

# The referee runs no attack: what is judged, and on what.
USED = (
    *("model", "normalize", "class_names", "mode", "judge_draws", "allow_pickle", "norm", "eps", "seed", "plugin"),
    *EvalConfig.panels["Data"],
    *("device", "threads", "micro_batch"),
)

MOST_PROBLEMS = 10
# What the classes hold, in words; --json lists each field.
RECHECKED = (
    "which images are adversarial and in the ball, predictions and margins on clean images and examples, clean accuracy, the "
    "bound of robust accuracy, 8-bit accuracy, labels, data, weights"
)
CONSISTENT = "computed from the rows and compared: intervals, counts, tables, per class, curve, eps, size of the split"
STATED = (
    "which attacks ran and how, seeds, passes, times, machine, versions, diagnostics, names, settings, and that nothing "
    "stronger breaks more"
)

WORDS = (
    "BUNDLE|FILE [KEY=VALUE ...]",
    "A folder that eval --bundle wrote, or a file of examples, or a folder of pictures; and any setting as KEY=VALUE.",
)


def _verify(
    words: list[str],
    flags: dict[str, Any],
    trust: bool = typer.Option(
        False, "--trust", help="Run code that the bundle names (a model in a file), without naming it with --model."
    ),
    replay: float | None = typer.Option(
        None,
        "--replay",
        metavar="SHARE",
        help="Also run the bundle's attacks again on this share of its survivors, drawn at random: 0.1. The slow part.",
    ),
    scale: str | None = typer.Option(
        None,
        "--scale",
        metavar="TEXT",
        help="What the pixels of a file are in: 1, 255, 65535, -1..1, or as --normalize of eval has it. Found out where clear.",
    ),
    indices: str | None = typer.Option(
        None,
        "--indices",
        metavar="TEXT",
        help="Of which samples a file holds examples: 0,2,5, a file of numbers, or nearest.",
    ),
    signer: str | None = typer.Option(
        None,
        "--signer",
        metavar="KEY",
        help="Refuse a bundle unless this key signed it: a .pub file of ssh-keygen, a file of such lines, or the line.",
    ),
    sign: str | None = typer.Option(
        None, "--sign", metavar="KEY", help="Sign an accepted bundle with a private key in a file (extra sign)."
    ),
    json: bool = typer.Option(False, "--json", help="Print the verification as JSON, and nothing else."),
) -> int:
    """Recheck BUNDLE (a folder that eval --bundle wrote), or examples: a .safetensors, .npz, .npy, .pt file, or pictures.

    For a file name model, data, norm and eps as for eval. Exit code 1 where a bundle's claims do not hold.
    """
    if not words:
        raise UserError(
            "Name what to verify: robustdup verify BUNDLE, or robustdup verify FILE --model … --data … --eps ….",
            code="missing-argument",
        )
    place = Path(words[0])
    if not place.exists():
        raise UserError(f"There is no bundle or file {str(place)!r}.", code="missing-file")

    from robustdup import jobs
    from robustdup.evidence.signature import read_key, sign_bundle
    from robustdup.evidence.verification import Verification

    is_bundle = jobs.is_bundle(place)
    file, overrides = split_words(words[1:])
    given = build(EvalConfig, file, overrides, flags)
    if is_bundle:
        if scale is not None or indices is not None:
            raise UserError(
                "--scale and --indices are for files of examples; a bundle says it itself.", code="bad-option"
            )
        if sign is not None:  # what is wrong with the key is told before the work
            read_key(Path(sign))
        settings = given.model_dump(mode="json", exclude_unset=True)
        verification = jobs.verify_bundle(place, settings, trust=trust, again=_share(replay), signer=signer)
        if sign is not None and verification.accepted:
            key = sign_bundle(place, Path(sign))
            verification = verification.model_copy(update={"signature": "holds", "signed_by": key.key})
    else:
        if replay is not None:
            raise UserError("--replay is for bundles: a file of examples names no attacks.", code="bad-option")
        if signer is not None or sign is not None:
            raise UserError("--signer and --sign are for bundles; a file of examples is not signed.", code="bad-option")
        verification = jobs.verify_examples(place, given, scale=scale, indices=indices)
    if json:
        print(verification.model_dump_json(indent=2))
    else:
        _show(place, verification, own=isinstance(verification, Verification))
        if is_bundle:
            _show_signer(verification)
    return 0 if verification.accepted else 1


def _share(replay: float | None) -> float:
    if replay is not None and not 0 < replay <= 1:
        raise UserError(f"--replay takes a share of the survivors above 0 and up to 1, got {replay}.", code="bad-value")
    return replay or 0.0


def _by_part(fields: list[str]) -> list[str]:
    """Return the parts of a record that fields are in, with how many of each: record.data.split as 'data (1)'."""
    counts = Counter(re.split(r"[.\[]", field.removeprefix("record."))[0] for field in fields)
    return [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]


def _show_verdict(console: Console, place: Path, verification: Any) -> None:
    word = "[green]accepted" if verification.accepted else "[bold red]refused"
    console.print(
        f"{escape(str(place))}: {word}[/] ({escape(verification.about)}, {verification.n} samples, {verification.seconds:.1f} s)"
    )
    for problem in verification.problems[:MOST_PROBLEMS]:
        console.print(f"  [red]{escape(problem)}")
    if len(verification.problems) > MOST_PROBLEMS:
        console.print(f"  [red]and {len(verification.problems) - MOST_PROBLEMS} more (--json lists all)")


def _show(place: Path, verification: Any, *, own: bool) -> None:
    """Show what was found of an evaluation of our `own`, or of a kind of record that has no adversarial examples."""
    console = Console(soft_wrap=True, highlight=False)
    _show_verdict(console, place, verification)
    if verification.accepted or not own:
        console.print(f"  [bold]{escape(verification.headline())}[/]")
    for line in _findings(verification) if own else map(escape, verification.remarks()):
        console.print(f"  {line}")
    for title, text, fields in (
        ("rechecked here", RECHECKED, verification.rechecked),
        ("consistent", CONSISTENT, verification.consistent),
        ("only stated", STATED, verification.only_stated),
    ):
        if fields or not own:
            text = text if own else escape(", ".join(_by_part(fields)))
            console.print(f"  [bold]{title}[/] ({len(fields)} fields): [dim]{text}")


def _findings(verification: Any) -> Iterator[str]:
    """Yield what was found of adversarial examples, a line each."""
    clean, robust = 100 * verification.clean_accuracy, 100 * verification.robust_accuracy
    yield f"clean {clean:.2f}%, robust {robust:.2f}% with the examples in place: {verification.n_broken} examples hold"
    if verification.n_undecided:
        yield f"{verification.n_undecided} samples are undecided"
    if verification.violations:
        kinds = ", ".join(f"{name} {count}" for name, count in verification.violation_kinds.items())
        yield f"[yellow]{verification.violations} examples lie outside the threat model ({kinds}); projections were judged[/]"
    if verification.within_rounding:
        yield f"{verification.within_rounding} claims fail only within float32 rounding"
    if verification.n_replayed:
        yield (
            f"the stated attacks, run again here on {verification.n_replayed} of the survivors, drawn at random, broke "
            f"{verification.n_replayed_broken}"
        )
    yield from map(escape, verification.notes)


def _show_signer(verification: Any) -> None:
    """Say who signed a bundle: a signature says who states it, and proves nothing of what is stated."""
    from robustdup.evidence.signature import Signer

    if verification.signature == "none":
        text = "nobody signed it: who states it is not known"
    elif verification.signature == "not-checked":
        text = f"it is signed, and by whom was not checked: {how_to_install('robustdup[sign]')}"
    else:
        name = f" ({verification.signer})" if verification.signer else ""
        text = f"signed by {Signer(verification.signed_by).fingerprint}{name}"
    Console(soft_wrap=True, highlight=False).print(f"  {escape(text)}")


verify = with_flags(EvalConfig, _verify, only=USED, words=WORDS)
