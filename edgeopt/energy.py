"""Joules from a power sensor's raw readings, or the reason why there are none. Times in seconds of one clock, power in
watts, energy in joules; what the agent calls windows are here, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .stats import Figure, Floats, student_t

LEAST_READINGS = 20  # changes of the sensor that a window must hold: at most 5 % of it is at the mercy of its ends
SHORTEST_WINDOW_S = 10.0
LEAST_WINDOWS = 3
MOST_LOST = 0.02  # share of a window that lost readings may take; between their neighbours power is taken as straight
LATE = 3.0  # intervals between two readings from which one counts as late
MOST_W = 1000.0  # no board of edgeopt's draws as much; a unit that was mistaken does


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
    """times_s, values (n,): as they were read, in order; NaN where a reading failed."""

    sensor: Sensor
    times_s: Floats
    values: Floats


@dataclass(frozen=True)
class Window:
    """From when to when the board did one thing; n: inferences in it, 0: it was idle."""

    began_s: float
    ended_s: float
    n: int = 0

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


def energy(readings: Readings, window: Window, most_w: float = MOST_W) -> Figure:
    """Joules within one window: of a counter its difference, of power the trapezoids; at the window's ends between the
    readings around them. `n` counts the readings inside. Without a value where they do not carry one.
    """
    problem = _unfit(readings, window)
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
    return Figure(float(np.trapezoid(np.interp(at, times, values), at)), None, inside, readings.sensor.how)


def _unfit(readings: Readings, window: Window) -> str | None:
    """What is wrong with the readings of a window, whatever their values are."""
    sensor, times = readings.sensor, readings.times_s
    if window.seconds < LEAST_READINGS * sensor.interval_s:
        needs = LEAST_READINGS * sensor.interval_s
        return (
            f"a window of {window.seconds:.3g} s, but {sensor.named()} changes every {sensor.interval_s:g} s: "
            f"needs {needs:g} s"
        )
    if len(times) < 2 or times[0] > window.began_s or times[-1] < window.ended_s:
        return f"the readings of {sensor.named()} do not reach over the window"
    steps = np.diff(times)
    if (steps <= 0).any():
        return "the clock of the readings jumped back"
    first, last = np.searchsorted(times, (window.began_s, window.ended_s))
    low, high = max(0, int(first) - 1), min(len(times), int(last) + 1)
    usual = max(sensor.interval_s, float(np.median(steps)))
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
    if (watts < 0).any() or (watts > most_w).any():
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
    """Gross and net joules of one inference: the median over the windows, with Student's interval of their mean.

    runs: windows at work, each of SHORTEST_WINDOW_S at least; idles: windows before and after them. Net takes the idle
    board's mean power away. {"gross_j", "net_j": Figure, "idle_w": Figure, "windows": [{"began_s", "seconds", "n",
    "gross_j", "invalid"}]}; an invalid window is left out and told, and fewer than LEAST_WINDOWS valid ones give none.
    """
    how = readings.sensor.how
    told, gross, seconds = [], [], []
    for window in runs:
        found = energy(readings, window, most_w)
        short = window.seconds < SHORTEST_WINDOW_S or not window.n
        problem = found.invalid or (f"{window.n} inferences in {window.seconds:.3g} s, needs 10 s" if short else None)
        each = found.value / window.n if problem is None and found.value is not None else None
        told.append(
            {"began_s": window.began_s, "seconds": window.seconds, "n": window.n, "gross_j": each, "invalid": problem}
        )
        if each is not None:
            gross.append(each)
            seconds.append(window.seconds / window.n)
    idle = _idle_power(readings, idles, most_w)
    if len(gross) < LEAST_WINDOWS:
        why = next((one["invalid"] for one in told if one["invalid"]), "no windows")
        none = Figure(None, None, len(gross), how, f"{len(gross)} valid windows, needs {LEAST_WINDOWS}: {why}")
        return {"gross_j": none, "net_j": none, "idle_w": idle, "windows": told}
    blur = readings.sensor.interval_s / min(window.seconds for window in runs)
    net = (
        Figure(None, None, len(gross), how, f"idle power is not known: {idle.invalid}")
        if idle.value is None
        else _middle(np.array(gross) - idle.value * np.array(seconds), blur, how)
    )
    return {"gross_j": _middle(np.array(gross), blur, how), "net_j": net, "idle_w": idle, "windows": told}


def _idle_power(readings: Readings, idles: Sequence[Window], most_w: float) -> Figure:
    found = [(energy(readings, window, most_w), window.seconds) for window in idles]
    watts = [figure.value / seconds for figure, seconds in found if figure.value is not None]
    how = readings.sensor.how
    if not watts or len(watts) < len(found):
        why = next((figure.invalid for figure, _ in found if figure.invalid), "it was not measured")
        return Figure(None, None, len(watts), how, why)
    return Figure(float(np.mean(watts)), (min(watts), max(watts)), len(watts), how)


def _middle(values: Floats, blur: float, how: str) -> Figure:
    """The median, with Student's interval of the mean, as windows are few and each is a mean of many readings.

    blur: share of a window that its sensor's interval is; so much may belong to what came before and after, every time.
    """
    n, mean = len(values), float(values.mean())
    spread = student_t(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) + blur * abs(mean)
    return Figure(float(np.median(values)), (mean - spread, mean + spread), n, how)
