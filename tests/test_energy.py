"""Joules from traces whose joules are known, and every way in which readings can be wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeopt.energy import LEAST_WINDOWS, Readings, Sensor, Window, drift, energy, per_inference, ratio

POWER = Sensor("hwmon", "VDD_IN", "power_w", 0.1, 1e-3)
COUNTER = Sensor("rapl", "package-0", "energy_j", 0.001, 61e-6, range_j=262143.328850)
WORK_W, IDLE_W = 7.5, 2.25


def watts_at(times: np.ndarray, busy: list[Window]) -> np.ndarray:
    """Idle, but for the windows; there a ripple of 20 % at 3 Hz."""
    watts = np.full(times.shape, IDLE_W)
    for window in busy:
        inside = (times >= window.began_s) & (times <= window.ended_s)
        watts[inside] = WORK_W * (1 + 0.2 * np.sin(2 * np.pi * 3 * times[inside]))
    return watts


def joules_of(window: Window, busy: list[Window]) -> float:
    fine = np.linspace(window.began_s, window.ended_s, 200_001)
    return float(np.trapezoid(watts_at(fine, busy), fine))


def trace(
    sensor: Sensor, busy: list[Window], period_s: float = 0.05, end_s: float = 80.0, start_j: float = 0.0
) -> Readings:
    """What a sensor that sees everything tells, at its own resolution."""
    times = np.arange(0.0, end_s, period_s) + 0.003
    fine = np.arange(0.0, end_s + 1, 0.001)
    counted = np.concatenate([[0.0], np.cumsum(watts_at(fine, busy)[1:] * 0.001)])
    if sensor.quantity == "energy_j":
        values = start_j + np.interp(times, fine, counted)
        values = np.floor(values / sensor.resolution) * sensor.resolution  # type: ignore[operator]
        values = np.mod(values, sensor.range_j)
    else:  # a mean over its interval, as such chips give
        values = (
            np.interp(times, fine, counted) - np.interp(times - sensor.interval_s, fine, counted)
        ) / sensor.interval_s
        values[0] = values[1]
        values = np.round(values / sensor.resolution) * sensor.resolution  # type: ignore[operator]
    return Readings(sensor, times, values)


BUSY = [Window(10.0, 22.0, 1200), Window(26.0, 38.5, 1250), Window(45.0, 57.0, 1200)]
IDLE = [Window(1.0, 9.0), Window(60.0, 75.0)]


@pytest.mark.parametrize("sensor", [POWER, COUNTER], ids=["power", "counter"])
@pytest.mark.parametrize("window", BUSY)
def test_known_joules_are_found_within_a_hundredth(sensor: Sensor, window: Window) -> None:
    found = energy(trace(sensor, BUSY), window)
    assert found.value == pytest.approx(joules_of(window, BUSY), rel=0.01)
    assert found.invalid is None
    assert found.n > 200


def test_a_counter_that_begins_again_is_followed() -> None:
    assert COUNTER.range_j is not None
    readings = trace(COUNTER, BUSY, start_j=COUNTER.range_j - 100.0)
    assert (np.diff(readings.values) < 0).any()
    assert energy(readings, BUSY[1]).value == pytest.approx(joules_of(BUSY[1], BUSY), rel=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: with_values(r, 250, 900_000.0), "9e+05 W, at most 1000 W can be: is the unit right?"),
        (lambda r: with_values(r, 250, -3.0), "-3 W: a board takes power"),
        (lambda r: dataclasses.replace(r, values=r.values * 1000), "is the unit right?"),
        (lambda r: with_values(r, slice(220, 320), np.nan), "missing or late over"),
        (lambda r: with_values(r, slice(150, 235), np.nan), "no reading at an end"),
        (lambda r: without(r, slice(220, 320)), "missing or late over"),
        (lambda r: clock_jumps(r, 300, -30.0), "the clock of the readings jumped back"),
        (lambda r: clock_jumps(r, 300, 30.0), "missing or late over"),
        (lambda r: without(r, slice(300, None)), "do not reach over the window"),
        (lambda r: with_values(r, slice(0, None), np.nan), "0 readings of hwmon VDD_IN in the window"),
    ],
)
def test_readings_that_cannot_be_give_no_joules(change: object, said: str) -> None:
    found = energy(change(trace(POWER, BUSY)), BUSY[0])  # type: ignore[operator]
    assert found.value is None
    assert said in str(found.invalid)


def with_values(readings: Readings, where: object, value: float) -> Readings:
    values = readings.values.copy()
    values[where] = value  # type: ignore[index]
    return dataclasses.replace(readings, values=values)


def without(readings: Readings, rows: slice) -> Readings:
    return dataclasses.replace(
        readings, times_s=np.delete(readings.times_s, rows), values=np.delete(readings.values, rows)
    )


def clock_jumps(readings: Readings, row: int, seconds: float) -> Readings:
    times = readings.times_s.copy()
    times[row:] += seconds
    return dataclasses.replace(readings, times_s=times)


def test_a_few_lost_readings_cost_little() -> None:
    readings = with_values(trace(POWER, BUSY), [230, 260, 261, 300], np.nan)
    assert energy(readings, BUSY[0]).value == pytest.approx(joules_of(BUSY[0], BUSY), rel=0.01)


@pytest.mark.parametrize(
    ("sensor", "said"),
    [
        (dataclasses.replace(COUNTER, range_j=None), "went back, and its range is not told"),
        (COUNTER, "at once: it was reset"),
    ],
)
def test_a_counter_that_is_set_back_gives_no_joules(sensor: Sensor, said: str) -> None:
    readings = trace(COUNTER, BUSY, start_j=5000.0)
    values = readings.values.copy()
    values[300:] -= values[300]
    found = energy(Readings(sensor, readings.times_s, values), BUSY[0])
    assert found.value is None
    assert said in str(found.invalid)


def test_a_window_that_is_short_for_its_sensor_is_told() -> None:
    slow = dataclasses.replace(POWER, interval_s=1.0)
    found = energy(trace(slow, BUSY), Window(10.0, 22.0, 5))
    assert found.value is None
    assert "changes every 1 s: needs 110 s" in str(found.invalid)


def test_gross_and_net_of_one_inference() -> None:
    found = per_inference(trace(POWER, BUSY), BUSY, IDLE)
    assert found["gross_j"].value == pytest.approx(WORK_W / 100, rel=0.01)
    assert found["net_j"].value == pytest.approx((WORK_W - IDLE_W) / 100, rel=0.015)
    assert found["idle_w"].value == pytest.approx(IDLE_W, rel=0.005)
    low, high = found["gross_j"].interval
    assert low < WORK_W / 100 < high
    assert len(found["windows"]) == LEAST_WINDOWS


def test_net_is_as_unsure_as_the_idle_board_drifts() -> None:
    """Idle 2 W before and 4 W after; the half of that by the seconds of an inference is what net cannot know."""
    steady = trace(POWER, BUSY)
    before, after = (np.where(steady.times_s > 58, watts, 2.0) for watts in (2.0, 4.0))
    spread = []
    for idle in (before, after):
        busy = (steady.times_s > 9.9) & (steady.times_s < 57.2)
        readings = dataclasses.replace(steady, values=np.where(busy, steady.values, idle))
        low, high = per_inference(readings, BUSY, IDLE)["net_j"].interval
        spread.append((high - low) / 2)
    assert spread[1] - spread[0] == pytest.approx(1.0 * 0.01, rel=0.01)


def test_without_idle_power_there_is_no_net() -> None:
    found = per_inference(trace(POWER, BUSY), BUSY, [])
    assert found["gross_j"].value is not None
    assert found["net_j"].value is None
    assert "idle power is not known" in found["net_j"].invalid


def test_windows_that_do_not_count_are_told() -> None:
    readings = with_values(trace(POWER, BUSY), 250, -3.0)
    found = per_inference(readings, [*BUSY, Window(66.0, 70.0, 400)], IDLE)
    assert found["gross_j"].value is None
    assert found["gross_j"].invalid.startswith("2 valid windows, needs 3: a reading of -3 W")
    assert [window["invalid"] is None for window in found["windows"]] == [False, True, True, False]


def turns(own_w: float, other_w: float, sensor: Sensor = POWER) -> tuple[Readings, list[Window], list[Window]]:
    """Windows of two artifacts, A B B A A B, that draw these watts; 100 and 80 inferences a second."""
    order = [0, 1, 1, 0, 0, 1]
    windows = [Window(10.0 + 12 * k, 21.0 + 12 * k, 1100 if who == 0 else 880) for k, who in enumerate(order)]
    times = np.arange(0.0, 90.0, 0.05)
    watts = np.full(times.shape, IDLE_W)
    for window, who in zip(windows, order, strict=True):
        watts[(times >= window.began_s) & (times <= window.ended_s)] = (own_w, other_w)[who]
    split = [[w for w, who in zip(windows, order, strict=True) if who == side] for side in (0, 1)]
    return Readings(sensor, times, watts), split[0], split[1]


def test_a_ratio_of_joules_and_of_watts() -> None:
    readings, own, other = turns(3.0, 6.0)
    watts, joules = (ratio(readings, own, other, quantity) for quantity in ("power_w", "energy_j"))
    assert watts.value == pytest.approx(0.5, rel=0.01)
    assert joules.value == pytest.approx(0.5 * 80 / 100, rel=0.01)
    for found, truth in ((watts, 0.5), (joules, 0.4)):
        assert found.interval is not None
        assert found.interval[0] <= truth <= found.interval[1]
        assert found.interval[1] - found.interval[0] < 0.1 * truth
        assert (found.n, found.invalid) == (3, None)


def test_a_drift_of_the_board_meets_both_of_a_ratio() -> None:
    """Watts that rise by a third over the run move the joules of both, and the ratio little."""
    readings, own, other = turns(3.0, 3.0)
    readings = dataclasses.replace(readings, values=readings.values * np.linspace(1.0, 4 / 3, len(readings.values)))
    found = ratio(readings, own, other, "power_w")
    assert found.value == pytest.approx(1.0, abs=0.06)
    assert found.interval is not None
    assert found.interval[0] <= 1 <= found.interval[1]


def test_too_few_pairs_give_no_ratio() -> None:
    readings, own, other = turns(3.0, 6.0)
    lost = dataclasses.replace(readings, values=np.where(readings.times_s > 60, np.nan, readings.values))
    found = ratio(lost, own, other, "energy_j")
    assert (found.value, found.interval) == (None, None)
    assert "2 valid pairs of windows, needs 3: " in str(found.invalid)


def test_the_figure_is_the_median_of_windows_and_its_interval_their_spread() -> None:
    """Windows of 3, 3 and 9 W: the median is 3 W, the mean 5 W."""
    steady = trace(POWER, BUSY)
    drawn = np.full(steady.times_s.shape, 1.0)
    for window, watts in zip(BUSY, (3.0, 3.0, 9.0), strict=True):
        drawn[(steady.times_s > window.began_s - 0.5) & (steady.times_s < window.ended_s + 0.5)] = watts
    found = per_inference(dataclasses.replace(steady, values=drawn), BUSY, IDLE)
    for key, value in (("work_w", 3.0), ("gross_j", 0.03), ("net_j", 0.02)):
        assert found[key].value == pytest.approx(value, rel=0.01)
        low, high = found[key].interval
        assert low < 0 < 3 * value < high  # three windows that differ so much say little
    assert [window["gross_j"] for window in found["windows"]] == pytest.approx([0.03, 0.03, 0.09], rel=0.01)


@pytest.mark.parametrize(("seconds", "counts"), [(9.9, False), (10.0, True)])
def test_a_window_of_less_than_10_s_does_not_count(seconds: float, counts: bool) -> None:
    fast = dataclasses.replace(POWER, interval_s=0.05)
    windows = [Window(10.0, 10.0 + seconds, 1000), *BUSY[1:]]
    found = per_inference(trace(fast, windows), windows, IDLE)
    assert (found["windows"][0]["invalid"] is None) == counts
    assert (found["gross_j"].value is not None) == counts
    if not counts:
        assert found["windows"][0]["invalid"] == "1000 inferences in 9.9 s, needs 10 s"


@pytest.mark.parametrize(
    ("counts", "watts", "said"),
    [
        ([1200, 1200, 1200], [5.0, 5.0, 5.0], None),
        ([1200, 1130, 1060], [5.0, 5.0, 5.0], "takes more time, ratio 1.132"),
        ([1060, 1130, 1200], [5.0, 5.0, 5.0], "takes less time, ratio 0.883"),
        ([1200, 1180, 1160], [5.0, 5.0, 5.0], None),  # 3 %
        ([1200, 1060, 1130], [5.0, 5.0, 5.0], None),  # it went back
        ([1200, 1200, 1200], [5.0, 5.4, 5.8], "takes more energy, ratio 1.16"),
        ([1200, 1190, 1110, 1100], [5.0] * 4, "takes more time, ratio 1.08"),
        ([1200, 1090, 1190, 1080], [5.0] * 4, None),
        ([1200, 1000], [5.0, 9.0], None),  # too few to tell a drift
    ],
)
def test_a_drift_goes_one_way(counts: list[int], watts: list[float], said: str | None) -> None:
    runs = [Window(10.0 + 14 * k, 22.0 + 14 * k, n) for k, n in enumerate(counts)]
    times = np.arange(0.0, 80.0, 0.1)
    values = np.repeat(IDLE_W, len(times))
    for window, drawn in zip(runs, watts, strict=True):
        values[(times > window.began_s - 0.5) & (times < window.ended_s + 0.5)] = drawn
    found = drift(Readings(POWER, times, values), runs)
    assert found is None if said is None else said in str(found)


# A sensor that stands still


@pytest.mark.parametrize("sensor", [POWER, COUNTER], ids=["power", "counter"])
@pytest.mark.parametrize("since_s", [0.0, 15.0, 30.0], ids=["from the first", "in a window", "between windows"])
def test_a_figure_that_stays_beyond_chance_decides_nothing(sensor: Sensor, since_s: float) -> None:
    readings = trace(sensor, BUSY)
    begin = int(np.searchsorted(readings.times_s, since_s))
    values = readings.values.copy()
    values[begin:] = values[begin]
    found = per_inference(dataclasses.replace(readings, values=values), BUSY, IDLE)
    for name in ("gross_j", "net_j", "work_w"):
        assert found[name].value is None, name
    assert "frozen" in found["gross_j"].invalid
    windows = [window["invalid"] is None for window in found["windows"]]
    assert windows == [window.ended_s < since_s for window in BUSY]
    assert ratio(dataclasses.replace(readings, values=values), BUSY[:2], BUSY[1:], "power_w").value is None


@pytest.mark.parametrize("step_w", [0.5, 1.0, 2.5])
def test_a_coarse_sensor_is_not_frozen(step_w: float) -> None:
    """An idle board may well tell one figure all the time, and a wall meter has steps of a watt."""
    readings = trace(POWER, BUSY)
    coarse = dataclasses.replace(readings, values=np.round(readings.values / step_w) * step_w)
    assert per_inference(coarse, BUSY, IDLE)["gross_j"].value is not None
