"""Recipes that come with robustdup: YAML files for `eval`, `train` and `study`, in a clone and in an installed package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from robustdup.errors import UserError, unknown


def recipes_folder() -> Path:
    """Return the folder of the recipes: `robustdup/configs` in an installed package, `configs` beside it in a clone."""
    package = Path(str(files("robustdup")))
    return next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), package)


def recipes(kind: str = "") -> list[str]:
    """Return the names of the recipes in order, such as "study/quickstart"; only those of `kind` if it is given.

    Args:
        kind: "eval", "train" or "study"; all where empty.
    """
    folder = recipes_folder()
    files = sorted((folder / kind).rglob("*.yaml"))
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def recipe_path(name: str, kind: str = "") -> Path:
    """Return the file of a recipe.

    Args:
        name: A name that `recipes` lists, or its last part where one recipe alone (of that kind) is called so.
        kind: "eval", "train" or "study"; all where empty.

    Raises:
        UserError: unknown-recipe, with the nearest name; bad-value where several are called so.
    """
    known = recipes(kind)
    fitting = [recipe for recipe in known if name in (recipe, recipe.rpartition("/")[2])]
    if not fitting:
        raise unknown("recipe", name, known)
    if len(fitting) > 1 and name not in fitting:
        raise UserError(f"Several recipes are called {name!r}: {' and '.join(fitting)}.", code="bad-value")
    return recipes_folder() / f"{name if name in fitting else fitting[0]}.yaml"
