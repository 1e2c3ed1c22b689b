"""edgeopt init: a commented run file from a look at the model and the data."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import visible
from ..errors import ConfigError
from . import complete
from .common import json_option, print_json
from .display import echo, echo_message

if TYPE_CHECKING:
    from ..scaffold import Draft, Unclear, Wanted

SHOWN = 8


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--model", help="package.module:factory, a function that returns the torch module; or an .onnx file.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="An .npz of arrays, a folder with one sub-folder of pictures or sounds per class, or a CSV file.",
)
@click.option("--profile", help="Profile of the board: a name or a .toml.", shell_complete=complete.profiles)
@click.option(
    "--device",
    help='The board: "local", "ssh://[user@]host[:port]", or a name from `edgeopt device list`.  [default: local]',
    shell_complete=complete.devices,
)
@click.option("--inputs", multiple=True, help="Array that is an input; repeat it in the model's order.")
@click.option("--labels", help="Array, or column of the CSV file, that holds the labels.")
@click.option("--groups", help="As --labels, of groups: subjects, speakers, sites. No group is in two splits.")
@json_option
def init(folder: Path, as_json: bool, **flags: Any) -> int:
    """Write FOLDER/edgeopt.toml (default: here), each key commented and optional keys commented out.

    Looks into the data to choose inputs, labels, groups and splits, and asks on a terminal for what is not given.
    What a look cannot tell is listed, to be checked. An existing run file is never replaced.

    \b
    Example:
      edgeopt init watch --model watch_model:load --data watch/data.npz --profile raspberry-pi-4
      edgeopt init pictures --model pictures/model.onnx --data pictures/labels.csv --profile generic-linux
    """
    from .. import scaffold

    scaffold.require_free(folder)
    device = flags.pop("device") or "local"
    wanted = scaffold.Wanted(**{**flags, "inputs": tuple(flags["inputs"])}, device=device)
    if wanted.profile is None:
        wanted = dataclasses.replace(wanted, profile=_profile_of(device))
    may_ask = sys.stdin.isatty() and not as_json
    if missing := scaffold.missing(wanted):
        if not may_ask:
            raise ConfigError(
                f"init: {', '.join(missing)} must be given where there is no terminal to ask on; "
                f"{_what_is_there(folder)}"
            )
        wanted = _asked(folder, wanted)
    wanted, draft = _drafted(folder, wanted, may_ask)
    path = scaffold.write(folder, draft)
    next_command = f"edgeopt optimize {shlex.quote(str(folder))} --show-plan"
    if as_json:
        print_json(
            {"file": str(path), "chosen": _plain(draft.chosen), "check": list(draft.check), "next": next_command}
        )
        return 0
    _show(path, draft, next_command)
    return 0


def _drafted(folder: Path, wanted: Wanted, may_ask: bool) -> tuple[Wanted, Draft]:
    """Asks for a name as often as the look at the data leaves one open."""
    from .. import scaffold

    while True:
        try:
            return wanted, scaffold.draft(folder, wanted)
        except scaffold.Unclear as error:
            if not may_ask:
                raise
            wanted = _settled(wanted, error)


def _settled(wanted: Wanted, error: Unclear) -> Wanted:
    echo_message(error)
    field = error.flag.lstrip("-")
    if field == "inputs":
        text = _prompt("Inputs, with commas between them", ",".join(error.choices))
        return dataclasses.replace(wanted, inputs=tuple(part.strip() for part in text.split(",")))
    chosen = click.prompt(
        f"{field.capitalize()} ({visible.line(', '.join(error.choices))})",
        type=click.Choice(list(error.choices)),
        show_choices=False,
        err=True,
    )
    return (
        dataclasses.replace(wanted, labels=chosen) if field == "labels" else dataclasses.replace(wanted, groups=chosen)
    )


def _asked(folder: Path, wanted: Wanted) -> Wanted:
    from .. import profile, scaffold

    if wanted.model is None:
        found = scaffold.models_in(folder) if folder.is_dir() else []
        wanted = dataclasses.replace(
            wanted, model=_ask("Model (module:factory of a torch module, or an .onnx file)", found)
        )
    if wanted.data is None:
        data = [str(path) for path in scaffold.data_in(folder)]
        wanted = dataclasses.replace(
            wanted, data=Path(_ask("Data (.npz, CSV file, or folder with a sub-folder per class)", data))
        )
    if wanted.profile is None:
        names = profile.names()
        known = "generic-linux" if "generic-linux" in names else names[0]
        wanted = dataclasses.replace(wanted, profile=_ask("Profile of the board", [known, *names]))
    return wanted


def _ask(question: str, found: Sequence[str]) -> str:
    """What was found is shown, and the first of it is the default."""
    choices = list(dict.fromkeys(found))
    if len(choices) > 1:
        more = f", and {len(choices) - SHOWN} more" if len(choices) > SHOWN else ""
        echo(f"Found: {', '.join(choices[:SHOWN])}{more}", err=True)
    return _prompt(question, choices[0] if choices else None)


def _prompt(question: str, default: str | None) -> str:
    shown = f" [{visible.line(default)}]" if default else ""
    answer: str = click.prompt(f"{question}{shown}", default=default, show_default=False, err=True)
    return answer


def _profile_of(device: str) -> str | None:
    """The profile that a known board was added with."""
    if device == "local" or "://" in device:
        return None
    from ..device import registry

    return registry.get(device).profile


def _what_is_there(folder: Path) -> str:
    from .. import scaffold

    if not folder.is_dir():
        return f"{folder} is not there yet"
    models, data = scaffold.models_in(folder), list(map(str, scaffold.data_in(folder)))
    return f"found in {folder}: models {', '.join(models) or 'none'}; data {', '.join(data) or 'none'}"


def _plain(chosen: dict[str, Any]) -> dict[str, Any]:
    """Without the schema that [task.prepare] is written from."""
    return {key: value["values"] if key == "task.prepare" else value for key, value in chosen.items()}


def _show(path: Path, draft: Draft, next_command: str) -> None:
    from ..scaffold.text import toml

    echo(f"{path} is written:")
    chosen = _plain(draft.chosen)
    for key, value in chosen.items():
        if key.startswith(("model.", "task.", "splits.", "device.")) and key != "splits.seed":
            echo(f"  {key:<20} {toml(value)}")
    for line in draft.check:
        echo(f"check: {line}")
    echo(f"next: {next_command}")
