"""The clock of a meter beside the board's: known offsets are found within their error, and uneven ones refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.align import Alignment, Offset, align, of_round_trips
from edgeopt.energy import Readings, Sensor, Window, per_inference

FINE_S = 0.002
IDLE_W = 2.0
HERE = Offset(500.0, 0.002)  # the board's clock less this machine's


def marks_of(window_s: float = 10.5) -> list[tuple[int | None, Window]]:
    """As the agent makes them: idle, three windows that follow one another, a second to settle, idle."""
    marks: list[tuple[int | None, Window]] = [(None, Window(3.0, 3.0 + window_s / 2))]
    for _ in range(3):
        began = marks[-1][1].ended_s + 0.02
        marks.append((0, Window(began, began + window_s, 100)))
    began = marks[-1][1].ended_s + 1.0
    return [*marks, (None, Window(began, began + window_s / 2))]


@dataclasses.dataclass(frozen=True)
class Trace:
    """times_s by the board's clock, watts as a meter means them over its interval; the true joules of the windows."""

    times_s: np.ndarray
    watts: np.ndarray
    joules: list[float]


def traced(
    work_w: float,
    interval_s: float = 0.1,
    phase: float = 0.3,
    noise: float = 0.02,
    window_s: float = 10.5,
    ripple: float = 0.1,
) -> Trace:
    marks = marks_of(window_s)
    fine = np.arange(-20.0, marks[-1][1].ended_s + 30.0, FINE_S)
    watts = np.full(fine.shape, IDLE_W)
    for doing, window in marks:
        if doing is not None:
            watts[(fine >= window.began_s) & (fine < window.ended_s)] = work_w
    watts *= 1 + ripple * np.sin(2 * np.pi * 1.7 * fine)
    counted = np.concatenate([[0.0], np.cumsum(watts)[:-1] * FINE_S])
    ends = np.arange(-15.0, fine[-1], interval_s) + phase * interval_s
    means = (np.interp(ends, fine, counted) - np.interp(ends - interval_s, fine, counted)) / interval_s
    means *= 1 + np.random.default_rng(7).normal(0, noise, len(ends))
    joules = [
        float(np.diff(np.interp([window.began_s, window.ended_s], fine, counted))[0])
        for doing, window in marks
        if doing is not None
    ]
    return Trace(ends, means, joules)


def by_own_clock(trace: Trace, offset_s: float, window_s: float = 10.5) -> Alignment:
    return align(trace.times_s - offset_s, trace.watts, marks_of(window_s), True, 0.0, HERE)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.02, 0.05, 0.1]),
    st.floats(2.6, 12.0),
    st.floats(0.0, 1.0),
    st.floats(-1e6, 1e6),
)
def test_a_clock_of_its_own_is_found_and_the_joules_hold(
    interval_s: float, work_w: float, phase: float, offset_s: float
) -> None:
    trace, marks = traced(work_w, interval_s, phase), marks_of()
    found = by_own_clock(trace, offset_s)
    assert found.problem is None
    assert found.offset is not None
    assert abs(found.offset.value_s - offset_s) <= found.offset.error_s < 3.5 * interval_s
    times = trace.times_s - offset_s + found.offset.value_s
    readings = Readings(Sensor("csv", "log.csv", "power_w", interval_s), times, trace.watts, found.offset.error_s)
    windows = [window for doing, window in marks if doing is not None]
    figures = per_inference(readings, windows, [window for doing, window in marks if doing is None])
    true = np.median(trace.joules) / 100
    assert figures["gross_j"].value == pytest.approx(true, rel=0.01)
    assert figures["gross_j"].interval[0] <= true <= figures["gross_j"].interval[1]


def test_by_round_trips_what_the_steps_say_is_compared() -> None:
    trace = traced(6.0)
    found = align(trace.times_s - HERE.value_s, trace.watts, marks_of(), False, 0.05, HERE)
    assert found.problem is None
    assert found.offset == Offset(HERE.value_s, HERE.error_s + 0.05)
    assert found.steps is not None
    assert abs(found.steps.value_s - HERE.value_s) < 0.15
    assert found.to_json()["by"] == "round trips"


@pytest.mark.parametrize("away_s", [-4.0, -0.6, 0.6, 5.0])
def test_round_trips_and_steps_that_disagree_are_refused(away_s: float) -> None:
    trace = traced(6.0)
    found = align(trace.times_s - HERE.value_s + away_s, trace.watts, marks_of(), False, 0.05, HERE)
    assert found.problem is not None
    assert "beside the board's work: its times are not by this machine's clock" in found.problem


def test_without_a_step_round_trips_stand_alone() -> None:
    """A board that draws as much when it is idle; a second of offset moves no joules."""
    trace = traced(IDLE_W)
    found = align(trace.times_s - HERE.value_s, trace.watts, marks_of(), False, 0.05, HERE)
    assert (found.problem, found.steps) == (None, None)
    refused = by_own_clock(trace, 77.0)
    assert refused.offset is None
    assert "show no step where the board began to work" in str(refused.problem)


@pytest.mark.parametrize(
    ("row", "seconds", "said"),
    [
        (300, -1.0, "the meter's clock jumped back, or tells several lines one time"),
        (300, 1.0, "the meter's clock and the board's part by 1 s"),
        (300, 4.0, "the meter's clock and the board's part by 4 s"),
        (300, -0.1, "or tells several lines one time"),
    ],
)
def test_a_clock_that_jumps_is_refused(row: int, seconds: float, said: str) -> None:
    trace = traced(6.0)
    times = trace.times_s.copy()
    times[row:] += seconds
    found = by_own_clock(dataclasses.replace(trace, times_s=times), 1000.0)
    assert said in str(found.problem)


def test_a_clock_of_another_speed_is_refused() -> None:
    trace = traced(6.0)
    found = by_own_clock(dataclasses.replace(trace, times_s=trace.times_s * 1.02), 1000.0)
    assert "part by" in str(found.problem)


def test_a_trace_that_is_too_short_is_refused() -> None:
    trace = traced(6.0)
    short = Trace(trace.times_s[:300], trace.watts[:300], [])
    assert "do not reach over the measurement" in str(by_own_clock(short, 5.0).problem)
    assert "gave 0 readings" in str(by_own_clock(Trace(np.zeros(0), np.zeros(0), []), 5.0).problem)


def test_what_the_offset_leaves_unknown_widens_the_joules() -> None:
    """One window between idle ones: an error of the clock exchanges work for idling, by the step, once."""
    trace, marks = traced(6.0, noise=0.0, ripple=0.0), marks_of()
    readings = Readings(Sensor("csv", "log.csv", "power_w", 0.1), trace.times_s, trace.watts)
    windows, idles = (
        [window for doing, window in marks if doing == 0],
        [window for doing, window in marks if doing is None],
    )
    first = windows[:1] * 3
    exact = per_inference(readings, first, idles)["gross_j"]
    blurred = per_inference(dataclasses.replace(readings, offset_error_s=0.2), first, idles)["gross_j"]
    grown = (blurred.interval[1] - exact.interval[1]) * 100
    assert 1.0 <= grown / (0.2 * (6.0 - IDLE_W)) < 1.5
    lost = per_inference(dataclasses.replace(readings, offset_error_s=0.3), first, idles)["gross_j"]
    assert lost.value is None
    assert "known to 0.3 s, needs 0.21 s in such a window" in lost.invalid


@given(st.floats(-1e4, 1e4), st.lists(st.tuples(st.floats(1e-4, 0.3), st.floats(0, 1)), min_size=2, max_size=20))
def test_round_trips_bound_the_offset(offset_s: float, trips: list[tuple[float, float]]) -> None:
    """Wherever within a trip the board read its clock."""
    told = [(10.0 * k, 10.0 * k + share * took + offset_s, 10.0 * k + took) for k, (took, share) in enumerate(trips)]
    found = of_round_trips(told[:1], told[1:])
    assert abs(found.value_s - offset_s) <= found.error_s + 1e-6
    assert found.error_s <= max(took for took, _ in trips)
