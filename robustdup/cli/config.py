"""`robustdup config`: the recipes that come with robustdup, for `eval`, `train` and `study`."""

from __future__ import annotations

from pathlib import Path

import typer

from robustdup.config.shipped import recipe_path, recipes
from robustdup.errors import UserError

app = typer.Typer(rich_markup_mode=None)

NAME = typer.Argument(help="A recipe, such as study/quickstart or quickstart.")


@app.callback()
def _group() -> None:
    """Recipes that come with robustdup."""


@app.command("list")
def list_command(kind: str = typer.Argument("", help="eval, train or study; all if not given.")) -> None:
    """List the recipes with what their first line says."""
    if kind not in ("", "eval", "train", "study"):
        raise UserError(f"There are recipes for eval, train and study, not for {kind!r}.", code="unknown-kind")
    for name in recipes(kind):
        first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip()
        print(f"{name:38} {first}")


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
