"""`robustdup doctor`: versions, devices, plugins found, plugins that failed and why, and what to run about it."""

from __future__ import annotations

import importlib.metadata
import json as json_module
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from robustdup.report.format import escape

CHECKS = "robustdup.doctor"


def doctor(
    json: bool = typer.Option(False, "--json", help="Print findings as JSON."),
    plugin: list[str] = typer.Option([], "--plugin", help="Plugin files to load, besides installed plugins."),  # noqa: B008
) -> int:
    """Look at the installation: exit code 1 where something needs to be done."""
    import torch

    from robustdup.plugins import load_plugins
    from robustdup.records import versions

    registry = load_plugins(plugin)
    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]
    checks = _checks()
    findings = {
        "versions": versions(("torchattacks", "art", "foolbox", "advlib", "robustbench")),
        "devices": devices,
        "plugins": [vars(status) for status in registry.plugins],
        "attacks": {"available": sum(a.available for a in registry.attacks.values()), "all": len(registry.attacks)},
        "checks": checks,
    }
    healthy = all(status.ok for status in registry.plugins) and all(check["ok"] for check in checks)
    if json:
        print(json_module.dumps(findings, indent=2))
    else:
        _show(findings)
    return 0 if healthy else 1


def _checks() -> list[dict[str, Any]]:
    """Run the checks that plugins offer: each a function that returns (ok, message, command) tuples."""
    results: list[dict[str, Any]] = []
    for point in importlib.metadata.entry_points(group=CHECKS):
        try:
            rows = list(point.load()())
        except Exception as error:  # a check that fails is a finding, not the end  # noqa: BLE001
            rows = [(False, f"The check {point.name} failed: {type(error).__name__}: {error}", "")]
        results += [
            {"name": point.name, "ok": bool(ok), "message": text, "command": command} for ok, text, command in rows
        ]
    return results


def _show(findings: dict[str, Any]) -> None:
    console = Console()
    console.print("Versions: " + ", ".join(f"{name} {version}" for name, version in findings["versions"].items()))
    console.print("Devices: " + escape(", ".join(findings["devices"])))
    table = Table("Plugin", "From", "Version", "State", header_style="bold")
    for status in findings["plugins"]:
        state = "[green]ok" if status["ok"] else f"[red]{escape(status['reason'])}"
        table.add_row(escape(status["name"]), escape(status["origin"]), status["version"], state)
    console.print(table)
    counts = findings["attacks"]
    console.print(f"Attacks: {counts['available']} of {counts['all']} can run (robustdup attacks list).")
    for check in findings["checks"]:
        mark = "[green]ok[/]" if check["ok"] else "[red]problem[/]"
        console.print(f"{mark} {escape(check['message'])}", soft_wrap=True, highlight=False)
        if not check["ok"] and check["command"]:
            console.print(f"   run: [bold]{escape(check['command'])}", soft_wrap=True, highlight=False)
