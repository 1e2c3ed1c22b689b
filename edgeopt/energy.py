"""Joules from a power sensor's raw readings, or the reason why there are none. Times in seconds of one clock, power in
watts, energy in joules; what the agent calls windows are here, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from .frozen import LEAST_READINGS, Stretch, stretches_of
from .stats import DRIFT_TOLERANCE, Figure, Floats, student_t

LEAST_INTERVALS = 110  # of a power sensor in a window: what its ends may be mistaken by is then within 1 %
AGE = 0.75  # of a reading, in intervals: midway between 0 and 1.5
JITTER = 1.05  # of a sampler that reads a little later each time
SHORTEST_WINDOW_S = 10.0
LEAST_WINDOWS = 3
MOST_LOST = 0.02  # share of a window that lost readings may take; between their neighbours power is taken as straight
LATE = 3.0  # intervals between two readings from which one counts as late
MOST_W = 1000.0  # no board of edgeopt's draws as much; a unit that was mistaken does
LEAST_W = 0.005  # at work; no board that runs Linux needs as little
FRESH_START = 1.5  # times the greatest power elsewhere, that a counter may show where it begins again
MOST_OFFSET = 0.02  # share of a window by which the clock of an external meter may be unknown
UNITS_TOLERANCE = 0.1  # between a sensor's watts and its volts by its amperes
CURRENT_STEP_A = 1e-3  # the coarsest that such sensors tell


@dataclass(frozen=True)
class Sensor:
    """Where the readings come from. quantity: "power_w", or "energy_j", a counter that begins again at `range_j`.

    interval_s: how often the figure changes at most; resolution: its smallest step; how: measured, or estimated.
    """

    kind: str
    rail: str
    quantity: str
    interval_s: float
    resolution: float | None = None
    range_j: float | None = None
    how: str = "measured"

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Sensor:
        """As the agent describes it (edgeopt_agent.power)."""
        names = ("kind", "rail", "quantity", "interval_s", "resolution", "range_j")
        return cls(**{name: told[name] for name in names})

    def named(self) -> str:
        return f"{self.kind} {self.rail}"


@dataclass(frozen=True)
class Readings:
    """times_s, values (n,): as they were read, in order; NaN where a reading failed.

    offset_error_s: by how much the clock of times_s may differ from that of the windows. problem: why they carry
    nothing at all.
    """

    sensor: Sensor
    times_s: Floats
    values: Floats
    offset_error_s: float = 0.0
    problem: str | None = None

    def centred(self) -> Readings:
        """Power where it belongs: a reading tells of a moment or of the interval before it, and may be as old again."""
        if self.sensor.quantity != "power_w":
            return self
        return replace(self, times_s=self.times_s - AGE * self.sensor.interval_s)


@dataclass(frozen=True)
class Window:
    """From when to when the board did one thing; n: inferences in it, 0: it was idle."""

    began_s: float
    ended_s: float
    n: int = 0

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s

    def later(self, seconds: float) -> Window:
        return Window(self.began_s + seconds, self.ended_s + seconds, self.n)


def energy(readings: Readings, window: Window, most_w: float = MOST_W) -> Figure:
    """Joules within one window: of a counter its difference, of power the trapezoids; at the window's ends between the
    readings around them. `n` counts the readings inside. Without a value where they do not carry one. Its interval is
    what the clock's error makes of it, where there is such an error.
    """
    readings = readings.centred()
    found = _joules(readings, window, most_w)
    error_s = readings.offset_error_s
    if found.value is None or not error_s:
        return found
    reach_s = error_s + AGE * readings.sensor.interval_s  # so that the blur of a step hides none of it
    shifted = [_joules(readings, window.later(step * reach_s), most_w).value for step in (-1.0, -0.5, 0.5, 1.0)]
    known = [value for value in shifted if value is not None]
    if len(known) < len(shifted):
        return replace(found, value=None, invalid=f"the readings of {readings.sensor.named()} end with the window")
    away = max(abs(value - found.value) for value in known)
    return replace(found, interval=(found.value - away, found.value + away))


def _joules(readings: Readings, window: Window, most_w: float) -> Figure:
    problem = readings.problem or _unfit(readings, window)
    times, values = readings.times_s, readings.values
    first, last = np.searchsorted(times, (window.began_s, window.ended_s))
    inside = int(np.isfinite(values[first:last]).sum())
    if problem is None:
        low, high = max(0, int(first) - 1), min(len(times), int(last) + 1)
        times, values = times[low:high], values[low:high]
        whole = np.isfinite(values)
        times, values = times[whole], values[whole]
        if readings.sensor.quantity == "energy_j":
            values, problem = _unwrapped(values, times, readings.sensor, most_w)
        else:
            problem = _absurd(values, most_w)
    if problem is not None:
        return Figure(None, None, inside, readings.sensor.how, problem)
    if readings.sensor.quantity == "energy_j":
        begin, end = np.interp((window.began_s, window.ended_s), times, values)
        return Figure(float(end - begin), None, inside, readings.sensor.how)
    edges = np.array([window.began_s, window.ended_s])
    at = np.concatenate([edges[:1], times[(times > edges[0]) & (times < edges[1])], edges[1:]])
    joules = float(np.trapezoid(np.interp(at, times, values), at))
    if window.n and joules < LEAST_W * window.seconds:
        why = f"{joules / window.seconds:.3g} W at work: no board needs as little; is the unit right, and the rail?"
        return Figure(None, None, inside, readings.sensor.how, why)
    return Figure(joules, None, inside, readings.sensor.how)


def _unfit(readings: Readings, window: Window) -> str | None:
    """What is wrong with the readings of a window, whatever their values are."""
    sensor, times = readings.sensor, readings.times_s
    least = LEAST_INTERVALS if sensor.quantity == "power_w" and window.n else LEAST_READINGS
    if window.seconds * JITTER < (needs := least * sensor.interval_s):
        changes = f"{sensor.named()} changes every {sensor.interval_s:.3g} s: needs {needs:.3g} s"
        return f"a window of {window.seconds:.3g} s, but {changes}"
    if window.n and readings.offset_error_s > MOST_OFFSET * window.seconds:  # idle windows are cut by it
        known = f"known to {readings.offset_error_s:.2g} s, needs {MOST_OFFSET * window.seconds:.2g} s in such a window"
        return f"the offset between the clocks of {sensor.named()} and the board is {known}"
    if len(times) < 2 or times[0] > window.began_s or times[-1] < window.ended_s:
        return f"the readings of {sensor.named()} do not reach over the window"
    steps = np.diff(times)
    if (steps <= 0).any():
        return "the clock of the readings jumped back, or tells several readings one time"
    first, last = np.searchsorted(times, (window.began_s, window.ended_s))
    low, high = max(0, int(first) - 1), min(len(times), int(last) + 1)
    usual = max(sensor.interval_s, float(np.median(steps)), float(np.median(steps[low : high - 1])))
    if sensor.quantity == "power_w" and window.seconds * JITTER < least * usual:
        return f"{sensor.named()} was read every {usual:.3g} s: needs a window of {least * usual:.3g} s"
    kept = times[low:high][np.isfinite(readings.values[low:high])]
    inside = int(np.isfinite(readings.values[first:last]).sum())
    if inside < LEAST_READINGS:
        return f"{inside} readings of {sensor.named()} in the window, needs {LEAST_READINGS}"
    if kept[0] > window.began_s or kept[-1] < window.ended_s:
        return f"{sensor.named()} gave no reading at an end of the window"
    gaps = np.diff(kept)
    lost = float((gaps[gaps > LATE * usual] - usual).sum())
    if sensor.quantity == "power_w" and lost > MOST_LOST * window.seconds:
        return f"readings of {sensor.named()} are missing or late over {lost / window.seconds:.0%} of the window"
    return None


def shortest_window_s(sensor: Sensor) -> float:
    """How long a window at work must be for this sensor; a counter is exact, whenever it is read."""
    least = LEAST_INTERVALS if sensor.quantity == "power_w" else LEAST_READINGS
    return max(SHORTEST_WINDOW_S, least * sensor.interval_s)


def units_disagree(told: Sequence[tuple[float, float, float]], where: str) -> str | None:
    """What is wrong where watts are not volts by amperes. told: (watts, volts, amperes) of single moments."""
    rows = [row for row in told if all(map(math.isfinite, row)) and abs(row[2]) > 5 * CURRENT_STEP_A]
    if not rows:
        return None
    watts = float(np.median([row[0] for row in rows]))
    product = float(np.median([abs(volts * amperes) for _, volts, amperes in rows]))
    least = float(np.median([abs(volts) for _, volts, _ in rows])) * CURRENT_STEP_A
    if abs(abs(watts) - product) <= UNITS_TOLERANCE * product + least:
        return None
    ratio = abs(watts) / product if product else math.inf  # a rail that reads 0 V
    powers = next((power for power in (3, 6, -3, -6) if abs(ratio / 10.0**power - 1) < 2 * UNITS_TOLERANCE), None)
    slip = {3: "1,000 times as much", 6: "1,000,000 times as much", -3: "a thousandth", -6: "a millionth"}
    likely = f": {slip[powers]}, so a unit is mistaken (mW for µW, mA for A, …)" if powers else ""
    return f"{where} tells {watts:.3g} W, but its volts by its amperes are {product:.3g} W{likely}"


def _absurd(watts: Floats, most_w: float) -> str | None:
    if (watts < 0).any():
        return f"a reading of {float(watts.min()):.3g} W: a board takes power, it gives none"
    if (watts > most_w).any():
        return f"a reading of {float(watts.max()):.3g} W, at most {most_w:g} W can be: is the unit right?"
    return None


def _unwrapped(counts: Floats, times: Floats, sensor: Sensor, most_w: float) -> tuple[Floats, str | None]:
    """A counter without its fresh starts; one that was set back tells nothing."""
    steps = np.diff(counts)
    back = steps < 0
    if back.any():
        if sensor.range_j is None:
            return counts, f"{sensor.named()} went back, and its range is not told"
        steps = steps + np.where(back, sensor.range_j, 0.0)
    watts = steps / np.diff(times)
    usual = watts[~back].max(initial=0.0)  # a counter that is set back near its end looks as if it began again
    if (watts < 0).any() or (watts > most_w).any() or (watts[back] > FRESH_START * usual).any():
        return (
            counts,
            f"{sensor.named()} stepped by {float(steps[np.argmax(np.abs(watts))]):.3g} J at once: it was reset",
        )
    if sensor.range_j is not None and float(np.diff(times).max()) * most_w > sensor.range_j > 0 and back.any():
        longest = float(np.diff(times).max())
        fastest = float(np.median(watts)) * longest
        if fastest > sensor.range_j / 2:
            return (
                counts,
                f"{longest:.3g} s without a reading, in which {sensor.named()} may have begun again more than once",
            )
    return np.concatenate([counts[:1], counts[0] + np.cumsum(steps)]), None


def per_inference(
    readings: Readings, runs: Sequence[Window], idles: Sequence[Window], most_w: float = MOST_W
) -> dict[str, Any]:
    """Gross and net joules of one inference, and watts at work: medians over windows, with Student's interval of means.

    runs: windows at work, each of SHORTEST_WINDOW_S at least; idles: windows before and after them. Net takes the idle
    board's mean power away; where that drifted, its interval is wider by half of it. {"gross_j", "net_j", "work_w",
    "idle_w": Figure, "windows": [{"began_s", "seconds", "n", "gross_j", "invalid"}]}; an invalid window is left out
    and told, and fewer than LEAST_WINDOWS valid ones give none.
    """
    how = readings.sensor.how
    told, joules, each_s, watts, errors = [], [], [], [], []
    stretches = _stretches(readings, runs)
    for window in runs:
        found, problem = _of_window(readings, window, most_w, stretches)
        each = found.value / window.n if problem is None and found.value is not None else None
        told.append(
            {"began_s": window.began_s, "seconds": window.seconds, "n": window.n, "gross_j": each, "invalid": problem}
        )
        if each is not None and found.value is not None:
            joules.append(each)
            each_s.append(window.seconds / window.n)
            watts.append(found.value / window.seconds)
            errors.append(_clock_error(found))
    idle = _idle_power(readings, idles, most_w, stretches)
    if len(joules) < LEAST_WINDOWS:
        why = next((one["invalid"] for one in told if one["invalid"]), "no windows")
        none = Figure(None, None, len(joules), how, f"{len(joules)} valid windows, needs {LEAST_WINDOWS}: {why}")
        return {"gross_j": none, "net_j": none, "work_w": none, "idle_w": idle, "windows": told}
    blur = _end_s(readings) / min(window.seconds for window in runs) + max(errors)
    gross, seconds = np.array(joules), np.array(each_s)
    net = (
        Figure(None, None, len(gross), how, f"idle power is not known: {idle.invalid}")
        if idle.value is None
        else _middle(gross - idle.value * seconds, blur * gross.mean() + _drift_w(idle) * seconds.mean(), how)
    )
    work = _middle(np.array(watts), blur * float(np.mean(watts)), how)
    gross_j = _middle(gross, blur * gross.mean(), how)
    return {"gross_j": gross_j, "net_j": net, "work_w": work, "idle_w": idle, "windows": told}


def ratio(
    readings: Readings, own: Sequence[Window], other: Sequence[Window], quantity: str, most_w: float = MOST_W
) -> Figure:
    """Gross joules of an inference ("energy_j"), or watts at work ("power_w"), of one artifact over those of another.

    own, other: windows that took turns, so the k-th of both lie side by side and a drift meets them alike. The median
    over these pairs, with Student's interval of their mean, wider by what may belong to the neighbours of a window, and
    `n`, how many count. Without a value where fewer than LEAST_WINDOWS pairs are valid.
    """
    how, problems = readings.sensor.how, []
    ratios, blurs = [], []
    stretches = _stretches(readings, [*own, *other])
    for pair in zip(own, other, strict=True):
        sides, blur = [], 0.0
        for window in pair:
            found, problem = _of_window(readings, window, most_w, stretches)
            if found.value is None or problem:
                problems.append(problem)
                continue
            sides.append(found.value / (window.n if quantity == "energy_j" else window.seconds))
            blur += _end_s(readings) / window.seconds + _clock_error(found)
        if len(sides) == len(pair):
            ratios.append(sides[0] / sides[1])
            blurs.append(blur)
    if len(ratios) < LEAST_WINDOWS:
        why = f": {problems[0]}" if problems else ""
        return Figure(None, None, len(ratios), how, f"{len(ratios)} valid pairs of windows, needs {LEAST_WINDOWS}{why}")
    return _middle(np.array(ratios), max(blurs) * float(np.mean(ratios)), how)


def drift(readings: Readings, runs: Sequence[Window]) -> str | None:
    """How the later half of one artifact's windows departs from the earlier, in words; None where it does not.

    Its inferences take more or less time or joules, by more than 5 %, and none of its windows lies among those of the
    earlier half (with an odd number the middle one between them). Three windows do so by chance one time in three, so
    it is the 5 % that keep noise quiet. Needs LEAST_WINDOWS valid ones.
    """
    found = [(window.n, *_of_window(readings, window, MOST_W)) for window in runs]
    joules = [figure.value / n for n, figure, problem in found if figure.value is not None and not problem]
    seconds = [window.seconds / window.n for window in runs if window.n]
    for what, values in (("time", seconds), ("energy", joules)):
        if (ratio := _one_way(values)) is not None:
            more = "more" if ratio > 1 else "less"
            return f"an inference of the later windows takes {more} {what}, ratio {ratio:.3f}"
    return None


def _one_way(values: Sequence[float]) -> float | None:
    """The later half's median over the earlier's, where `drift` tells it. values: all above zero, else None."""
    half, count = len(values) // 2, len(values)
    if count < LEAST_WINDOWS or min(values) <= 0:
        return None
    parts = [values[:half], values[half : count - half], values[count - half :]]
    ratio = float(np.median(parts[2]) / np.median(parts[0]))
    order = [part for part in (parts if ratio > 1 else parts[::-1]) if part]
    apart = all(max(low) <= min(high) for low, high in pairwise(order))
    return ratio if apart and max(ratio, 1 / ratio) > 1 + DRIFT_TOLERANCE else None


def _stretches(readings: Readings, runs: Sequence[Window]) -> list[Stretch]:
    return stretches_of(readings.times_s, readings.values, [(run.began_s, run.ended_s) for run in runs])


def _stands_still(sensor: Sensor, window: Window, stretches: Sequence[Stretch]) -> str | None:
    """Why a window does not count in which the sensor was frozen."""
    for stretch in stretches:
        shared = min(window.ended_s, stretch.ended_s) - max(window.began_s, stretch.began_s)
        if shared > MOST_LOST * window.seconds:
            return (
                f"{sensor.named()} told one and the same figure {stretch.n} times in a row, over "
                f"{stretch.ended_s - stretch.began_s:.3g} s: it is frozen, or too coarse"
            )
    return None


def _of_window(
    readings: Readings, window: Window, most_w: float, stretches: Sequence[Stretch] = ()
) -> tuple[Figure, str | None]:
    """(its joules, why they do not count). stretches: in which the sensor was frozen."""
    found = energy(readings, window, most_w)
    short = window.seconds < SHORTEST_WINDOW_S or not window.n
    few = f"{window.n} inferences in {window.seconds:.3g} s, needs {SHORTEST_WINDOW_S:g} s" if short else None
    return found, found.invalid or _stands_still(readings.sensor, window, stretches) or few


def _clock_error(found: Figure) -> float:
    """What the clock's error makes of a window's joules, as a share of them."""
    return (found.interval[1] - found.value) / found.value if found.interval and found.value else 0.0


def _end_s(readings: Readings) -> float:
    """How much of a window may belong to what came before or after it; of a counter, half the time between readings."""
    interval_s = readings.sensor.interval_s
    counts = readings.sensor.quantity == "energy_j"
    return interval_s + float(np.median(np.diff(readings.times_s))) / 2 if counts else interval_s


def _idle_power(readings: Readings, idles: Sequence[Window], most_w: float, stretches: Sequence[Stretch]) -> Figure:
    edge_s = readings.sensor.interval_s + readings.offset_error_s  # so near may be the work before or after it
    inner = [Window(window.began_s + edge_s, window.ended_s - edge_s) for window in idles]
    found = [(energy(readings, window, most_w), window.seconds) for window in inner]
    watts = [figure.value / seconds for figure, seconds in found if figure.value is not None]
    how = readings.sensor.how
    still = [_stands_still(readings.sensor, window, stretches) for window in inner]
    problems = [problem for problem in (*(figure.invalid for figure, _ in found), *still) if problem]
    if problems or not watts:
        why = problems[0] if problems else "it was not measured"
        return Figure(None, None, len(watts), how, why)
    return Figure(float(np.mean(watts)), (min(watts), max(watts)), len(watts), how)


def _drift_w(idle: Figure) -> float:
    """By how much the idle board's power may have been another one while it worked: half of what it changed by."""
    return (max(idle.interval) - min(idle.interval)) / 2 if idle.interval else 0.0


def _middle(values: Floats, blur: float, how: str) -> Figure:
    """The median, with Student's interval of the mean, as windows are few and each is a mean of many readings.

    blur: how much, in the unit of values, may belong to what came before and after a window, every time: its sensor's
    interval, and what is not known of its clock.
    """
    n, mean = len(values), float(values.mean())
    spread = student_t(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) + float(blur)
    return Figure(float(np.median(values)), (mean - spread, mean + spread), n, how)
