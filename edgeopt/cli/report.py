"""edgeopt report: what a run found, in the terminal and as one offline page."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .. import disk
from ..errors import ConfigError, IntegrityError
from ..report import KINDS, RUN, schema
from .common import json_option, print_json
from .display import echo, screen
from .prices import price_options


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=click.Path(path_type=Path), help="Another run: what differs is shown.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="With --against: write both as one offline page, a new .html file or an earlier such page; so, too, for a "
    "folder of --keep with watts or a sustained run. With --recompute: write what was computed again as JSON.",
)
@click.option(
    "--recompute",
    "again",
    is_flag=True,
    help="Compute every figure again from the run's raw samples and list what differs from run.json: exit code 5.",
)
@click.option(
    "--schema",
    "kind",
    type=click.Choice(KINDS),
    is_flag=False,
    flag_value=RUN,
    help="Print the JSON Schema of run.json, or of what that command prints with --json and keeps with --keep; stop.",
)
@price_options
@json_option
def report(
    run: Path | None,
    against: Path | None,
    out: Path | None,
    again: bool,
    kind: str | None,
    prices: dict[str, Any],
    as_json: bool,
) -> int:
    """Show RUN (a folder of runs/, or of --keep) and write a run's report.html again; with --against or --recompute,
    nothing but --out is written.

    \b
    Example:
      edgeopt report runs/smartwatch-activity
      edgeopt report runs/smartwatch-activity --against runs/before
      edgeopt report runs/smartwatch-activity --against runs/before --out two-runs.html
      edgeopt report runs/smartwatch-activity --recompute
      edgeopt report runs/smartwatch-activity --hardware-price 60 --life-years 5 --energy-price 0.30 --currency EUR
      edgeopt report warm --out warm.html
      edgeopt report --schema
      edgeopt report --schema power
    """
    if again and against is not None:
        raise ConfigError("--recompute and --against: give one; recompute each run alone")
    if kind is None and run is not None and _is_kept(run):
        if against is not None:
            raise ConfigError(f"--against: {run} is a folder of --keep; runs of `edgeopt optimize` stand side by side")
        return _recompute(None, run, out, as_json) if again else _show_kept(run, out, as_json)
    if out is not None and against is None and not again:
        raise ConfigError(
            f"--out {out}: it is for a page of two runs; name the other run with --against, or leave --out away: the "
            "page of one run is always runs/<name>/report.html"
        )
    if kind is not None:
        print_json(schema(kind))
        return 0
    if run is None:
        raise ConfigError("report: name a folder that `edgeopt optimize` wrote, runs/<name>")
    document = _read(run)
    if against is not None:
        other = _read(against)
        with _blamed({run: document, against: other}):
            _show_against(document, other, (str(run), str(against)), out, as_json)
        return 0
    if again:
        return _recompute(document, run, out, as_json)
    with _blamed({run: document}):
        return _show_run(document, run, prices, as_json)


@contextlib.contextmanager
def _blamed(runs: dict[Path, dict[str, Any]]) -> Iterator[None]:
    """Older versions wrote fewer keys, so run.json is read without all of them; where it could not be shown and lacks
    some, they are named. Raises IntegrityError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        from ..report import conform

        for run, document in runs.items():
            if wrong := conform.first(document, schema(), "run.json", whole=True):
                raise IntegrityError(
                    f"{run / 'run.json'} cannot be shown: {wrong}; show it with the edgeopt that wrote it"
                ) from error
        raise


def _show_run(document: dict[str, Any], run: Path, prices: dict[str, Any], as_json: bool) -> int:
    from ..report import html

    page = html.write(document, run)
    costs = _costs(document, prices)
    if as_json:
        print_json(dict(document, report=str(page), cost=costs))
        return 0
    from ..report import terminal

    terminal.render(document, screen(), run, full=True, costs=costs)
    return 0


def _costs(document: dict[str, Any], options: dict[str, Any]) -> dict[str, Any] | None:
    """By trial, what 1,000 runs cost; None where neither the profile nor an option names a price."""
    from ..cost import Prices, per_1000_runs
    from ..report.terminal import part

    prices = Prices.of(part(part(part(document, "plan"), "profile"), "cost"), options)
    if not prices.known():
        return None
    trials = [trial for trial in document.get("trials") or [] if trial and trial.get("latency")]
    return {trial["name"]: per_1000_runs(trial["latency"], trial.get("energy"), prices) for trial in trials}


def _is_kept(run: Path) -> bool:
    from .. import kept

    return kept.is_kept(run)


def _show_kept(run: Path, out: Path | None, as_json: bool) -> int:
    """As the command showed it; with `out` as a page, too, where something goes over time."""
    from .. import kept
    from ..report import joules, measured, under_load

    record, document = kept.read(run)
    if out is not None:
        _write_kept(record["command"], document, out)
    if as_json:
        print_json(document if out is None else dict(document, report=str(out)))
        return 0
    screens = {"load": under_load.render, "power": joules.render, "validate": measured.render_validation}
    screens.get(record["command"], measured.render_bench)(document, screen())
    if out is not None:
        echo()
        echo(f"report  {out}")
    return 0


def _write_kept(command: str, document: dict[str, Any], out: Path) -> None:
    from ..report import power_page, sustained_page

    if command == "power":
        power_page.write(document, out)
    elif any("sustained" in result for result in document.get("results", ())):
        sustained_page.write(document, out)
    else:
        raise ConfigError(
            f"--out {out}: pages are made of power, and of bench and compare with --mode sustained; this is a "
            f"{command} without curves"
        )


def _recompute(document: dict[str, Any] | None, run: Path, out: Path | None, as_json: bool) -> int:
    """document: of a run; None: a folder of --keep."""
    from .. import recompute

    if document is None:
        found, _ = recompute.of_kept(run)
        name = "document.json"
    else:
        found, name = recompute.recompute(document, run), "run.json"
    found = {"run": str(run), **found}
    if out is not None:
        if out.resolve().is_relative_to(run.resolve()):
            raise ConfigError(f"--out {out}: it is in the run's folder, which --recompute leaves as it is")
        disk.write(out, json.dumps(found, indent=1, allow_nan=False) + "\n")
    if as_json:
        print_json(found)
    else:
        _show_recomputed(found, name, _version(run / (name if document else "kept.json")))
    return IntegrityError.exit_code if found["differences"] or found["missing"] else 0


def _version(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")).get("edgeopt")


def _show_recomputed(found: dict[str, Any], name: str, edgeopt: Any) -> None:
    from rich.text import Text

    from ..report import units

    console = screen()
    for one in found["differences"]:
        stored, again = (units.text(str(one[key]), 80) for key in ("stored", "again"))
        console.print(
            Text(f"{units.text(one['figure'])}: {stored} in {name}, {again} from the samples", "red"), soft_wrap=True
        )
    for words in found["missing"]:
        console.print(Text(f"missing: {units.text(words, 600)}", "red"), soft_wrap=True)
    wrong = len(found["differences"])
    of = f"{units.count(found['figures'])} figures computed again from the run's raw samples"
    if not wrong and not found["missing"]:
        console.print(Text(f"{of}: all as in {name}"))
        return
    gone = units.count(len(found["missing"]))
    console.print(Text(f"{of}: {units.count(wrong)} differ, {gone} files missing or damaged"), soft_wrap=True)
    version = units.text(edgeopt, 40)
    console.print(Text(f"{name} was written by edgeopt {version}; another version may compute otherwise", "dim"))


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
    against.render(first, second, names, screen())
    if out is not None:
        echo()
        echo(f"report  {out}")


def _read(run: Path) -> dict[str, Any]:
    from ..cache import check_json
    from ..report import SCHEMA_VERSION, conform

    path = run / "run.json"
    if not path.is_file():
        raise ConfigError(f"{run}: no run.json in it; name a folder that `edgeopt optimize` wrote, runs/<name>")
    document: dict[str, Any] = check_json(path)
    if not isinstance(document, dict):
        raise IntegrityError(
            f"{path}: no object, so not a run; name a folder that `edgeopt optimize` wrote, runs/<name>"
        )
    if document.get("schema") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: found schema {document.get('schema')!r:.60}; this edgeopt reads schema {SCHEMA_VERSION}; show it "
            "with the edgeopt that wrote it, or run optimize again"
        )
    if wrong := conform.first(document, schema(), "run.json"):
        raise IntegrityError(f"{path} is not as edgeopt writes it: {wrong}; get it again, or run optimize again")
    return document
