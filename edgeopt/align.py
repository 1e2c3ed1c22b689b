"""How the clock of an external meter lies beside the board's: by round trips, and by the steps that work makes in its
trace. Seconds; an offset is added to the meter's time to have the board's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .energy import AGE, LATE, Window
from .stats import Floats

SEARCH_S = 30.0  # to either side of what the round trips say
LEAST_EXPLAINED = 0.3  # share of the variance of the watts that idle and work must explain
CORRELATED = 5.0  # neighbouring readings that count as one
FINE = 20  # steps in an interval
MOST_STEPS = 200_000
DRIFT = 1e-3  # a quartz keeps 1e-4
Trip = tuple[float, float, float]  # this machine's clock before, the board's, this machine's after


@dataclass(frozen=True)
class Offset:
    """value_s: what is added; by at most error_s beside the truth."""

    value_s: float
    error_s: float


@dataclass(frozen=True)
class Alignment:
    """offset: None where nothing tells it. by: "round trips" or "steps". steps: what the steps say, where they say
    anything. problem: why it must not be used."""

    offset: Offset | None
    by: str
    steps: Offset | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        known = self.offset
        return {
            "by": self.by,
            "offset_s": known.value_s if known else None,
            "error_s": known.error_s if known else None,
            "steps_say_s": self.steps.value_s if self.steps else None,
            "problem": self.problem,
        }


def of_round_trips(before: Sequence[Trip], after: Sequence[Trip]) -> Offset:
    """Board's clock less this machine's. The board read its own between asking and answer, so each trip bounds it; the
    bounds of both ends of a measurement are joined, as clocks drift."""
    ends = []
    for trips in (before, after):
        low = max(board - answered for _, board, answered in trips)
        high = min(board - asked for asked, board, _ in trips)
        ends.append((min(low, high), max(low, high)))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    return Offset((low + high) / 2, (high - low) / 2)


def of_steps(
    times: Floats,
    watts: Floats,
    marks: Sequence[tuple[int | None, Window]],
    around: Offset | None,
    reach_s: float = SEARCH_S,
) -> Offset | None:
    """The offset at which what the board did explains most of the watts. None where it explains little.

    marks: as power.Run has them. around: where to look, `reach_s` to either side; None: wherever the trace covers all
    marks. The error is half of the range that explains as much within the noise, and an interval of the meter.
    """
    if len(times) < 2 * len(marks) or not marks:
        return None
    interval_s = float(np.median(np.diff(times)))
    low, high = marks[-1][1].ended_s - times[-1], marks[0][1].began_s - times[0]
    if around is not None:
        reach = reach_s + around.error_s
        low, high = max(low, around.value_s - reach), min(high, around.value_s + reach)
    if not low <= high or interval_s <= 0:
        return None
    step = max(interval_s / 2, (high - low) / MOST_STEPS)
    coarse = np.arange(low, high + step, step).clip(low, high)
    found = _explained(times, watts, marks, coarse)
    best = float(coarse[int(np.argmax(found))])
    wide = np.concatenate([coarse, np.linspace(best - 2 * step, best + 2 * step, 4 * FINE + 1).clip(low, high)])
    wide.sort()
    found = _explained(times, watts, marks, wide)
    most = float(found.max())
    if most < LEAST_EXPLAINED:
        return None
    within = wide[found >= most - 4 * CORRELATED * (1 - most) / len(times) - 1e-12]
    first, last = float(within.min()), float(within.max())
    return Offset((first + last) / 2, (last - first) / 2 + interval_s)


def _explained(times: Floats, watts: Floats, marks: Sequence[tuple[int | None, Window]], offsets: Floats) -> Floats:
    """The share of the variance of the watts in marks that their means explain, at each offset (n,)."""
    sums, squares = (np.concatenate([[0.0], np.cumsum(watts**power)]) for power in (1, 2))
    groups: dict[int | None, list[Floats]] = {}
    for doing, window in marks:
        first, last = (np.searchsorted(times, end - offsets) for end in (window.began_s, window.ended_s))
        parts = [(last - first).astype(float), sums[last] - sums[first], squares[last] - squares[first]]
        groups[doing] = [old + new for old, new in zip(groups[doing], parts, strict=True)] if doing in groups else parts
    n, total, square = (sum(group[part] for group in groups.values()) for part in range(3))
    inner = sum(group[2] - group[1] ** 2 / np.maximum(group[0], 1) for group in groups.values())
    outer = square - total**2 / np.maximum(n, 1)
    idle_n, idle_sum, _ = groups.get(None, [np.zeros(len(offsets))] * 3)
    busier = (total - idle_sum) * idle_n >= idle_sum * (n - idle_n)  # work that takes less than idling is none
    return np.asarray(np.where((outer > 1e-9 * square) & busier, 1 - inner / np.maximum(outer, 1e-30), 0.0))


def align(
    times: Floats,
    watts: Floats,
    marks: Sequence[tuple[int | None, Window]],
    own_clock: bool,
    stamp_error_s: float,
    trips: Offset,
) -> Alignment:
    """How the readings of a meter lie beside the board's marks; with a clock of its own, by the steps alone."""
    if len(times) < 2:
        return Alignment(None, "steps" if own_clock else "round trips", None, f"the meter gave {len(times)} readings")
    steps_s = np.diff(times)
    if (steps_s <= 0).any():
        words = "the meter's clock jumped back, or tells several lines one time"
        return Alignment(None, "steps" if own_clock else "round trips", None, words)
    interval_s, marks = float(np.median(steps_s)), _sharp(marks)
    middle = times - AGE * interval_s
    if not own_clock:
        given = Offset(trips.value_s, trips.error_s + stamp_error_s)
        seen = of_steps(middle, watts, marks, given)
        return Alignment(given, "round trips", seen, _contradiction(given, seen, interval_s))
    seen = of_steps(middle, watts, marks, None)
    if seen is None:
        why = "the meter has a clock of its own, and its watts show no step where the board began to work"
        short = times[-1] - times[0] < marks[-1][1].ended_s - marks[0][1].began_s
        return Alignment(None, "steps", None, "the meter's lines do not reach over the measurement" if short else why)
    return Alignment(seen, "steps", seen, _jump(times, middle, watts, marks, seen, interval_s))


def _sharp(marks: Sequence[tuple[int | None, Window]]) -> list[tuple[int | None, Window]]:
    """The board settles before an idle window: it is idle from the end of its work on."""
    found = list(marks[:1])
    for (before, earlier), (doing, window) in pairwise(marks):
        settles = doing is None and before is not None
        found.append((doing, Window(earlier.ended_s, window.ended_s) if settles else window))
    return found


def _contradiction(given: Offset, seen: Offset | None, interval_s: float) -> str | None:
    if seen is None or abs(seen.value_s - given.value_s) <= given.error_s + seen.error_s + interval_s:
        return None
    return (
        f"the meter's watts rise and fall {given.value_s - seen.value_s:+.2f} s beside the board's work: its times are "
        "not by this machine's clock; with 's', 'ms' or 'us' as the unit of its time it is taken for a clock of its own"
    )


def _jump(
    times: Floats,
    middle: Floats,
    watts: Floats,
    marks: Sequence[tuple[int | None, Window]],
    seen: Offset,
    interval_s: float,
) -> str | None:
    """Whether a clock that nothing else checks was even: both ends of the work lie at one offset; where that cannot be
    told, there is no gap."""
    reach_s = min(window.seconds for _, window in marks) / 4
    ends = [of_steps(middle, watts, part, seen, reach_s) for part in (marks[:2], marks[-2:])]
    if ends[0] is not None and ends[1] is not None:
        away, span = abs(ends[0].value_s - ends[1].value_s), marks[-1][1].ended_s - marks[0][1].began_s
        if away > ends[0].error_s + ends[1].error_s + DRIFT * span:
            return f"the meter's clock and the board's part by {away:.2g} s between the beginning and the end"
        return None
    first, last = marks[0][1].began_s - seen.value_s, marks[-1][1].ended_s - seen.value_s
    gap = float(np.diff(times[(times >= first) & (times <= last)]).max(initial=0.0))
    if gap > LATE * interval_s:
        return f"the meter's times have a gap of {gap:.3g} s: lines are missing, or its clock jumped"
    return None
