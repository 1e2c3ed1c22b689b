"""What works on a board, in words, and how it is ended."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .display import echo

if TYPE_CHECKING:
    from ..device.session import Session


def described(job: dict[str, Any]) -> str:
    """One of Session.jobs: its kind and name, whose it is, since when by this machine's clock."""
    whose = f"of {job['by'] or 'a host that did not say its name'}"
    if job["waits"]:
        return f"{job['kind']} ({job['job']}) {whose}, waiting for its turn"
    since = datetime.datetime.now() - datetime.timedelta(seconds=job["for_s"])
    left = "" if job["followed"] else ", and nobody follows it now"
    return (
        f"{job['kind']} ({job['job']}) {whose}, since {since.isoformat(' ', 'seconds')} ({_long(job['for_s'])}){left}"
    )


def lines(jobs: Sequence[dict[str, Any]], stop_command: str) -> list[str]:
    """What `status` says of the jobs on a board; stop_command: what ends one."""
    if not jobs:
        return []
    titles = {False: "working", True: "waiting"}
    found = [f"{titles[job['waits']]:<9} {described(job)}" for job in jobs]
    return [*found, f"{'':<9} `{stop_command}` ends what works there"]


def chosen(jobs: Sequence[dict[str, Any]], name: str | None, device: str) -> dict[str, Any] | None:
    """The job to end: the one of that name, else the one that works, else the first that waits; None: there is none.

    Raises ConfigError for a name that no job has.
    """
    if name is None:
        return min(jobs, key=lambda job: bool(job["waits"]), default=None)
    for job in jobs:
        if job["job"] == name:
            return job
    there = f"there are: {', '.join(job['job'] for job in jobs)}" if jobs else "nothing works or waits there"
    raise ConfigError(f"--job {name}: no such job works or waits on {device}; {there}")


def require_consent(job: dict[str, Any], device: str) -> None:
    """Ask whether that job may be ended. Raises ConfigError where nobody can be asked, Abort for a no."""
    what = f"{device}: {described(job)}"
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}; there is no terminal to ask on: add --yes to end it. Nothing was ended")
    echo(what, err=True)
    click.confirm("End it?", abort=True, err=True)


def stop(session: Session, job: dict[str, Any]) -> dict[str, Any]:
    """End it: {"state", "current": the release that is current afterwards}."""
    state = session.stop(job["job"])
    return {"state": state, "current": session.status(verify=False)["current"]}


def _since(seconds: float | None) -> str:
    if seconds is None:
        return "begun by an older edgeopt"
    began = datetime.datetime.now() - datetime.timedelta(seconds=seconds)
    return f"since {began.isoformat(' ', 'seconds')} ({_long(seconds)})"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
