"""edgeopt report: what a run found, in the terminal and as one offline page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .common import json_option, print_json


@click.command(short_help="Show a run; rewrite its page.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=click.Path(path_type=Path), help="Another run: what differs is shown.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="With --against: write both as one offline page, a new .html file or an earlier such page.",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of run.json, which --json prints, and stop.")
@json_option
def report(run: Path | None, against: Path | None, out: Path | None, schema: bool, as_json: bool) -> int:
    """Show RUN (a folder of runs/) and write its report.html again; with --against, nothing but --out is written.

    \b
    Example:
      edgeopt report runs/smartwatch-activity
      edgeopt report runs/smartwatch-activity --against runs/before
      edgeopt report runs/smartwatch-activity --against runs/before --out two-runs.html
      edgeopt report --schema
    """
    if out is not None and against is None:
        raise ConfigError(
            f"--out {out}: it is for a page of two runs; name the other run with --against, or leave --out away: the "
            "page of one run is always runs/<name>/report.html"
        )
    if schema:
        from ..report import schema_text

        print_json(json.loads(schema_text()))
        return 0
    if run is None:
        raise ConfigError("report: name a folder that `edgeopt optimize` wrote, runs/<name>")
    document = _read(run)
    if against is not None:
        _show_against(document, _read(against), (str(run), str(against)), out, as_json)
        return 0
    from ..report import html

    page = html.write(document, run)
    if as_json:
        print_json(dict(document, report=str(page)))
        return 0
    from rich.console import Console

    from ..report import terminal

    terminal.render(document, Console(), run, full=True)
    return 0


def _show_against(
    first: dict[str, Any], second: dict[str, Any], names: tuple[str, str], out: Path | None, as_json: bool
) -> None:
    from ..report import against

    if out is not None:
        from ..report import against_page

        against_page.write(first, second, names, out)
    if as_json:
        written = {} if out is None else {"report": str(out)}
        print_json(against.differences(first, second, names) | written)
        return
    from rich.console import Console

    against.render(first, second, names, Console())
    if out is not None:
        click.echo(f"\nreport  {out}")


def _read(run: Path) -> dict[str, Any]:
    from ..cache import check_json
    from ..report import SCHEMA_VERSION

    path = run / "run.json"
    if not path.is_file():
        raise ConfigError(f"{run}: no run.json in it; name a folder that `edgeopt optimize` wrote, runs/<name>")
    document: dict[str, Any] = check_json(path)
    if document.get("schema") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: found schema {document.get('schema')!r}; this edgeopt reads schema {SCHEMA_VERSION}; show it "
            "with the edgeopt that wrote it, or run optimize again"
        )
    return document
