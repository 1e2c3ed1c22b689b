"""External power meters, read by this machine while the board works: one file each, its name is the KIND of --meter.

A meter is a module of this package (listed with pkgutil, imported on use) that has

    meter(place, columns) -> Meter      at PLACE of `--meter KIND:PLACE`; columns: what its lines mean

Importing it loads nothing but the standard library and numpy; what else it needs is an extra. meter() and start() raise
ConfigError (no such place, no line can be read) and MissingDependency (names the extra): before any work on the board.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import ConfigError
from ..meter_lines import Columns, Row
from ..stats import Floats


@dataclass(frozen=True)
class Trace:
    """What a meter told. times_s, watts: (n,), in order of arrival. products: (watts, volts, amperes) of lines that
    have all three. failures: why lines told nothing, and how many.

    own_clock: times_s count from a moment that only the meter knows; else they are this machine's time.monotonic(), by
    at most `stamp_error_s` beside it. problem: why the whole is worth nothing.
    """

    times_s: Floats
    watts: Floats
    own_clock: bool
    stamp_error_s: float
    failures: Mapping[str, int]
    products: Sequence[tuple[float, float, float]] = ()
    problem: str | None = None


class Meter(Protocol):
    """One that is open."""

    @property
    def watts(self) -> float | None:
        """The newest reading, for the eye; None where there is none yet."""

    @property
    def interval_s(self) -> float | None:
        """About how often readings come; None where that is not known yet."""

    def start(self) -> None:
        """What is read from now on counts."""

    def finish(self, until_s: float, patience_s: float) -> Trace:
        """All that was read since `start`; waits `patience_s` at most for what belongs before `until_s`, of this
        machine's time.monotonic()."""

    def close(self) -> None: ...


def kinds() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def split(text: str) -> tuple[str, str]:
    """(kind, place) of --meter KIND:PLACE. Raises ConfigError."""
    kind, _, place = text.partition(":")
    if kind not in kinds() or not place:
        raise ConfigError(f"--meter {text}: allowed is KIND:PLACE with one of {', '.join(kinds())}, as csv:log.csv")
    return kind, place


def connect(text: str, columns: Columns) -> Meter:
    """The meter of --meter KIND:PLACE, opened. Raises ConfigError, MissingDependency."""
    kind, place = split(text)
    found: Meter = importlib.import_module(f"{__name__}.{kind}").meter(place, columns)
    return found


def trace(
    rows: Sequence[tuple[float, Row]],
    own_clock: bool,
    stamp_error_s: float,
    failures: Mapping[str, int],
    problem: str | None = None,
) -> Trace:
    """A Trace of (time, row) pairs."""
    products = [
        (row.watts, row.volts, row.amperes) for _, row in rows if row.volts is not None and row.amperes is not None
    ]
    return Trace(
        np.array([time_s for time_s, _ in rows], float),
        np.array([row.watts for _, row in rows], float),
        own_clock,
        stamp_error_s,
        dict(failures),
        products,
        problem,
    )


def usual_step(times_s: Sequence[float]) -> float | None:
    """The median time from one reading to the next; None with fewer than two."""
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else None
