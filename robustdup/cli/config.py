"""`robustdup config`: the recipes that come with robustdup, for `eval`, `train` and `study`."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import typer
from rich.padding import Padding

from robustdup.cli.plugged import PluggedGroup
from robustdup.config.shipped import recipe_path, recipes
from robustdup.errors import UserError
from robustdup.report.format import escape
from robustdup.report.terminal import console

app = typer.Typer(rich_markup_mode=None, cls=PluggedGroup)

NAME = typer.Argument(help="A recipe, such as study/quickstart or quickstart.")


@app.callback()
def _group() -> None:
    """Recipes that come with robustdup."""


@app.command("list", short_help="List the recipes.")
def list_command(kind: str = typer.Argument("", help="eval, train or study; all if not given.")) -> None:
    """List the recipes with the first sentence of what they say of themselves."""
    if kind not in ("", "eval", "train", "study"):
        raise UserError(f"There are recipes for eval, train and study, not for {kind!r}.", code="unknown-kind")
    out = console(wide=True)
    for name in recipes(kind):
        out.print(name, markup=False)
        out.print(Padding(escape(_first_sentence(recipe_path(name))), (0, 0, 0, 4)), soft_wrap=False)


def _first_sentence(recipe: Path) -> str:
    """Return the first sentence of the comment at the head of a recipe."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("# ") and not line.startswith("#  "), lines)
    return re.split(r"(?<=[.?])\s", " ".join(line[2:] for line in head), maxsplit=1)[0]


@app.command("show")
def show_command(name: str = NAME) -> None:
    """Print a recipe."""
    print(recipe_path(name).read_text(encoding="utf-8"), end="")


@app.command("copy")
def copy_command(
    name: str = NAME, to: str = typer.Argument("", help="File to write; the recipe's own name here if not given.")
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    recipe = recipe_path(name)
    place = Path(to or recipe.name)
    place = place / recipe.name if place.is_dir() else place
    if place.exists():
        raise UserError(
            f"{str(place)!r} is there already. Choose another name; nothing is overwritten.", code="not-empty"
        )
    place.write_bytes(recipe.read_bytes())
    print(place)
