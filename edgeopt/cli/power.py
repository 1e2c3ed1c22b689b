"""edgeopt power: joules of one inference, by the board's own power sensor."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from . import bench
from .common import Where, device_options, json_option, print_json
from .display import Display


@click.command(short_help="Joules of one inference, by the board's own sensor.")
@click.argument("models", type=click.Path(path_type=Path), nargs=-1)
@device_options
@click.option("--sensor", help="KIND:RAIL as --list shows them, or KIND; default: the board's only one.")
@click.option("--list", "list_only", is_flag=True, help="Show the board's power sensors, and stop.")
@click.option("--windows", type=click.IntRange(3), default=3, show_default=True, help="Windows of each model.")
@click.option(
    "--seconds", type=click.FloatRange(10, 600), default=10, show_default=True, help="Length of a window, at least."
)
@bench.input_options
@json_option
def power(
    models: tuple[Path, ...],
    where: Where,
    sensor: str | None,
    list_only: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Gross and net joules of one inference of MODELS (bundles or model files), and the watts of the idle board.

    Models run in windows that take turns, between two in which the board is idle; net takes the idle watts away. What a
    sensor cannot tell (too slow, gaps, readings that cannot be) has no figure, and the reason is said.

    \b
    Example:
      edgeopt power --list --device ssh://root@jetson
      edgeopt power fp32.tflite int8.tflite --random --sensor hwmon:VDD_IN --device ssh://root@jetson
    """
    if list_only:
        return _list(where, as_json)
    if not models:
        raise ConfigError("power: name one or more bundles or model files; --list shows the board's sensors")
    document = _measure(list(models), where, sensor, **how)
    print_json(document) if as_json else _show(document)
    return 0


def _list(where: Where, as_json: bool) -> int:
    with Display(where.device) as display:
        session, _ = where.open(display)
        with session:
            found = session.facts()["sensors"]
            document = {"device": session.address, "board": where.board(session), "sensors": found}
    if as_json:
        print_json(document)
        return 0
    for told in found:
        click.echo(f"{told['kind']}:{told['rail']}  every {told['interval_s']:g} s, {told['where']}")
    if not found:
        click.echo(f"{where.device} shows no power sensor to this user (RAPL's counters are root's alone)")
    return 0


def _measure(
    paths: list[Path],
    where: Where,
    sensor: str | None,
    windows: int,
    seconds: float,
    inputs: Path | None,
    use_random: bool,
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    from .. import measure
    from .. import power as job

    wanted = job.choose(sensor)
    names = ", ".join(path.name for path in paths)
    with tempfile.TemporaryDirectory(prefix="edgeopt-power-") as text, Display(f"power of {names}") as display:
        folder = Path(text)
        artifacts, shards = bench.load(paths, inputs, use_random, threads, folder, where)
        session, python = where.open(display, *bench.place(paths))
        with session:
            facts = session.facts()
            for path, artifact in zip(paths, artifacts, strict=True):
                measure.require_runtime(facts, artifact.runtime, session.address, python)
                artifact.require_fit(facts["runtimes"], session.address, path if path.suffix == ".edgeopt" else None)
            run = job.sample(session, artifacts, shards, wanted, folder, windows, seconds, seconds / 2, seed)
        times, watts = run.watts()
        return {
            "device": session.address,
            "board": {**facts, **where.board(session)},
            "sensor": {**run.result["sensor"], "failures": run.result["failures"]},
            "results": [
                {
                    "name": artifact.name,
                    "runtime": artifact.runtime,
                    "sha256": artifact.sha256,
                    "executed": run.result["executed"][index],
                    **run.per_inference(index),
                }
                for index, artifact in enumerate(artifacts)
            ],
            "sampler_overhead": run.overhead(),
            "watts": {
                "first_s": float(run.readings.times_s[0]),
                "seconds": times.tolist(),
                "power_w": [value if math.isfinite(value) else None for value in watts.tolist()],
            },
            "marks": run.result["marks"],
            "random_inputs": not shards,
        }


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console

    from ..report import joules

    joules.render(document, Console())
