"""edgeopt flash, validate, rollback and status: releases on a board."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import click

from .common import (
    Where,
    device_options,
    json_option,
    print_json,
    undecided_option,
    verdict_code,
)
from .display import Display

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.command(short_help="Make a bundle's release current on a board.")
@bundle_argument
@device_options
@json_option
def flash(bundle: Path, where: Where, as_json: bool) -> int:
    """Make BUNDLE's release current on a board, after its health check passed there.

    The board keeps its current release whatever goes wrong, and keeps the earlier one for `rollback`.

    \b
    Example:
      edgeopt flash runs/smartwatch-activity/smartwatch-activity.edgeopt --device ssh://pi@raspberrypi
    """
    from .. import bundle as bundles
    from .. import flash as job

    opened = bundles.read(bundle)
    with Display(f"{opened.manifest.name} on {where.device}") as display:
        session, python = where.open(display, opened.manifest.root, opened.manifest.python)
        with session:
            done = job.flash(session, opened, python)
    if as_json:
        print_json(done)
    elif done["already"]:
        click.echo(
            f"{done['name']} ({done['release'][:12]}) is current on {done['device']} already; nothing was changed"
        )
    else:
        click.echo(f"{done['name']} ({done['release'][:12]}) is current on {done['device']}")
        click.echo(f"health check: {_health(done['health'], opened.manifest.health.of)}")
    return 0


@click.command(short_help="Judge the current release: accuracy, latency, budgets.")
@bundle_argument
@click.option(
    "--mode",
    type=click.Choice(["rapid", "quick", "normal"]),
    help="How long to measure latency, as in bench; default: rapid, or quick where a budget needs p95.",
)
@click.option("--rollback-on-fail", is_flag=True, help="Return to the earlier release when the verdict is fail.")
@click.option("--run-file", type=click.Path(path_type=Path), help="For tasks that score in Python: their edgeopt.toml.")
@device_options
@undecided_option
@json_option
def validate(
    bundle: Path,
    where: Where,
    mode: str | None,
    rollback_on_fail: bool,
    run_file: Path | None,
    allow_undecided: bool,
    as_json: bool,
) -> int:
    """Measure the board's current release with BUNDLE's evaluation pack: accuracy, latency, budgets.

    \b
    Example:
      edgeopt validate runs/smartwatch-activity/smartwatch-activity.edgeopt --device ssh://pi@raspberrypi
    """
    from .. import bundle as bundles
    from .. import flash as releases
    from .. import validate as job
    from ..errors import AgentFailure

    opened = bundles.read(bundle)
    chosen_mode = job.mode_for(opened, mode)
    score = _score_of(run_file) if run_file else None
    with Display(f"{opened.manifest.name} on {where.device}") as display:
        session, _ = where.open(display, opened.manifest.root, opened.manifest.python)
        with session:
            found = job.validate(session, opened, chosen_mode, score)
            found["rollback"] = None
            if found["verdict"] == "fail" and rollback_on_fail:
                try:
                    found["rollback"] = releases.rollback(session)
                except AgentFailure as error:  # the verdict was asked for first, and it stands
                    found["rollback"] = {"error": str(error)}
    if as_json:
        print_json(found)
    else:
        _show_validation(found)
    return verdict_code(found["verdict"], allow_undecided)


@click.command(short_help="Return to the release before.")
@device_options
@json_option
def rollback(where: Where, as_json: bool) -> int:
    """Return to the release before the current one, after the same checks.

    \b
    Example:
      edgeopt rollback --device ssh://pi@raspberrypi --profile raspberry-pi-4
    """
    from .. import flash as job

    with Display(where.device) as display:
        session, _ = where.open(display)
        with session:
            done = job.rollback(session)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done['activation']['release'][:12]} is current again, instead of {done['from'][:12]}")
    return 0


@click.command(short_help="What is current, whole, and to be returned to.")
@device_options
@json_option
def status(where: Where, as_json: bool) -> int:
    """Which release is current on a board, whether every byte of it is whole, and what a rollback returns to.

    Exit code 5 when either of the two is damaged.

    \b
    Example:
      edgeopt status --device ssh://pi@raspberrypi --profile raspberry-pi-4
    """
    from ..errors import IntegrityError

    with Display(where.device) as display:
        session, _ = where.open(display)
        with session:
            found = dict(session.status(verify=True), device=session.address)
    entries = {title: found[title] for title in ("current", "previous")}
    if as_json:
        print_json(found)
    else:
        place = "this machine" if found["device"] == "local" else found["device"]
        click.echo(f"{'board':<9} {place}, {found['root']}")
        for title, entry in entries.items():
            click.echo(f"{title:<9} {_release(entry)}")
        if found["recovered"]:
            click.echo("nobody confirmed the release before in time, so the board went back to this one")
    whole = all(entry["whole"] for entry in entries.values() if entry is not None)
    return 0 if whole else IntegrityError.exit_code


def _score_of(run_file: Path) -> Any:
    """The score() of a run file's task object."""
    from .. import model, plan
    from ..errors import ConfigError

    made = plan.load(run_file)
    spec = made.run_file.task.object
    if spec is None:
        raise ConfigError(f"--run-file {run_file}: it has no [task] object, so no score() in Python")
    found = model.call_factory(spec, made.folder, {}, "[task] object")
    if not callable(getattr(found, "score", None)):
        raise ConfigError(f"--run-file {run_file}: [task] object = '{spec}' has no score() method")
    return found.score


def _health(found: dict[str, Any], of: int) -> str:
    from ..report import units

    right = f"{found['correct']} of {of} right, " if found["correct"] is not None else ""
    return f"{right}median latency {units.quantity(found['median_latency_s'], 's')}"


def _release(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "none"
    whole = {True: "whole", False: f"DAMAGED: {entry['problem']}", None: "not checked"}[entry["whole"]]
    if entry["release"] is None:
        return whole
    at = datetime.datetime.fromtimestamp(entry["activated_at"]).isoformat(" ", "seconds")
    confirmed = "" if entry.get("confirmed", True) else ", not confirmed yet"
    return f"{entry['name'] or '?'} {entry['release'][:12]}, by {entry['why']} at {at}, {whole}{confirmed}"


def _show_validation(found: dict[str, Any]) -> None:
    from rich.console import Console

    from ..report import measured

    measured.render_validation(found, Console())
    back = found["rollback"]
    if back:
        said = f"not rolled back: {back['error']}" if "error" in back else None
        click.echo(said or f"rolled back to {back['activation']['release'][:12]}")
