"""edgeopt report: what a run found, in the terminal and as one offline page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .common import json_option, print_json


@click.command(short_help="What a run found, and its page again.")
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def report(run: Path, as_json: bool) -> int:
    """Show RUN (a folder of runs/) and write its report.html again.

    \b
    Example:
      edgeopt report runs/smartwatch-activity
    """
    document = _read(run)
    from ..report import html

    page = html.write(document, run)
    if as_json:
        print_json(dict(document, report=str(page)))
        return 0
    from rich.console import Console

    from ..report import terminal

    terminal.render(document, Console(), run)
    return 0


def _read(run: Path) -> dict[str, Any]:
    from ..cache import check_json

    path = run / "run.json"
    if not path.is_file():
        raise ConfigError(f"{run}: no run.json in it; name a folder that `edgeopt optimize` wrote, runs/<name>")
    document: dict[str, Any] = check_json(path)
    return document
