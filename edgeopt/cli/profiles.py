"""edgeopt profiles: list, show, check and explain device profiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from edgeopt import config, profile
from edgeopt.cli import complete
from edgeopt.errors import ConfigError

from .display import echo, echo_lines
from .document import print_json


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Of `list`: one JSON document on stdout.")
@click.pass_context
def profiles(context: click.Context, as_json: bool) -> None:
    """Device profiles: what is known of a board, and what is demanded of it. Without a command: `list`.

    \b
    Example:
      edgeopt profiles show raspberry-pi-4
    """
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"--json goes behind {context.invoked_subcommand}", context)


@profiles.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_(as_json: bool) -> None:
    """The profiles that come with edgeopt.

    \b
    Example:
      edgeopt profiles list --json
    """
    known = [profile.load(name) for name in profile.names()]
    if as_json:
        print_json({"profiles": [_summary(board) for board in known]})
        return
    rows = [(board.id, board.cpu.architecture, ",".join(board.runtimes), board.name) for board in known]
    rows.insert(0, ("profile", "architecture", "runtimes", "board"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    echo("The first runtime of a profile is its default; `edgeopt profiles show NAME` tells all of it.")


@profiles.command("show")
@click.argument("name_or_path", shell_complete=complete.profiles)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show(name_or_path: str, as_json: bool) -> None:
    """One profile, with the source of each figure. NAME_OR_PATH: a name from `list`, or a file ending in .toml.

    \b
    Example:
      edgeopt profiles show imx93-evk
    """
    board = profile.load(name_or_path)
    if as_json:
        print_json(board.dump())
        return
    for key, value in _flat(board.dump()):
        echo(f"{key} = {value}")


@profiles.command("check")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def check(paths: tuple[str, ...], as_json: bool) -> None:
    """Validate profile files; all problems of all files are listed. Exit code 2 if there are any.

    \b
    Example:
      edgeopt profiles check boards/*.toml
    """
    problems = {path: config.check_toml(path, profile.DeviceProfile)[1] for path in paths}
    if as_json:
        files = [
            {"file": path, "valid": not found, "problems": [dataclasses.asdict(problem) for problem in found]}
            for path, found in problems.items()
        ]
        print_json({"files": files})
    else:
        for path in (path for path, found in problems.items() if not found):
            echo(f"{path}: valid")
    if wrong := {path: found for path, found in problems.items() if found}:
        raise ConfigError("\n".join(config.report(path, found) for path, found in wrong.items()))


@profiles.command("keys")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def keys(as_json: bool) -> None:
    """What a profile file may contain, key by key.

    \b
    Example:
      edgeopt profiles keys
    """
    if as_json:
        print_json({"keys": [dataclasses.asdict(key) for key in config.keys(profile.DeviceProfile)]})
    else:
        echo_lines(config.explain(profile.DeviceProfile))


def _summary(board: profile.DeviceProfile) -> dict[str, Any]:
    return {
        "id": board.id,
        "name": board.name,
        "description": board.description,
        "architecture": board.cpu.architecture,
        "runtimes": list(board.runtimes),
        "npu": board.npu.model.value if board.npu else None,
    }


def _flat(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and text of every leaf; a sourced figure is one leaf, and an absent key says so."""
    if isinstance(data, dict) and "source" in data and "value" in data:
        note = f"; {data['note']}" if data["note"] else ""
        return [(prefix, f"{config.show(data['value'])}   ({data['source']}{note})")]
    if isinstance(data, dict):
        return [leaf for key, value in data.items() for leaf in _flat(value, f"{prefix}.{key}".lstrip("."))]
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return [leaf for index, item in enumerate(data) for leaf in _flat(item, f"{prefix}[{index}]")]
    return [(prefix, "not stated" if data is None else config.show(data))]
