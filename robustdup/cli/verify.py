"""`robustdup verify`: recheck claimed adversarial examples by the referee alone, without running an attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from robustdup.cli.flags import split_words, with_flags
from robustdup.config import EvalConfig, build
from robustdup.errors import UserError


def _verify(
    words: list[str],
    flags: dict[str, Any],
    json: bool = typer.Option(False, "--json", help="Print what was found as JSON, and nothing else."),
) -> int:
    """Recheck BUNDLE (a folder that eval --bundle wrote) or a FILE of examples (.safetensors, .npz, .npy, .pt).

    For a file name model, data, norm and eps as for eval. Exit code 1 where a bundle's claims do not hold.
    """
    if not words:
        raise UserError(
            "Name what to verify: robustdup verify BUNDLE, or robustdup verify FILE --model … --data … --eps …."
        )
    place, rest = Path(words[0]), words[1:]
    if not place.exists():
        raise UserError(f"There is no bundle or file {str(place)!r}.")

    from robustdup import jobs

    file, overrides = split_words(rest)
    given = build(EvalConfig, file, overrides, flags)
    if place.is_dir():
        found = jobs.verify_bundle(place, given.model_dump(mode="json", exclude_unset=True))
    else:
        found = jobs.verify_examples(place, given)
    if json:
        print(found.model_dump_json(indent=2))
    else:
        _show(place, found)
    return 0 if found.accepted else 1


def _show(place: Path, found: Any) -> None:
    console = Console(soft_wrap=True, highlight=False)
    word = "[green]accepted" if found.accepted else "[bold red]refused"
    console.print(
        f"{escape(str(place))}: {word}[/] ({found.threat.norm}, eps = {found.threat.eps_text}, {found.seconds:.1f} s)"
    )
    console.print(
        f"  {found.n} points, clean {100 * found.clean_accuracy:.2f}%, robust {100 * found.robust_accuracy:.2f}%: "
        f"{found.n_broken} examples hold"
    )
    if found.n_undecided:
        console.print(f"  {found.n_undecided} points are undecided")
    if found.violations:
        kinds = ", ".join(f"{name} {count}" for name, count in found.violation_kinds.items())
        console.print(
            f"  [yellow]{found.violations} examples lie outside the threat model ({kinds}); projections were judged"
        )
    if found.within_rounding:
        console.print(f"  {found.within_rounding} claims fail only within float32 rounding")
    for problem in found.problems:
        console.print(f"  [red]{escape(problem)}")


verify = with_flags(EvalConfig, _verify)
