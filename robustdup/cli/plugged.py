"""Commands that plugins bring: found where they are asked for, so that robustdup's own commands start without plugins."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from robustdup.cli.help import PanelCommand, WholeWordsContext
from robustdup.errors import UserError, missing_plugin
from robustdup.plugins import CommandSpec, load_plugins
from robustdup.plugins.options import resolved

# Of commands that are called otherwise than their plugin.
PLUGINS = dict.fromkeys(("export", "submit", "refresh"), "publish")


@cache
def plugged() -> dict[tuple[str, ...], CommandSpec]:
    """Return the commands of installed plugins, by their words."""
    return load_plugins().commands


class PluggedGroup(TyperGroup):
    """A group of commands to which plugins add: `robustdup mine`, or `robustdup data mine`."""

    context_class = WholeWordsContext

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of this group's own commands, then those of plugins."""
        place = self._place(ctx)
        own: list[str] = super().list_commands(ctx)
        return own + [words[-1] for words in sorted(plugged()) if words[:-1] == place and words[-1] not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name: robustdup's own, or a plugin's."""
        command = super().get_command(ctx, cmd_name)
        if command is None and (spec := plugged().get((*self._place(ctx), cmd_name))) is not None:
            command = _as_command(spec)
        if command is None and not ctx.resilient_parsing and (error := self._elsewhere(ctx, cmd_name)) is not None:
            raise error
        if command is not None:
            command.context_class = WholeWordsContext
        return command

    def _elsewhere(self, ctx: Any, name: str) -> UserError | None:
        """Return the error for a command of a plugin that is not installed, or of a group (`rank`); None for any other."""
        if (missing := _not_installed(name)) is not None or self._place(ctx):
            return missing
        groups = {
            group: command.commands for group, command in self.commands.items() if isinstance(command, TyperGroup)
        }
        homes = [(group, name) for group, commands in groups.items() if name in commands]
        homes += [words for words in plugged() if len(words) == 2 and words[1] == name]
        if not homes:
            return None
        meant = " or ".join(" ".join(["robustdup", *words]) for words in sorted(homes))
        return UserError(f"No such command {name!r}. Write {meant}.", code="unknown-command")

    def _place(self, ctx: Any) -> tuple[str, ...]:
        """Return the words before this group's commands: () for robustdup itself.

        A context may be this group's own, or that of the group above, where documentation is made.
        """
        words: list[str] = [] if ctx.command is self else [str(self.name)]
        while ctx.parent is not None:
            words.insert(0, ctx.info_name)
            ctx = ctx.parent
        return tuple(words)


def _not_installed(name: str) -> UserError | None:
    """Return the error for the command of a plugin of ours that is not installed; None where there is no such."""
    plugin = PLUGINS.get(name, name)
    return None if any(each.name == plugin for each in load_plugins().plugins) else missing_plugin(plugin)


def _as_command(spec: CommandSpec) -> Any:
    target = resolved(spec.command)
    if isinstance(target, typer.Typer):
        command: Any = get_command(target)
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cls=PanelCommand)(target)
        command = get_command(app)
    command.name, command.short_help = spec.words[-1], spec.help
    if isinstance(command, TyperGroup):
        command.help, command.no_args_is_help = spec.help, True
    return command
