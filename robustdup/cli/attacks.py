"""`robustdup attacks`: list what is registered, show one, test one, begin one, and make the conformance table."""

from __future__ import annotations

import inspect
import json as json_module
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.padding import Padding
from rich.table import Column, Table

from robustdup.cli.flags import JSON
from robustdup.cli.plugged import PluggedGroup
from robustdup.config import parse_value
from robustdup.errors import UserError, how_to_install, unknown
from robustdup.plugins import AttackSpec, Registry, Stage, load_plugins
from robustdup.plugins.specs import Kind, Knowledge
from robustdup.report.format import escape
from robustdup.report.terminal import console

app = typer.Typer(rich_markup_mode=None, cls=PluggedGroup)

WIDE = 120  # columns that the table of attacks needs

PLUGIN = typer.Option([], "--plugin", help="Plugin files to load, besides installed plugins.")


@app.command("list", short_help="List the attacks, and why one cannot run here.")
def list_attacks(
    norm: str | None = typer.Option(None, help="Only attacks in this norm: Linf, L2, L1, L0, L0-pixels."),
    kind: str | None = typer.Option(None, help="Only this kind: bounded, minimum-norm, unbounded."),
    knowledge: str | None = typer.Option(None, help="Only this: white-box, score-based, decision-based, transfer."),
    source: str | None = typer.Option(None, help="Only this source: native, torchattacks, art, foolbox, …"),
    available: bool = typer.Option(False, "--available/--all", help="Leave out those that cannot run here."),
    json: bool = JSON,
    plugin: list[str] = PLUGIN,
) -> int:
    """List the attacks, with the reason where one cannot run here, and the ensembles."""
    registry = load_plugins(plugin)
    specs = list(registry.attacks.values())
    norm = _chosen("norm", norm, ("Linf", "L2", "L1", "L0", "L0-pixels"))
    kind = _chosen("kind of attack", kind, typing.get_args(Kind))
    knowledge = _chosen("knowledge", knowledge, typing.get_args(Knowledge))
    source = _chosen("source", source, {spec.source for spec in specs})
    shown = [
        spec
        for spec in specs
        if (norm is None or norm in spec.norms)
        and (kind is None or kind == spec.kind)
        and (knowledge is None or knowledge == spec.knowledge)
        and (source is None or source == spec.source)
        and (spec.available or not available)
    ]
    if json:
        print(json_module.dumps([_listed(spec) for spec in shown], indent=2))
    else:
        _print_list(registry, shown)
    for status in registry.plugins:
        if not status.ok:
            print(f"Plugin {status.name} ({status.origin}) did not load: {status.reason}", file=sys.stderr)
    return 0


@app.command("show", short_help="Show an attack: what it is, options, defaults.")
def show_attack(name: str = typer.Argument(help="An attack or an ensemble."), json: bool = JSON,
                plugin: list[str] = PLUGIN) -> int:  # fmt: skip
    """Show one attack: what it is, its options with their defaults, and how to call it."""
    registry = load_plugins(plugin)
    stages = registry.stages(name)
    if name in registry.ensembles:
        ensemble = registry.ensembles[name]
        calls = [_stage_text(stage) for stage in stages]
        content = {"name": name, "description": ensemble.description, "url": ensemble.url, "stages": calls}
    else:
        content = _shown(registry.attacks[stages[0].attack])
    if json:
        print(json_module.dumps(content, indent=2))
    else:
        _print_shown(content)
    return 0


@app.command("check", short_help="Run the conformance test on an attack.")
def check(
    name: str = typer.Argument(help="An attack."),
    words: list[str] = typer.Argument(None, metavar="[KEY=VALUE ...]", help="Options of the attack."),  # noqa: B008
    norm: str | None = typer.Option(None, help="Only in this norm; all norms of the attack if not given."),
    seed: int = typer.Option(0, help="Seed of everything random."),
    json: bool = JSON,
    plugin: list[str] = PLUGIN,
) -> int:
    """Run the conformance test on an attack; exit code 1 where it does not keep the contract."""
    from robustdup.testing import check_attack
    from robustdup.testing.report import as_row

    registry = load_plugins(plugin)
    spec, options = registry.get_attack(name), _options(words or [])
    chosen = _chosen(f"norm of attack {name!r}", norm, spec.norms)
    norms: list[str | None] = [chosen] if chosen else list(spec.norms) or [None]
    reports = [check_attack(spec, norm=each, options=options, seed=seed, registry=registry) for each in norms]
    if json:
        print(json_module.dumps([as_row(report) for report in reports], indent=2))
    for report in [] if json else reports:
        _print_report(report)
    return 0 if all(report.ok for report in reports) else 1


@app.command("new", short_help="Write a package with an attack of your own.")
def new_attack(
    name: str = typer.Argument(help="The name of the attack: small letters, digits and hyphens."),
    to: str = typer.Option("", "--to", help="Folder of the package; robustdup-NAME here if not given."),
) -> int:
    """Write a package with an attack of your own, its registration and its tests, ready to be changed."""
    from robustdup.plugins.scaffold import new_package

    folder = to or f"robustdup-{name}"
    for path in new_package(name, folder):
        print(path)
    print(f"Next: {how_to_install('-e', str(folder))}")
    print(f"Then: robustdup attacks check {name}")
    return 0


@app.command("table", short_help="Run the conformance test on all attacks.")
def table(
    source: list[str] = typer.Option([], help="Only these sources."),  # noqa: B008
    markdown: bool = typer.Option(False, "--markdown", help="Print Markdown, for a README."),
    workers: int = typer.Option(2, help="Worker processes, of one thread each.", min=1),
    seconds: float = typer.Option(180.0, help="Time limit of one attack in one norm."),
    out: Path | None = typer.Option(None, help="Keep results in this JSON file; those in it are not run again."),  # noqa: B008
    json: bool = JSON,
    plugin: list[str] = PLUGIN,
) -> int:
    """Run the conformance test on all attacks of all sources and print a table per toolkit."""
    from robustdup.records import write_atomic
    from robustdup.testing import pairs, survey
    from robustdup.testing.report import summarise

    registry = load_plugins(plugin)
    for each in source:
        _chosen("source", each, {spec.source for spec in registry.attacks.values()})
    specs = [spec for spec in registry.attacks.values() if not source or spec.source in source]
    kept = _read_reports(out)
    have = {(report.attack, report.norm) for report in kept}
    todo = [pair for pair in pairs(registry, [spec.name for spec in specs]) if (pair[0], pair[1] or "L2") not in have]

    def keep(report: Any) -> None:
        kept.append(report)
        if out is not None:
            write_atomic(out, _reports_text(kept).encode())
        if sys.stderr.isatty():
            print(f"{len(kept)}/{len(todo) + len(have)} {report.attack} {report.norm}", file=sys.stderr)

    survey(todo, files=plugin, workers=workers, seconds=seconds, report=keep)
    rows = [summarise(spec, kept) for spec in specs]
    if json:
        print(json_module.dumps(rows, indent=2))
    elif markdown:
        print(markdown_table(rows))
    else:
        _print_table(rows)
    return 0


def call_text(name: str, options: Mapping[str, Any]) -> str:
    """Return an attack with options as `--attacks` reads it: pgd(steps=40, loss=ce)."""
    inside = ", ".join(f"{key}={_plain(value)}" for key, value in options.items())
    return f"{name}({inside})" if inside else name


def _stage_text(stage: Stage) -> str:
    """Return a stage in words: its call, which samples it takes, in which norms and when it runs."""
    limits = [
        f"on the {stage.take:.0%} of survivors nearest to the boundary" if stage.take < 1 else "",
        f"in {' and '.join(stage.norms)}" if stage.norms else "",
        {"masked": "only on signs of gradient masking", "blind": "only where nothing got through a mask"}.get(
            stage.when, ""
        ),
    ]
    text = ", ".join(filter(None, limits))
    return call_text(stage.attack, stage.options) + (f"  [{text}]" if text else "")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return counts per source, and below each attack that does not run or is not demonstrated, with its reason."""
    lines = ["| toolkit | attacks | run | conform | demonstrated |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(map(str, counts))} |" for counts in _counts(rows)]
    missing = [row for row in rows if not row["demonstrated"] or row["not_conforming"]]
    if missing:
        lines += ["", "| not demonstrated, or not conforming | what was seen |", "|---|---|"]
        lines += [f"| {row['name']} | {_cell(_why(row))} |" for row in missing]
    return "\n".join(lines)


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int, int, int]]:
    def count(source: str, column: str) -> int:
        return sum(bool(row[column]) for row in rows if row["source"] == source)

    sources = dict.fromkeys(row["source"] for row in rows)
    return [
        (source, count(source, "name"), *(count(source, column) for column in ("runs", "conforms", "demonstrated")))
        for source in sources
    ]  # type: ignore[misc]


def _why(row: Mapping[str, Any]) -> str:
    state = "" if row["runs"] else "does not run: "
    return "; ".join(filter(None, [state + row["reason"] if row["reason"] else "", row["not_conforming"]]))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _chosen(noun: str, value: str | None, allowed: Iterable[str]) -> str | None:
    """Return the allowed spelling of `value`, whatever its case. Raises UserError with the nearest one."""
    by_lower = {word.lower(): word for word in allowed}
    if value is not None and value.lower() not in by_lower:
        raise unknown(noun, value, by_lower.values())
    return by_lower[value.lower()] if value is not None else None


def _options(words: Sequence[str]) -> dict[str, Any]:
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(
                f"{word!r} is not an option of the attack. Write KEY=VALUE, such as steps=10.", code="bad-option"
            )
        options[key.strip()] = parse_value(value)
    return options


def _listed(spec: AttackSpec) -> dict[str, Any]:
    names = ("name", "source", "norms", "kind", "knowledge", "batching", "available", "reason",
             "undemonstrated", "warning", "description", "url")  # fmt: skip
    return {name: list(spec.norms) if name == "norms" else getattr(spec, name) for name in names}


def _shown(spec: AttackSpec) -> dict[str, Any]:
    options = {}
    for name, parameter in spec.parameters.items():
        kind = parameter.annotation if parameter.annotation is not parameter.empty else type(parameter.default)
        kind = "" if kind is type(None) else kind  # a toolkit's option without an annotation, left out by itself
        kind = kind if isinstance(kind, str) else inspect.formatannotation(kind)
        kind = re.sub(r"collections\.abc\.Callable(\[\[.*\], [\w.]+\])?", "function", kind)
        default = "required" if parameter.default is inspect.Parameter.empty else _plain(parameter.default)
        options[name] = {"default": default, "type": kind}
    try:
        cost = spec.passes(spec.quick if any(v["default"] == "required" for v in options.values()) else None)
    except (KeyError, TypeError):  # a cost that needs an option which has no default
        cost = None
    return {**_listed(spec), "passes": None if cost is None else list(cost), "options": options,
            "call": f"robustdup eval --attacks '{call_text(spec.name, _example(spec))}'"}  # fmt: skip


def _example(spec: AttackSpec) -> dict[str, Any]:
    """One option at its default, and all that have none, so that the call shows how options are written."""
    needed = {name: spec.quick.get(name, "…") for name, p in spec.parameters.items() if p.default is p.empty}
    plain = {name: value for name, value in spec.defaults.items() if isinstance(value, int | float | str)}
    return needed or dict(list(plain.items())[:1])


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _print_list(registry: Registry, specs: Sequence[AttackSpec]) -> None:
    """Print attacks as a table; on terminals in which columns would break words, each as its name with what it is below."""
    out = console(wide=True)
    columns = (Column(title, no_wrap=True) for title in ("attack", "norms", "kind", "knowledge", "batching"))
    grid = Table(*columns, Column("", overflow="fold"), box=None, pad_edge=False)
    for spec in specs:
        traits = " ".join(spec.norms), spec.kind, spec.knowledge, spec.batching
        grid.add_row(escape(spec.name), *traits, _about(spec))
        if out.width < WIDE:
            out.print(f"[bold]{escape(spec.name)}[/]  {', '.join(traits)}")
            out.print(Padding(_about(spec), (0, 0, 0, 4)), soft_wrap=False)
    if out.width >= WIDE:
        out.print(grid, soft_wrap=False)
    able = sum(spec.available for spec in specs)
    out.print(f"\n{len(specs)} attacks, {able} can run here.\n\nEnsembles:")
    for ensemble in registry.ensembles.values():
        out.print(f"  {escape(ensemble.name)}: {escape(ensemble.description)}")


def _about(spec: AttackSpec) -> str:
    text = escape(spec.description) if spec.available else f"[yellow]cannot run here:[/] {escape(spec.reason)}"
    return text + (f" [yellow]({escape(spec.warning)})[/]" if spec.warning else "")


def _print_shown(content: Mapping[str, Any]) -> None:
    out = console()
    for key, value in content.items():
        if key in ("options", "stages") or value in (None, "", []):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list) else _plain(value)
        if key == "passes":
            text = f"{value[0]:g} forward, {value[1]:g} backward for a surviving sample, at these defaults"
        out.print(f"[bold]{key}[/]: {escape(text)}")
    if content.get("options"):
        grid = Table("option", "default", "type", box=None, pad_edge=False)
        for name, option in content["options"].items():
            grid.add_row(escape(name), escape(option["default"]), escape(option["type"]))
        out.print()
        out.print(grid, soft_wrap=False)
    for number, stage in enumerate(content.get("stages", []), start=1):
        out.print(f"  {number}. {escape(stage)}")


def _print_report(report: Any) -> None:
    out = console()
    state = "[green]conforms[/]" if report.ok else "[red]does not conform[/]"
    out.print(f"[bold]{escape(report.attack)}[/] in {report.norm}: {state}")
    for finding in report.findings:
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        out.print(f"  {mark} {finding.code:<14} {escape(finding.message)}")
    if report.n:
        mark = "[green]demonstrated[/]" if report.demonstrated else "[yellow]not demonstrated[/]"
        out.print(f"  {mark}: {escape(report.evidence)}")
        passes = f"{report.forward_passes} forward and {report.backward_passes} backward passes"
        out.print(f"  {report.seconds:.2f} s, {passes} on {report.n} samples\n")


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    numbers = (Column(title, justify="right") for title in ("attacks", "run", "conform", "demonstrated"))
    out, grid = console(), Table("toolkit", *numbers, box=None, pad_edge=False)
    for counts in _counts(rows):
        grid.add_row(*map(str, counts))
    out.print(grid, soft_wrap=False)
    for row in rows:
        if not row["demonstrated"] or row["not_conforming"]:
            out.print(f"{escape(row['name'])}: {escape(_why(row))}")


def _read_reports(path: Path | None) -> list[Any]:
    from robustdup.testing.report import from_row

    if path is None or not path.exists():
        return []
    try:
        return [from_row(row) for row in json_module.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{str(path)!r} does not hold conformance results ({error}). Give --out another file.", code="bad-file"
        ) from None


def _reports_text(reports: Sequence[Any]) -> str:
    from robustdup.testing.report import as_row

    return json_module.dumps([as_row(report) for report in reports], indent=1) + "\n"
