"""Progress on stderr: bars and running clocks with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from .. import visible
from . import heartbeat

if TYPE_CHECKING:
    from .screen import Screen

PLAIN_INTERVAL_S = 2.0
WORTH_SAYING_S = 2.0
KEPT_DURATIONS = 500


def echo(text: object = "", err: bool = False) -> None:
    """One line; whatever is in it, it stays one, and does nothing to a terminal."""
    click.echo(visible.line(text), err=err)


def echo_lines(text: object, err: bool = False) -> None:
    """Several lines of our own, in which parts may be others'."""
    click.echo(visible.lines(text), err=err)


def echo_message(text: object) -> None:
    """An error or a warning, on stderr."""
    click.echo(visible.message(text), err=True)


def screen(stderr: bool = False) -> Screen:
    """rich's console for tables and styled lines."""
    from .screen import Screen

    return Screen(stderr)


class Durations:
    """How long each step took the last time, by subject (a run or a bundle, and its board), in a file of the cache.

    Steps like a conversion cannot be counted while they run; their time left is known from the time before.
    """

    def __init__(self, path: Path, subject: str) -> None:
        self._path = path
        self._subject = subject
        self._known: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # absent or damaged: nothing is known
            self._known = {
                str(key): float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()
            }
        self._changed = False

    def last(self, what: str) -> float | None:
        return self._known.get(f"{self._subject}: {what}")

    def note(self, what: str, seconds: float) -> None:
        before = self._known.pop(f"{self._subject}: {what}", None)
        if seconds >= WORTH_SAYING_S:
            self._known[f"{self._subject}: {what}"] = round(seconds, 1)  # the newest last
        self._changed |= before is not None or seconds >= WORTH_SAYING_S

    def save(self) -> None:
        """Written whole; a cache that cannot be written only costs the estimates."""
        if not self._changed:
            return
        newest = dict(list(self._known.items())[-KEPT_DURATIONS:])
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(newest, indent=1))
            os.replace(partial, self._path)


class Display:
    """Shows the events of a session, a job or a stage. `subject` names what is worked on, for the time it will take."""

    def __init__(self, subject: str = "", cache: Path | None = None) -> None:
        from ..cache import default_root

        self._console = screen(stderr=True)
        self._durations = Durations((cache or default_root()) / "durations.json", subject)
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._step: str | None = None  # a step that cannot be counted, under way
        self._began = self._printed = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._step = None  # it did not end, so how long it takes is not known
        self._end()
        heartbeat.note("")
        self._durations.save()

    def event(self, event: dict[str, Any]) -> None:
        """ "progress" counts; a "stage" goes on until the next event; anything else is said, and that is all."""
        if event["event"] == "progress":
            watts = event.get("power_w")
            drawn = f" ({watts:.3g} W)" if watts is not None else ""
            self._progress(event["what"] + drawn, event["done"], event["of"])
            return
        self._end()
        if event["event"] == "stage":
            self._begin_step(event["what"])
        else:
            self._console.print(event["what"])
            heartbeat.note(event["what"].partition(";")[0] if event["event"] == "waiting" else "", said=True)

    def _begin_step(self, what: str) -> None:
        self._step, self._began = what, time.monotonic()
        last = self._durations.last(what)
        about = f", about {last:.0f} s" if last is not None else ""
        self._console.print(f"{what}{about}")
        heartbeat.note(what, said=True)
        if self._console.is_terminal:
            self._start_bar(what, last, counted=False)

    def _progress(self, what: str, done: int, total: int) -> None:
        family = what.split(" (")[0]
        if family != self._what:
            self._end()
            self._what, self._began, self._printed = family, time.monotonic(), time.monotonic()
        says = not self._console.is_terminal and time.monotonic() - self._printed >= PLAIN_INTERVAL_S
        heartbeat.note(family, f"{done}/{total}", said=says)
        if self._console.is_terminal:
            if self._bar is None:
                self._start_bar(what, total, counted=True)
            self._bar.update(self._task, description=what, completed=done, total=total)
        elif says:
            self._printed = time.monotonic()
            left = (time.monotonic() - self._began) / done * (total - done) if done else None
            self._console.print(f"{what}: {done}/{total}" + (f", about {left:.0f} s left" if left else ""))

    def _start_bar(self, what: str, total: float | None, counted: bool) -> None:
        """A bar of `total` things, or a clock that runs towards `total` seconds, where that is known."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            if counted
            else [SpinnerColumn(), TimeElapsedColumn(), *([TextColumn(f"of about {total:.0f} s")] if total else [])]
        )
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), *columns, console=self._console, transient=True
        )
        self._task = self._bar.add_task(what if counted else "", total=total if counted else None)
        self._bar.start()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._step is not None:
            self._durations.note(self._step, time.monotonic() - self._began)
        self._step = None
        self._what = ""
