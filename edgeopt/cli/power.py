"""edgeopt power: joules of one inference, by the board's own power sensor, by a meter, or estimated."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import (
    Where,
    device_options,
    json_option,
    power_mode_options,
    print_json,
    repeat_option,
    undecided_option,
    verdict_code,
)
from .display import Display, echo, screen
from .keep import Keep, keep_options, keeping, stop_words, stopped
from .queries import Queries, load, made_for, query_options

if TYPE_CHECKING:
    from .. import power as job
    from ..artifact import Artifact
    from ..profile import DeviceProfile

METER_WAIT_S = 10.0
WINDOWS = 3


def _budget_options(command: Any) -> Any:
    for option in (
        click.option("--budget-j", type=click.FloatRange(0, min_open=True), help="Joules of one inference, at most."),
        click.option(
            "--budget-w",
            type=click.FloatRange(0, min_open=True),
            help="Watts at work, at most; default: the profile's [power] budget_w.",
        ),
        click.option("--whole-board", is_flag=True, help="The rail of --sensor hwmon:RAIL feeds the whole board."),
        click.option(
            "--estimate",
            is_flag=True,
            help="No sensor there: the profile's watts, of all cores at work, by time; marked estimated.",
        ),
    ):
        command = option(command)
    return command


def _meter_options(command: Any) -> Any:
    for option in (
        click.option(
            "--meter-wait",
            type=click.FloatRange(0, 3600),
            show_default=f"{METER_WAIT_S:g}",
            help="Seconds to wait at the end for the meter's last readings, or for a file that you export by hand.",
        ),
        click.option("--meter-columns", help="QUANTITY=HEADER:UNIT,… of time, watts, volts, amperes: see below."),
        click.option("--meter", help="A meter at this machine instead of a sensor: csv:FILE or serial:PORT[@BAUD]."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1)
@device_options
@click.option("--sensor", help="KIND:RAIL as --list shows them, or KIND; default: the board's only one.")
@click.option("--list", "list_only", is_flag=True, help="Show the board's power sensors, and stop.")
@_meter_options
@_budget_options
@click.option("--windows", type=click.IntRange(3), show_default=str(WINDOWS), help="Windows of each model.")
@click.option(
    "--seconds",
    type=click.FloatRange(10, 600),
    help="Length of a window, at least; default: 10, or as its sensor needs.",
)
@repeat_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Also write one offline page with the watts over time: an .html."
)
@power_mode_options
@query_options
@keep_options
@undecided_option
@json_option
def power(
    models: tuple[Path, ...],
    where: Where,
    list_only: bool,
    out: Path | None,
    keep: Keep,
    allow_undecided: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Gross and net joules of one inference of MODELS (bundles or model files), and the watts of the idle board.

    Models run in windows that take turns, between two in which the board is idle; net takes the idle watts away. What a
    sensor cannot tell (too slow, gaps, readings that cannot be) has no figure, and the reason is said. What drifted or
    throttled is measured once more after a pause, but never with a meter, whose recording ends with the run.

    A meter's columns are named by the header, or by their number where lines have none; no unit is guessed. Units: W,
    mW, uW and so on; time in unix or iso (this machine's clock), or in s, ms, us of the meter's own clock. Lines from a
    serial port need no time. The offset to the board's clock is measured, and what it leaves unknown widens the joules.

    \b
    Example:
      edgeopt power --list --device ssh://root@jetson
      edgeopt power fp32.tflite int8.tflite --random --sensor hwmon:VDD_IN --device ssh://root@jetson
      edgeopt power net.tflite --random --meter csv:log.csv --meter-columns "time=Time:unix,volts=V:V,amperes=I:mA"
      edgeopt power net.tflite --random --meter serial:/dev/ttyUSB0@115200 --meter-columns "watts=3:mW" --budget-w 5
    """
    if list_only:
        return _list(where, as_json)
    if not models:
        raise ConfigError("power: name one or more bundles or model files; --list shows the board's sensors")
    if keep.stop:
        ended = stopped(keep, where, made_for(list(models)))
        print_json(ended) if as_json else echo(stop_words(ended))
        return 0
    _require_place(out)
    document = _measure(list(models), where, keep, **how)
    try:
        if out is not None:
            from ..report import power_page

            power_page.write(document, out)
            document["report"] = str(out)
    finally:  # what was measured is shown, even where the page cannot be written
        print_json(document) if as_json else _show(document)
    return verdict_code(document["verdict"], allow_undecided) if document["verdict"] else 0


def _require_place(out: Path | None) -> None:
    if out is not None:
        from ..report import power_page

        power_page.require_writable(out)


def _list(where: Where, as_json: bool) -> int:
    from ..sensing import no_sensor

    with Display(where.device) as display:
        session, _ = where.open(display)
        with session:
            facts = session.facts()
            found, problems = facts["sensors"], facts["sensor_problems"]
            document = {"device": session.address, "board": where.board(session), "sensors": found}
            document["problems"] = problems
    if as_json:
        print_json(document)
        return 0
    for told in found:
        echo(f"{told['kind']}:{told['rail']}  every {told['interval_s']:g} s, {told['where']}")
    if not found:
        echo(no_sensor(facts, where.device))
    for problem in problems if found else ():
        echo(f"not asked: {problem}")
    return 0


class _Live:
    """The display of a session, with a meter's watts where the board tells none."""

    def __init__(self, display: Display, metering: job.Metering | None) -> None:
        self._display, self._metering = display, metering

    def event(self, event: dict[str, Any]) -> None:
        if self._metering is not None and event["event"] == "progress" and "power_w" in event:
            event = {**event, "power_w": self._metering.meter.watts}
        self._display.event(event)


def _measure(
    paths: list[Path],
    where: Where,
    keep: Keep,
    sensor: str | None,
    meter: str | None,
    meter_columns: str | None,
    meter_wait: float | None,
    whole_board: bool,
    estimate: bool,
    budget_w: float | None,
    budget_j: float | None,
    windows: int | None,
    seconds: float | None,
    no_repeat: bool,
    power_mode: dict[str, Any],
    queries: Queries,
) -> dict[str, Any]:
    from .. import measure
    from .. import power as job

    if estimate and (windows or seconds):
        raise ConfigError("--windows and --seconds are a sensor's; with --estimate nothing is measured in windows")
    wanted, profile = job.choose(sensor), _profile(where)
    job.require_rail(wanted, whole_board)
    demands = job.demands(profile, budget_w, budget_j)
    names = ", ".join(path.name for path in paths)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-power-")))
        display = stack.enter_context(Display(f"power of {names}"))
        asked: dict[str, Any] = {
            "models": [str(path) for path in paths],
            "sensor": sensor,
            "meter": meter,
            "windows": windows,
        }
        asked |= {"seconds": seconds, "estimate": estimate, "seed": queries.seed, "no_repeat": no_repeat}
        alone = "a meter at this machine cannot be taken up again" if meter else ""
        expected_s = (windows or WINDOWS) * (seconds or 10.0) * (len(paths) + 1)
        kept = stack.enter_context(keeping(keep, "power", asked, expected_s, display, alone))
        metering = _metering(meter, meter_columns, meter_wait, sensor, estimate, stack)
        loaded = load(paths, queries, folder, where)
        artifacts, shards = loaded.artifacts, loaded.shards
        session, python = where.open(_Live(display, metering), made_for(paths))  # type: ignore[arg-type]
        stack.enter_context(session)
        if kept.journal:
            session.keep(kept.journal)
        facts = session.facts()
        for path, artifact in zip(paths, artifacts, strict=True):
            measure.require_runtime(facts, artifact.runtime, session.address, python)
            artifact.require_fit(facts["runtimes"], session.address, path if path.suffix == ".edgeopt" else None)
        if estimate and not facts["sensors"]:  # one that is there, and misspelt, is the agent's to name
            estimated = _require_typical(profile)
            given = (session, artifacts, shards, "rapid", queries.seed, kept.samples, display.event, power_mode)
            measure.settled(*given, repeat=not no_repeat)
        else:
            estimated = None
            window_s = seconds or job.window_s(facts["sensors"], wanted, metering)
            take = functools.partial(
                job.sample,
                *(session, artifacts, shards, wanted, kept.samples, windows or WINDOWS, window_s, window_s / 2),
                *(queries.seed, metering, power_mode),
            )
            job.settled(session, take, kept.samples, display.event, repeat=not no_repeat)
        return kept.document(
            {
                "device": session.address,
                "board": {**facts, **where.board(session)},
                "artifacts": [{**_named(own), "inputs": loaded.bound[n]} for n, own in enumerate(artifacts)],
                "most_w": job.most_w(profile),
                "demands": [dataclasses.asdict(demand) for demand in demands],
                "whole_board": whole_board,
                "profile": estimated.model_dump(mode="json", by_alias=True) if estimated else None,
                "profile_id": estimated.id if estimated else None,
                "random_inputs": queries.random,
            }
        )


def _require_typical(profile: DeviceProfile | None) -> DeviceProfile:
    from .. import power as job

    if profile is None:
        raise ConfigError("--estimate: the watts are the profile's; name it with --profile")
    job.require_typical(profile)
    return profile


def _profile(where: Where) -> DeviceProfile | None:
    from .. import profile as profiles

    return profiles.load(where.profile) if isinstance(where.profile, str) else where.profile


def _metering(
    meter: str | None,
    columns: str | None,
    wait_s: float | None,
    sensor: str | None,
    estimate: bool,
    stack: contextlib.ExitStack,
) -> job.Metering | None:
    """The meter, opened; `stack` closes it."""
    from .. import meters
    from .. import power as job
    from ..meter_lines import Columns

    if meter is None:
        for name, given in (("--meter-columns", columns), ("--meter-wait", wait_s)):
            if given is not None:
                raise ConfigError(f"{name}: that is a meter's; name it with --meter")
        return None
    if sensor is not None or estimate:
        other = "--sensor" if sensor is not None else "--estimate"
        raise ConfigError(f"--meter and {other} contradict each other; give one")
    meters.split(meter)
    opened = stack.enter_context(contextlib.closing(meters.connect(meter, Columns.parse(columns))))
    opened.start()
    return job.Metering(meter, opened, METER_WAIT_S if wait_s is None else wait_s)


def _named(artifact: Artifact) -> dict[str, Any]:
    return {"name": artifact.name, "runtime": artifact.runtime, "sha256": artifact.sha256}


def _show(document: dict[str, Any]) -> None:
    from ..report import joules

    joules.render(document, screen())
    if "report" in document:
        echo()
        echo(f"report  {document['report']}")
