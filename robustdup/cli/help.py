"""Help that people can read: options in panels, the everyday ones first, and where to begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OTHER = "Other"
LIST = " <list[str]>"  # what typer says besides of an argument that may be given several times
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

WHERE_TO_BEGIN = """\
A first look:     robustdup eval                       built-in model and digits
Evaluate yours:   robustdup eval --model FILE.py:factory@weights.pt --data DATA
Train one:        robustdup train --data DATA --objective pgd_at --epochs 30
Duplicate data:   robustdup data duplicate DATA --dose 0.3 --to FOLDER
Find duplicates:  robustdup data detect DATA
All the rest:     robustdup -h, robustdup eval -h
                  https://github.com/robustdup/robustdup"""

HYPHEN = "\ue000"  # stands for a hyphen while lines are broken


# Newer typer carries a copy of click of its own: the bases are found through what typer exports.
_Formatter: Any = typer.Context.formatter_class
_Context: Any = TyperGroup.context_class


class _WholeWords(_Formatter):  # type: ignore[misc]
    """Help whose lines break between words alone: small-cnn stands whole, so that it can be copied."""

    def write_dl(self, rows: Sequence[tuple[str, str]], *options: Any, **more: Any) -> None:
        """Write terms and what they mean."""
        super().write_dl([(term, text.replace("-", HYPHEN)) for term, text in rows], *options, **more)

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", HYPHEN))

    def getvalue(self) -> str:
        """Return what was written."""
        text: str = super().getvalue()
        return text.replace(HYPHEN, "-")


class WholeWordsContext(_Context):  # type: ignore[misc]
    """The context of a command whose help breaks no word."""

    formatter_class = _WholeWords


class PanelCommand(TyperCommand):
    """A command whose help shows each option under its panel (`rich_help_panel`), in the order of the options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then a section a panel; options without a panel come last."""
        panels: dict[str, list[tuple[str, str]]] = {}
        arguments: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append((record[0].removesuffix(LIST), record[1]))
            else:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or OTHER, []).append(record)
        others = panels.pop(OTHER, [])
        by_word = [tuple(row) for row in getattr(self.callback, "by_word", ())]
        parts = [("Arguments", arguments), *panels.items(), ("Written as KEY=VALUE", by_word)]
        for title, rows in (*parts, (OTHER if panels else "Options", others)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
