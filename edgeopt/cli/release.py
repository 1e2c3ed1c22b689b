"""edgeopt flash, validate, rollback and status: releases on a board."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AgentFailure, IntegrityError
from . import jobs
from .common import Boards, Where, boards_options, json_option, repeat_option, undecided_option, verdict_code
from .display import Display, echo, screen
from .keep import Keep, keep_options, keeping, stop_words, stopped
from .many import Done, on_each
from .prices import price_options

if TYPE_CHECKING:
    from ..device.session import Session

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
JUDGED = {
    "pass": "passed",
    "undecided": "undecided",
    "fail": "FAILED",
    "not judged": "not judged",
}  # a manifest's verdict in words
MARKS = {
    "pass": "; accuracy passed",
    "undecided": "; marked: undecided, its accuracy is not shown to hold the floor",
    "fail": "; marked: FAILED, it misses what its plan demands",
    "not judged": "; marked: not judged, nobody compared its accuracy with a floor",
}


@click.command()
@bundle_argument
@boards_options
@json_option
def flash(bundle: Path, boards: Boards, as_json: bool) -> int:
    """Make BUNDLE's release current on a board, after its health check passed there.

    The board keeps its current release whatever goes wrong, and keeps the earlier one for `rollback`.
    Several boards are flashed one after the other; one that fails does not stop the others.

    \b
    Example:
      edgeopt flash runs/smartwatch-activity/smartwatch-activity.edgeopt --device ssh://pi@raspberrypi
      edgeopt flash runs/smartwatch-activity/smartwatch-activity.edgeopt --device ssh://pi@one --device ssh://pi@two
    """
    from .. import bundle as bundles
    from .. import flash as job

    opened = bundles.read(bundle)

    def work(where: Where) -> Done:
        with Display(f"{opened.manifest.name} on {where.device}") as display:
            session, python = where.open(display, opened.manifest.profile)
            with session:
                flashed = job.flash(session, opened, python, where.known_profile())
                done = dict(flashed, board=where.board(session), profile=where.profile_id())
        name, marked = _titled(done["name"], done["release"]), _marks(done)
        if done["already"]:
            return Done(done, "pass", f"{name} was current already{marked}")
        return Done(done, "pass", f"{name} is current; {_health(done['health'], opened.manifest.health.of)}{marked}")

    return on_each(boards, work, lambda done: _show_flash(done, boards, opened.manifest.health.of), as_json)


@click.command()
@bundle_argument
@click.option(
    "--mode",
    type=click.Choice(["rapid", "quick", "normal"]),
    help="How long to measure latency, as in bench; default: rapid, or quick where a budget needs p95.",
)
@click.option("--rollback-on-fail", is_flag=True, help="Return to the earlier release when the verdict is fail.")
@click.option("--run-file", type=click.Path(path_type=Path), help="For tasks that score in Python: their edgeopt.toml.")
@price_options
@repeat_option
@boards_options
@keep_options
@undecided_option
@json_option
def validate(
    bundle: Path,
    boards: Boards,
    keep: Keep,
    mode: str | None,
    rollback_on_fail: bool,
    run_file: Path | None,
    prices: dict[str, Any],
    no_repeat: bool,
    allow_undecided: bool,
    as_json: bool,
) -> int:
    """Judge the board's current release: accuracy, latency, budgets, with the samples and answers that BUNDLE carries.

    \b
    Example:
      edgeopt validate runs/smartwatch-activity/smartwatch-activity.edgeopt --device ssh://pi@raspberrypi
    """
    from .. import bundle as bundles
    from .. import stats
    from .. import validate as job
    from ..cost import Prices

    opened = bundles.read(bundle)
    chosen_mode = job.mode_for(opened, mode)
    score = _score_of(run_file) if run_file else None

    def work(where: Where) -> Done:
        made_for, own = opened.manifest.profile, keep.of(where, boards)
        if keep.stop:
            ended = stopped(own, where, made_for)
            return Done(ended, "stopped", stop_words(ended))
        opened.require_own_libraries(where.known_profile())
        asked: dict[str, Any] = {"bundle": str(bundle), "mode": chosen_mode, "no_repeat": no_repeat}
        asked["run_file"] = str(run_file) if run_file else None
        with (
            Display(f"{opened.manifest.name} on {where.device}") as display,
            keeping(own, "validate", asked, stats.MODES[chosen_mode].min_seconds, display) as kept,
        ):
            session, _ = where.open(display, made_for)
            with session:
                if kept.journal:
                    session.keep(kept.journal)
                about = job.validate(
                    session, opened, chosen_mode, kept.samples, display.event, score, repeat=not no_repeat
                )
                told = dataclasses.asdict(Prices.of(where.cost(), prices))
                found = kept.document({**about, "board": where.board(session), "prices": told})
                go_back = rollback_on_fail and found["verdict"] == "fail"
                found["rollback"] = _rolled_back(session, kept.journal is not None) if go_back else None
                kept.write(found)
        code = verdict_code(found["verdict"], allow_undecided)
        return Done(found, found["verdict"], found["reasons"][0], code)

    return on_each(boards, work, lambda found: _show_validation(found, boards), as_json)


@click.command()
@boards_options
@json_option
def rollback(boards: Boards, as_json: bool) -> int:
    """Return to the release before the current one, after the same checks.

    \b
    Example:
      edgeopt rollback --device ssh://pi@raspberrypi --profile raspberry-pi-4
    """
    from .. import flash as job

    def work(where: Where) -> Done:
        with Display(where.device) as display:
            session, _ = where.open(display, any_board=True)
            with session:
                done = dict(job.rollback(session), device=session.address, board=where.board(session))
        return Done(done, "pass", _back(done))

    return on_each(boards, work, lambda done: _show_rollback(done, boards), as_json)


@click.command()
@boards_options
@json_option
def status(boards: Boards, as_json: bool) -> int:
    """Which release is current on a board, whether every byte of it is whole, and what a rollback returns to.

    Exit code 5 when either of the two is damaged.

    \b
    Example:
      edgeopt status --device ssh://pi@raspberrypi --profile raspberry-pi-4
      edgeopt status --all-devices
    """

    def work(where: Where) -> Done:
        with Display(where.device) as display:
            session, _ = where.open(display, any_board=True)
            with session:
                found = dict(session.status(verify=True), device=session.address, board=where.board(session))
                found["stop_command"] = f"edgeopt device stop {session.spelled}"
        entries = [found["current"], found["previous"]]
        whole = all(entry["whole"] for entry in entries if entry is not None)
        verdict = "pass" if whole else "damaged"
        works = "".join(f"; {jobs.described(job)}" for job in found["jobs"] if not job["waits"])
        return Done(found, verdict, _release(found["current"]) + works, 0 if whole else IntegrityError.exit_code)

    return on_each(boards, work, lambda found: _show_status(found, boards), as_json)


def _rolled_back(session: Session, kept: bool) -> dict[str, Any]:
    from .. import flash as releases

    if kept:
        session.keep(None)  # a rollback is no measurement
    try:
        return releases.rollback(session)
    except AgentFailure as error:  # the verdict was asked for first, and it stands
        return {"error": str(error)}


def _titled(name: str | None, release: str) -> str:
    return f"{name or 'release ?'} ({release[:12]})"


def _marks(done: dict[str, Any]) -> str:
    """What a flashed bundle's owner must know of it."""
    own, made_for = done["profile"], done["made_for"]
    other = ""
    if own not in (None, made_for):
        other = f"; made for {made_for}, and the profile here is {own}: validate it here"
    return MARKS[done["verdict"]] + _stands_in(done["measured_on"]) + _elsewhere(done) + other


def _elsewhere(done: dict[str, Any]) -> str:
    """Where a bundle's figures are another board's than the one that it is flashed to."""
    from ..report import board

    theirs, ours = done["measured_on"], done["board"]
    if theirs is None or all(theirs[key] in (None, ours[key]) for key in ("machine", "cpu_model")):
        return ""
    return f"; its figures are of another board ({board.described(theirs)}): validate it here"


def _stands_in(measured_on: dict[str, Any] | None) -> str:
    """The mark of a bundle whose figures are another board's than its profile's."""
    from ..report import board

    said = board.mark(measured_on or {})
    return f"; marked: its figures were measured {said}" if said else ""


def _show_flash(done: dict[str, Any], boards: Boards, of: int) -> None:
    from ..report import board

    title, place = _titled(done["name"], done["release"]), boards.named(done)
    marked = _marks(done)
    if done["already"]:
        echo(f"{title} is current on {place} already; nothing was changed{marked}")
    else:
        echo(f"{title} is current on {place}{marked}")
        echo(f"health check: {_health(done['health'], of)}, on {board.described(done['board'])}")
    if said := board.mark(done["board"]):
        echo(f"marked: checked {said}; {board.different(done['board'])}")
    if cap := done["frequency_max_hz"]:
        from ..report import units

        clock = units.quantity(cap, "hz")
        echo(f"it met its budgets with the CPUs' clock capped at {clock}: only the board's owner sets that")


def _back(done: dict[str, Any], place: str = "") -> str:
    now = _titled(done["name"], done["activation"]["release"])
    slow = (done["health"] or {}).get("slow")
    marked = f"; marked: {slow}" if slow else ""
    judged = MARKS.get(done["verdict"], "; accuracy not told")
    judged += _stands_in(done["measured_on"])
    return f"{now} is current again{place}, instead of release {done['from'][:12]}{judged}{marked}"


def _show_rollback(done: dict[str, Any], boards: Boards) -> None:
    echo(_back(done, f" on {boards.named(done)}"))
    echo(f"previous  {_release(done['previous'])}")


def _show_status(found: dict[str, Any], boards: Boards) -> None:
    place = "this machine" if found["device"] == "local" else boards.named(found)
    serial = f", serial {found['board']['serial']}" if found["board"]["serial"] else ""
    echo(f"{'board':<9} {place}, {found['root']}{serial}")
    for title in ("current", "previous"):
        echo(f"{title:<9} {_release(found[title])}")
    for line in jobs.lines(found["jobs"], found["stop_command"]):
        echo(line)
    if found["recovered"]:
        echo("nobody confirmed the release before in time, so the board went back to this one")


def _score_of(run_file: Path) -> Any:
    """The score() of a run file's task object."""
    from .. import lower, model, plan
    from ..errors import ConfigError

    made = plan.load(run_file, lower.abilities())
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
    known = entry["activated_at"] is not None
    at = (
        datetime.datetime.fromtimestamp(entry["activated_at"]).isoformat(" ", "seconds") if known else "an unknown time"
    )
    confirmed = "" if entry.get("confirmed", True) else ", not confirmed yet"
    title = _titled(entry["name"], entry["release"])
    judged = _accuracy(entry["verdict"]) + _stands_in(entry["measured_on"])
    return f"{title}, by {entry['why']} at {at}, {judged}, {whole}{confirmed}"


def _accuracy(verdict: str | None) -> str:
    """In words; None: its manifest cannot be read."""
    return f"accuracy {JUDGED.get(str(verdict), 'not told')}"


def _show_validation(found: dict[str, Any], boards: Boards) -> None:
    if "stopped" in found:
        echo(stop_words(found))
        return
    from ..report import measured

    measured.render_validation({**found, "device": boards.named(found)}, screen())
    back = found["rollback"]
    if back:
        said = f"not rolled back: {back['error']}" if "error" in back else None
        echo(said or f"rolled back to {back['activation']['release'][:12]}, {_accuracy(back['verdict'])}")
