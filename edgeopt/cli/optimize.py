"""edgeopt optimize: the main job."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from . import complete
from .common import (
    Where,
    json_option,
    known_profile,
    print_json,
    stand_in_option,
    transport_option,
    undecided_option,
    verdict_code,
)
from .display import Display, echo_lines, screen


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path), default=Path())
@click.option("--device", help="Board: address or name; default: the run file's.", shell_complete=complete.devices)
@click.option(
    "--profile",
    help="Profile of the board; default: that of the board that --device names, else the run file's.",
    shell_complete=complete.profiles,
)
@click.option("--root", help="edgeopt's folder there; default: the run file's, the known board's, its profile's.")
@click.option("--board-python", help="The board's Python; default: as for --root.")
@click.option("--identity", type=click.Path(path_type=Path), help="Private key file for ssh.")
@click.option(
    "--known-hosts",
    type=click.Path(path_type=Path),
    help="File of host keys; default: the run file's, the known board's, else what ssh uses.",
)
@transport_option
@stand_in_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; default: runs/<name>.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of finished steps; default: $EDGEOPT_CACHE or ~/.cache/edgeopt.",
)
@click.option("--remeasure", is_flag=True, help="Measure again, though earlier comparisons on this board are stored.")
@click.option(
    "--bundle-anyway",
    is_flag=True,
    help="Where nothing fits, score the nearest candidate on final and pack it, marked.",
)
@click.option("--show-plan", is_flag=True, help="Print what is fixed before work starts, and stop.")
@click.option("--explain", is_flag=True, help="Print what a run file may hold, key by key, and stop.")
@undecided_option
@json_option
def optimize(
    run_file: Path,
    out: Path | None,
    cache: Path | None,
    show_plan: bool,
    explain: bool,
    remeasure: bool,
    bundle_anyway: bool,
    allow_undecided: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Try fp32, fp16, int8, threads, pruning and, for watts and joules, capped clocks for RUN_FILE (an edgeopt.toml or
    its folder; default: here).

    Writes runs/<name>/: what was measured, a report, and the best as a bundle.

    A run that was interrupted continues when it is started again.

    \b
    Example:
      edgeopt optimize examples/smartwatch-activity --device ssh://pi@raspberrypi --profile raspberry-pi-4
    """
    from .. import config, lower, plan, runfile

    if explain:
        known = [dataclasses.asdict(key) for key in config.keys(runfile.RunFile)]
        print_json({"keys": known}) if as_json else echo_lines(config.explain(runfile.RunFile))
        return 0
    made = plan.load(run_file, lower.abilities(), options["profile"] or known_profile(options["device"]))
    if options["stand_in"]:
        made = dataclasses.replace(made, stand_in=True)
    if show_plan:
        _show_plan(made, options["device"], as_json)
        return 0
    out = out or Path("runs") / made.name
    document = _run(made, out, cache, remeasure, bundle_anyway, options)
    if as_json:
        print_json(document)
    else:
        _show(document, out)
    return verdict_code(document["verdict"], allow_undecided)


def _run(
    made: Any, out: Path, cache: Path | None, remeasure: bool, bundle_anyway: bool, options: dict[str, Any]
) -> dict[str, Any]:
    from .. import cache as caches
    from .. import optimize as job

    section, folder = made.run_file.device, made.folder

    def beside(name: str | None) -> Path | None:
        return folder / Path(name).expanduser() if name else None

    address = options["device"] or section.address
    own_root = section.root and str(folder / Path(section.root).expanduser() if address == "local" else section.root)
    where = Where(
        address,
        made.profile,
        options["root"] or own_root,
        options["board_python"] or section.python,
        options["identity"] or beside(section.identity),
        options["known_hosts"] or beside(section.known_hosts),
        options["transport"] or section.transport,
        made.stand_in,
    )
    made = dataclasses.replace(made, stand_in=where.may_stand_in)
    cache = cache or caches.default_root()
    with Display(f"{made.name} on {address}", cache) as display:
        here = [Path(where.place().root).expanduser()] if address == "local" else []
        store = caches.Cache(cache, waiting(display), [out, *here])
        document = job.optimize(
            made, lambda: where.open(display), store, out.resolve(), display.event, remeasure, bundle_anyway
        )
    return document


def waiting(display: Display) -> Any:
    """What the cache tells when another run is building the same stage."""
    return lambda name: display.event({"event": "waiting", "what": f"{name}: another run is at it; waiting for it"})


def _show_plan(made: Any, device: str | None, as_json: bool) -> None:
    """With what a look at labels and groups tells; data that cannot be split so is said, and is an error of the run."""
    from .. import data
    from ..errors import ConfigError

    try:
        sizes, foreseen = data.preview(made)
    except ConfigError as error:
        sizes, foreseen = {}, [f"the data cannot be used so: {error}"]
    if as_json:
        print_json({**made.to_json(), "samples": sizes, "foreseen": foreseen})
        return
    from ..report import terminal

    address = device or made.run_file.device.address
    terminal.render_plan(made.to_json(), address, screen(), sizes, foreseen)


def _show(document: dict[str, Any], out: Path) -> None:
    from ..report import terminal

    terminal.render(document, screen(), out)
