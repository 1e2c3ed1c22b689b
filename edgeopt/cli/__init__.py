"""The command line. Commands are imported on use, and what is heavy only inside them, so `--help` is instant."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import re
import sys
import traceback
from typing import Any

import click

from .. import disk
from ..errors import AgentFailure, ConfigError, EdgeoptError
from . import heartbeat, terminal
from .display import echo_lines, echo_message
from .document import keep_stdout, print_json

INTERRUPTED = 130
OUR_FAULT = 70
COMMANDS = {  # its file, and what it does, which --help tells without reading that file
    "init": ("init", "Write a commented run file from a model and data."),
    "optimize": ("optimize", "Find the best artifact of a model for a board."),
    "bench": ("bench", "Latency and memory of one model on a board."),
    "compare": ("bench", "Two models in one job, in alternating blocks."),
    "load": ("load", "Throughput, latency under random arrivals, slow inputs."),
    "power": ("power", "Joules of one inference, by a power sensor or a meter."),
    "diagnose": ("diagnose", "Why a board answers wrongly, and in which layer."),
    "flash": ("release", "Make a bundle's release current on a board."),
    "validate": ("release", "Judge the current release: accuracy, latency, budgets."),
    "rollback": ("release", "Return to the release before."),
    "status": ("release", "What is current, is it whole, what is before it."),
    "convert": ("tools", "Convert a model for a runtime, and compare with the source."),
    "quantize": ("tools", "Make a model int8 with the ranges of real samples."),
    "prune": ("tools", "Remove channels, recover by distillation, convert."),
    "bundle": ("tools", "Any model file as a bundle that can be flashed."),
    "report": ("report", "Show a run; rewrite its page."),
    "profiles": ("profiles", "Device profiles: what is known of boards, with sources."),
    "device": ("device", "Boards by name: `--device NAME` then works everywhere."),
    "completion": ("completion", "Print the script for completion in bash, zsh or fish."),
}


class LazyGroup(click.Group):
    """Finds a command in the file that COMMANDS names."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            mend = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"{error.message} {mend}", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgeopt")
def cli() -> None:
    """Find the fastest, leanest artifact of a trained model that keeps its accuracy on your board; prove it there,
    flash it safely, and go back when it is worse.

    \b
    Example:
      edgeopt optimize watch --device ssh://pi@raspberrypi --profile raspberry-pi-4
      edgeopt flash runs/watch/watch.edgeopt --device ssh://pi@raspberrypi

    \b
    Exit codes: 0 pass, 2 usage or configuration, 3 board unreachable, 4 the board's side refused or failed,
    5 integrity or host key, 6 model, plan or missing package, 10 verdict fail, 11 verdict undecided,
    70 our fault, 130 interrupted. Of several boards the worst counts: 5 before 4, 3, 6, 2, 10, 11 and 0.
    """


def main() -> None:
    """The console script: every error becomes one message and one exit code here, and only here."""
    terminal.prepare()
    with heartbeat.beating(" ".join(["edgeopt", *sys.argv[1:2]])):
        _run()


def _run() -> None:
    as_json = "--json" in sys.argv[1:]
    _show_in_any_locale()
    if as_json and not {"-h", "--help"} & set(sys.argv):
        keep_stdout()
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()  # a full disk behind a redirected output is told here, and not by the interpreter's end
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        goes_on = "; the same command continues where it was" if "optimize" in sys.argv[1:2] else ""
        _fail(f"interrupted{goes_on}", INTERRUPTED, "interrupted", as_json)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        echo_lines(told.getvalue().rstrip("\n"), err=True)
        _fail(None, 2, type(error).__name__, as_json, error.format_message())
    except EdgeoptError as error:
        if isinstance(error, AgentFailure) and error.traceback and os.environ.get("EDGEOPT_DEBUG"):
            echo_lines(error.traceback, err=True)
        _fail(_from_a_clone(str(error)), error.exit_code, type(error).__name__, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left
        sys.exit(1)
    except Exception as error:
        refused = disk.problem(error) if isinstance(error, OSError) else None
        if refused is not None:
            _fail(refused, ConfigError.exit_code, type(error).__name__, as_json)
        echo_lines(traceback.format_exc(), err=True)
        _fail(
            f"this is a fault of edgeopt: {type(error).__name__}: {error}; please report the lines above",
            OUR_FAULT,
            type(error).__name__,
            as_json,
        )


def _show_in_any_locale() -> None:
    """What a terminal's encoding has no sign for is shown as ?, and never ends a command whose work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _from_a_clone(message: str) -> str:
    """`pip install 'edgeopt[extra]'` finds nothing where edgeopt was installed from its own folder."""
    extras = re.search(r"pip install 'edgeopt(\[[\w,]+\])'", message)
    return f"{message} (from edgeopt's own folder: pip install '.{extras[1]}')" if extras else message


def _fail(message: str | None, code: int, kind: str, as_json: bool, text: str | None = None) -> None:
    if message is not None:
        echo_message(f"edgeopt: {message}")
    if as_json:
        document: dict[str, Any] = {"error": {"kind": kind, "message": message or text}, "exit_code": code}
        print_json(document)
    sys.exit(code)
