"""Write the pages of the reference that the program itself knows: command line, configuration, attacks, record.

uv run python docs/generate.py && uv run zensical build --strict
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"


def main() -> None:
    """Write the generated pages into docs/reference."""
    for name, text in (
        ("cli", command_line()),
        ("config", configuration()),
        ("attacks", attacks()),
        ("record", record()),
    ):
        (REFERENCE / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def command_line() -> str:
    """Return every command with its options, as `--help` shows them."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from robustdup.cli.main import app

    command: Any = get_command(app)
    context = typer.Context(command, info_name="robustdup")
    text = get_docs_for_click(obj=command, ctx=context, name="robustdup", title="Command line")
    # Brackets in a sentence are no link; those in code are left alone.
    return "\n".join(
        line if "`" in line or line.startswith("$") else line.replace("[", "\\[") for line in text.split("\n")
    )


def configuration() -> str:
    """Return the settings of each command: name, type, default, meaning."""
    from robustdup.config import EvalConfig
    from robustdup.config.training import TrainConfig

    lines = [
        "# Configuration", "",
        "A setting is a flag (`--batch-size 64`), `KEY=VALUE` on the command line, a line of a YAML file, or a keyword in",
        "Python. Flags win over `KEY=VALUE`, and both over the file. An unknown key is an error that names the nearest.", "",
    ]  # fmt: skip
    for command, model in (("eval", EvalConfig), ("train", TrainConfig)):
        lines += [f"## `robustdup {command}`", "", "| setting | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            shown = "" if default in (None, "", [], {}) else f"`{default}`"
            lines.append(f"| `{name}` | {shown} | {_cell(field.description or '')} |")
        lines.append("")
    return "\n".join(lines)


def attacks() -> str:
    """Return the table of all attacks that are registered here."""
    from robustdup import load_plugins

    lines = [
        "# Attacks", "",
        "What `robustdup attacks list` shows where every plugin is installed. *Cost* is forward and backward passes per sample",
        "that survives, at the default options.", "",
        "| attack | norms | access | cost | what it does |", "|---|---|---|---:|---|",
    ]  # fmt: skip
    for spec in load_plugins().attacks.values():
        name = f"[`{spec.name}`]({spec.url})" if spec.url.startswith("http") else f"`{spec.name}`"
        passes = spec.passes() if spec.available else None
        cost = "" if passes is None else f"{passes[0]:g}, {passes[1]:g}"
        about = spec.description if spec.available else f"*Cannot run here:* {spec.reason}"
        lines.append(f"| {name} | {', '.join(spec.norms)} | {spec.knowledge} | {cost} | {_cell(about)} |")
    return "\n".join(lines)


def record() -> str:
    """Return the fields of an evaluation's record, from its JSON schema."""
    from robustdup.records import EvaluationRecord

    schema = EvaluationRecord.model_json_schema()
    lines = [
        "# Record of an evaluation", "",
        "`record.json`, as `robustdup eval --json` prints it. Records of earlier versions are read and upgraded.", "",
        *_fields("Record", schema),
    ]  # fmt: skip
    for name, part in schema.get("$defs", {}).items():
        if "properties" in part:
            lines += _fields(name, part)
    return "\n".join(lines)


def _fields(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from (
        f"## {name}",
        "",
        _cell(schema.get("description", "")),
        "",
        "| field | type | meaning |",
        "|---|---|---|",
    )
    for field, content in schema["properties"].items():
        yield f"| `{field}` | {_type(content)} | {_cell(content.get('description', ''))} |"
    yield ""


def _type(content: dict[str, Any]) -> str:
    if "anyOf" in content:
        return " or ".join(dict.fromkeys(_type(each) for each in content["anyOf"]))
    if "$ref" in content:
        return str(content["$ref"]).rsplit("/", 1)[-1]
    if content.get("type") == "array":
        return f"list of {_type(content.get('items', {}))}"
    if "enum" in content or "const" in content:
        return ", ".join(f"`{value}`" for value in content.get("enum", [content.get("const")]))
    return str(content.get("type", "any"))


def _cell(text: str) -> str:
    """Return a text for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
