"""The `robustdup` command: collects the commands and turns errors into messages and exit codes.

Exit codes: 0 done, 1 a run that failed, 2 a user's mistake, 3 a gate that failed, 130 interrupted (resumable).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import typer
from rich.console import Console
from typer.main import get_command

import robustdup
from robustdup.cli import attacks, config, data, leaderboard
from robustdup.cli.certify import certify_command
from robustdup.cli.compare import compare
from robustdup.cli.doctor import doctor
from robustdup.cli.eval import eval_command
from robustdup.cli.gate import gate
from robustdup.cli.help import CONTEXT, WHERE_TO_BEGIN, PanelCommand
from robustdup.cli.plot import plot
from robustdup.cli.plugged import PluggedGroup
from robustdup.cli.report import report
from robustdup.cli.train import train_command
from robustdup.cli.verify import verify
from robustdup.errors import RobustdupError, UserError, error_text, plain
from robustdup.plugins.exits import Exit, no_exits
from robustdup.report.format import escape

# Newer typer carries a copy of click of its own: the base of all its errors is found through one that typer exports.
USAGE_ERRORS: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

COMPLETION = (["--install-completion"], ["--show-completion"])
COMPLETING = "_ROBUSTDUP_COMPLETE"  # a variable that a shell sets to ask for the words that may come next
LONGEST_MESSAGE = 4000  # letters of an error that are shown
TRACEBACK = "ROBUSTDUP_TRACEBACK"  # a variable of the environment

app = typer.Typer(
    name="robustdup",
    cls=PluggedGroup,
    help="How robust is this classifier really, and what did duplicated training data do to it?",
    context_settings=CONTEXT,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("eval", cls=PanelCommand, short_help="Attack a model, verify, say where it stands.")(eval_command)
app.command("train", cls=PanelCommand, short_help="Train a classifier, standard or adversarially.")(train_command)
app.add_typer(data.app, name="data", help="Duplicates in datasets: put in, count, find.", no_args_is_help=True)
app.add_typer(attacks.app, name="attacks", help="List, show and check attacks.", no_args_is_help=True)
app.add_typer(leaderboard.app, name="leaderboard", help="RobustBench's published models.", no_args_is_help=True)
app.command("compare", short_help="Compare runs: paired difference, or a table.")(compare)
app.command("gate", short_help="Pass or fail a run: a drop, a minimum (for CI).")(gate)
app.command("verify", cls=PanelCommand, short_help="Recheck someone's adversarial examples.")(verify)
app.command("certify", cls=PanelCommand, short_help="Prove that samples have no adversarial example.")(certify_command)
app.command("report", short_help="Make pages for a browser from runs.")(report)
app.command("plot", short_help="Draw a figure for a paper.")(plot)
app.add_typer(config.app, name="config", help="Recipes that come with robustdup.", no_args_is_help=True)
app.command("doctor", short_help="Check versions, devices and plugins.")(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"robustdup {robustdup.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Say where to begin, where no command is given."""
    if context.invoked_subcommand is None:
        print(WHERE_TO_BEGIN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_app(app, arguments, "robustdup")


def run_app(app: typer.Typer, arguments: Sequence[str] | None, name: str) -> int:
    """Run a command line and return its exit code; errors are one message on standard error, without a traceback."""
    words = _resume_without_value(list(sys.argv[1:] if arguments is None else arguments))
    try:
        _check_text(words)
        with no_exits():
            result = _command(app)(words, prog_name=name, standalone_mode=False)
    except USAGE_ERRORS as error:
        error.show()
        return 2
    except RobustdupError as error:
        _say(plain(error, LONGEST_MESSAGE, lines=True))
        return 2 if isinstance(error, UserError) else 1
    except (KeyboardInterrupt, typer.Abort):
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (SystemExit, Exit) as error:
        if isinstance(error.__context__, BrokenPipeError):  # click ends the program where nobody reads on: | head
            return 0
        if words[:1] in COMPLETION or COMPLETING in os.environ:  # typer ends the program when that is done
            return int(getattr(error, "code", 0) or 0)
        # of a stranger's code: robustdup itself returns its exit code
        _say(f"A model, plugin or data source wanted to end the program ({error_text(error)}). Nothing was finished.")
        return 1
    except OSError as error:  # a folder that may not be read, a name that is too long
        _say(plain(error, LONGEST_MESSAGE))
        return 1
    except MemoryError:
        _say("Out of memory. Take fewer images (--n), smaller ones (--resize), or smaller options.")
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _say(f"{error_text(error)}. This was not foreseen: {TRACEBACK}=1 shows where it comes from; please report it.")
        return 1
    return result if isinstance(result, int) else 0


def _check_text(words: Sequence[str]) -> None:
    """Raise UserError for what no file may be called and no record can hold: NUL, and bytes that are no text."""
    for word in words:
        if "\0" in word or (not word.isascii() and word.encode(errors="ignore").decode() != word):
            raise UserError(
                f"The argument {plain(word, 60)!r} holds a NUL, or bytes that are no UTF-8 text. Rename the file that it names.",
                code="bad-text",
            )


@cache
def _command(app: typer.Typer) -> Any:
    """Return what a command line is parsed by: making it from the signatures of all commands takes a tenth of a second."""
    return get_command(app)


def _say(message: str) -> None:
    """Print an error in one piece: a long one is not wrapped, which takes minutes where it has no spaces."""
    Console(stderr=True, soft_wrap=True).print("[bold red]Error:[/] " + escape(message), highlight=False)


def _resume_without_value(words: list[str]) -> list[str]:
    """Let `--resume` stand alone: then it means the folder of --out, or the latest unfinished run."""
    for place, word in enumerate(words):
        if word == "--resume" and (
            place + 1 == len(words) or words[place + 1].startswith("-") or "=" in words[place + 1]
        ):
            words[place] = "--resume="
    return words


def run() -> None:
    """Entry point of the installed script. What a stranger's code left for the end of the process changes no exit code."""
    code = main()
    at_end = no_exits()
    atexit.register(at_end.__enter__)  # what was registered last runs first, and before what strangers left
    sys.exit(code)
