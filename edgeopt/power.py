"""Joules of artifacts that work on a board: by its own power sensor, by a meter at this machine, or estimated."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import replies

from . import align, conditions, disk, energy, measure, meters, stats
from .artifact import Artifact
from .cache import check_json
from .device.session import Session
from .energy import Readings, Sensor, Window
from .errors import ConfigError, IntegrityError, ProtocolError
from .profile import DeviceProfile
from .sensing import choose as choose
from .sensing import fitting as fitting
from .sensing import unseen as unseen
from .task import Array

OVERHEAD_ROUNDS = 6  # off, on, on, off: the least that gives the ratio of medians an interval
WATTS_SHOWN = 600  # points of the plot
TRIPS = 12  # to either side of a job; the quickest bounds the clocks' offset
AFTER_S = 1.0  # readings of a meter after the last window


@dataclasses.dataclass(frozen=True)
class Run:
    """What the board did and what its sensor, or a meter, said meanwhile.

    marks: windows of each artifact, in order; None: idle. alignment: of a meter's clock; None with the board's sensor.
    """

    result: dict[str, Any]
    readings: Readings
    marks: list[tuple[int | None, Window]]
    overhead_s: Array | None  # invoke seconds (n,) of the blocks with and without the sampler
    alignment: align.Alignment | None = None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """From the raw samples that `sample` kept. Raises OSError, IntegrityError."""
        result = check_json(folder / "energy.json")
        try:
            none = np.zeros((0, 2))
            overhead = measure.read_pairs(folder / "samples-overhead.f64") if result["overhead"] else none
            return cls.of(result, measure.read_pairs(folder / "power.f64"), overhead)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{folder / 'energy.json'}: not a job's readings, as they were taken ({error})"
            ) from error

    @classmethod
    def of(cls, result: dict[str, Any], rows: Array, overhead: Array) -> Run:
        """rows: (seconds, figure) of each reading; overhead: (copy_s, invoke_s) of the blocks with and without the
        sampler, (0, 2) where there were none. Raises ValueError for what the readings of one job cannot be."""
        _require_whole(result, rows, overhead)
        marks = [(mark["artifact"], Window(mark["began_s"], mark["ended_s"], mark["n"])) for mark in result["marks"]]
        if result["meter"] is not None:
            return _of_meter(result, rows, marks)
        sensor = Sensor.of(result["sensor"])
        problem = energy.units_disagree(result["products"], sensor.named())
        readings = Readings(sensor, rows[:, 0], rows[:, 1], problem=problem)
        return cls(result, readings, marks, overhead[:, 1] if result["overhead"] else None)

    def disturbances(self) -> list[str]:
        """Why this run should be repeated: the board throttled, or an artifact's later windows departed from the
        earlier ones (energy.drift)."""
        found, count = [], len(self.result["executed"])
        for index in range(count):
            if why := energy.drift(self.readings, self.windows(index)):
                found.append(f"drift{f' of artifact {index + 1} of {count}' if count > 1 else ''}: {why}")
        return found + conditions.slowed(self.result["conditions"])

    def remarks(self) -> list[str]:
        """What a reader must see: the disturbances, and who else used the board or changed it meanwhile."""
        series = self.result["conditions"]
        return self.disturbances() + conditions.background(series) + conditions.changed(series)

    def idles(self) -> list[Window]:
        return [window for artifact, window in self.marks if artifact is None]

    def windows(self, index: int) -> list[Window]:
        return [window for artifact, window in self.marks if artifact == index]

    def per_inference(self, index: int, most_w: float = energy.MOST_W) -> dict[str, Any]:
        """energy.per_inference of one artifact, its figures as run.json keeps them."""
        return stats.summary_to_json(energy.per_inference(self.readings, self.windows(index), self.idles(), most_w))

    def ratio(self, index: int, against: int, quantity: str, most_w: float = energy.MOST_W) -> stats.Figure:
        """energy.ratio of two artifacts by their windows, which took turns."""
        return energy.ratio(self.readings, self.windows(index), self.windows(against), quantity, most_w)

    def told(self) -> dict[str, Any]:
        """What read the watts, as run.json keeps it."""
        known = self.result["sensor"]
        kept = {key: known[key] for key in ("kind", "rail", "period_s")}
        return {**kept, "how": self.readings.sensor.how, "failures": self.result["failures"]}

    def overhead(self) -> dict[str, Any] | None:
        """Median latency with the sampler over that without, from alternating blocks; None: a meter costs nothing."""
        if self.overhead_s is None:
            return None
        counts = np.cumsum([block["n"] for block in self.result["overhead"]])[:-1]
        parts = np.split(self.overhead_s, counts)
        sides: dict[bool, list[Array]] = {True: [], False: []}
        for block, part in zip(self.result["overhead"], parts, strict=True):
            sides[block["sampling"]].append(np.asarray(part))
        return stats.ratio_of_medians(sides[True], sides[False]).to_json()

    def watts(self) -> tuple[Array, Array]:
        """(seconds since the first reading, watts), each (n,): what is drawn; of a counter its slopes."""
        times, values = self.readings.times_s, self.readings.values
        if self.readings.sensor.quantity == "energy_j":
            steps = np.diff(values)
            range_j = self.readings.sensor.range_j or 0.0
            values, times = np.where(steps < 0, steps + range_j, steps) / np.diff(times), times[1:]
        every = max(1, len(times) // WATTS_SHOWN)
        return times[::every] - self.readings.times_s[0], values[::every]


def _require_whole(result: Mapping[str, Any], rows: Array, overhead: Array) -> None:
    """Raises ValueError for what figures cannot be made of."""
    if wrong := replies.result_problem("energy", result):
        raise ValueError(wrong)
    count, marks = len(result["executed"]), result["marks"]
    if len(result["frequency_max_hz"]) != count:
        raise ValueError(f"{len(result['frequency_max_hz'])} clocks of {count} artifacts")
    windows = [sum(mark["artifact"] == index for mark in marks) for index in range(count)]
    if sum(windows) + sum(mark["artifact"] is None for mark in marks) != len(marks) or len(set(windows)) > 1:
        raise ValueError(f"{windows} windows of {count} artifacts, of {len(marks)} in all")
    if any(mark["ended_s"] < mark["began_s"] for mark in marks):
        raise ValueError("a window ended before it began")
    if rows.ndim != 2 or rows.shape[1:] != (2,) or not bool(np.isfinite(rows[:, 0]).all()):
        raise ValueError(f"readings {list(rows.shape)} must be times and figures")
    going = len(rows) > 1 and bool((np.diff(rows[:, 0]) > 0).all())
    if result["meter"] is None and (result["sensor"] is None or not going):
        raise ValueError(f"{len(rows)} readings, whose times do not go on")
    told = [block["n"] for block in result["overhead"]]
    if sum(told) != len(overhead):
        raise ValueError(f"{len(overhead)} samples with and without the sampler, and its blocks say {sum(told)}")
    measure.require_times(overhead[:, 0], overhead[:, 1])


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a figure of `per_inference` may be at most. of_profile: it is about the whole board."""

    key: str
    most: float
    words: str
    unit: str
    of_profile: bool = False


def require_rail(wanted: Mapping[str, str | None], whole_board: bool) -> None:
    """Raises ConfigError where --whole-board is said of a rail that is not named."""
    if whole_board and (wanted["kind"] != "hwmon" or not wanted["rail"]):
        raise ConfigError("--whole-board says of one rail that it feeds all; name it with --sensor hwmon:RAIL")


def demands(profile: DeviceProfile | None, budget_w: float | None, budget_j: float | None) -> list[Demand]:
    """The user's budgets, else the profile's."""
    own = profile.power.budget_w if profile else None
    watts = budget_w if budget_w is not None else own
    found = [Demand("work_w", watts, "power at work", "W", budget_w is None)] if watts is not None else []
    return found + ([Demand("gross_j", budget_j, "energy of one inference", "J")] if budget_j is not None else [])


def most_w(profile: DeviceProfile | None) -> float:
    """More than this no reading can be: ten times what the profile's board draws at work, as a unit that is mistaken
    makes a thousand times."""
    typical = profile.power.typical_w if profile else None
    return min(energy.MOST_W, 10 * typical.value) if typical else energy.MOST_W


@dataclasses.dataclass(frozen=True)
class Metering:
    """A meter at this machine. text: its KIND:PLACE; patience_s: how long its readings may come late."""

    text: str
    meter: meters.Meter
    patience_s: float


def window_s(
    sensors: Sequence[dict[str, Any]], wanted: dict[str, str | None], metering: Metering | None = None
) -> float:
    """How long windows must be for the sensor that `wanted` names among a board's, or for the meter; the least where
    nothing is known of them."""
    if metering is not None:
        interval_s = metering.meter.interval_s or 0.0
        return energy.shortest_window_s(Sensor("meter", metering.text, "power_w", interval_s))
    named = fitting(sensors, wanted)
    return energy.shortest_window_s(Sensor.of(named[0])) if len(named) == 1 else energy.SHORTEST_WINDOW_S


def sample(
    session: Session,
    artifacts: Sequence[Artifact],
    inputs: Sequence[bytes],
    sensor: dict[str, str | None],
    folder: Path,
    windows: int,
    window_s: float,
    idle_s: float,
    seed: int,
    meter: Metering | None = None,
    power_mode: Mapping[str, Any] | None = None,
    overhead_rounds: int = OVERHEAD_ROUNDS,
) -> Run:
    """Run the artifacts in windows and keep what the sensor says, or the meter, raw, in `folder`.

    inputs: shards of real samples; none: random tensors. meter: started. power_mode: as in measure.bench.
    overhead_rounds: of blocks with and without the sampler, for what it costs; 0: not asked. Raises
    AgentFailure ("no-sensor"), DeviceUnreachable, and ConfigError where the meter's file cannot be read.
    """
    for artifact in artifacts:
        measure.send(session, artifact)
    hashes = [session.send(data, "inputs") for data in inputs]
    before = _trips(session) if meter else []
    job, result = session.run(
        {
            "kind": "energy",
            "artifacts": [artifact.entry() for artifact in artifacts],
            "shards": hashes,
            "sensor": None if meter else sensor,
            "windows": windows,
            "window_seconds": window_s,
            "idle_seconds": idle_s,
            "overhead_rounds": overhead_rounds,
            "seed": seed,
            "power_mode": dict(power_mode or {}),
        }
    )
    there = [
        result["power"] is not None or meter is not None,
        bool(result["overhead"]) == bool(result["overhead_samples"]),
    ]
    if len(result["executed"]) != len(artifacts) or not all(there):
        raise ProtocolError(
            f"{session.address}: job {job} measured {len(result['executed'])} artifacts, and was asked for "
            f"{len(artifacts)}, by the board's own sensor; or a file of its samples is not told"
        )
    result["meter"] = _finish(session, meter, before, folder) if meter else None
    if meter is None:
        disk.write(folder / "power.f64", session.fetch(job, result["power"]))
    if result["overhead_samples"]:
        disk.write(folder / "samples-overhead.f64", session.fetch(job, result["overhead_samples"]))
    disk.write(folder / "energy.json", json.dumps(result))
    with measure.believed(session, job):
        return Run.read(folder)


def settled(
    session: Session, take: Callable[[], Run], folder: Path, say: Callable[[dict[str, Any]], None], repeat: bool = True
) -> Run:
    """The run that `take` samples into `folder`, and once more after measure.COOL_DOWN_S where its disturbances ask for
    it; its result then has the reason as `repeated`.

    Never with an external meter: its recording ends with the run, and somebody may have to start and export it by hand.
    `say` is told, as by measure.settled. Raises as `sample`.
    """
    found = take()
    if not repeat or found.result["meter"] or not (disturbed := found.disturbances()):
        return found
    reason = measure.cool_down(session, disturbed, say)
    found = take()
    found.result["repeated"] = reason
    disk.write(folder / "energy.json", json.dumps(found.result))
    return found


def _trips(session: Session) -> list[align.Trip]:
    found = []
    for _ in range(TRIPS):
        asked = time.monotonic()
        board_s = session.request("clock")["monotonic_s"]
        found.append((asked, board_s, time.monotonic()))
    return found


def _finish(session: Session, metering: Metering, before: list[align.Trip], folder: Path) -> dict[str, Any]:
    """The meter's readings into `folder`, and what must be known of them."""
    after = _trips(session)
    trace = metering.meter.finish(time.monotonic() + AFTER_S, metering.patience_s)
    np.stack([trace.times_s, trace.watts], axis=1).tofile(folder / "power.f64")
    kind, place = meters.split(metering.text)
    told = {"kind": kind, "place": place, "own_clock": trace.own_clock, "stamp_error_s": trace.stamp_error_s}
    kept = {"failures": trace.failures, "problem": trace.problem, "products": list(trace.products)}
    return {**told, **kept, "trips": {"before": before, "after": after}}


def _of_meter(result: dict[str, Any], rows: Array, marks: list[tuple[int | None, Window]]) -> Run:
    """A Run whose readings are a meter's, with their times by the board's clock."""
    told = result["meter"]
    trips = align.of_round_trips(told["trips"]["before"], told["trips"]["after"])
    times, watts = rows[:, 0], rows[:, 1]
    found = align.align(times, watts, marks, told["own_clock"], told["stamp_error_s"], trips)
    interval_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    sensor = Sensor(told["kind"], told["place"], "power_w", interval_s)
    problem = told["problem"] or energy.units_disagree(told["products"], sensor.named()) or found.problem
    offset = found.offset or align.Offset(marks[0][1].began_s - float(times[0]) if len(times) else 0.0, 0.0)
    readings = Readings(sensor, times + offset.value_s, watts, offset.error_s, problem)
    return Run(result, readings, marks, None, found)


def require_typical(profile: DeviceProfile) -> float:
    """What the profile's board draws at work, W. Raises ConfigError."""
    if profile.power.typical_w is None:
        raise ConfigError(f"--estimate: profile {profile.id} tells no [power] typical_w; add it, with its source")
    return profile.power.typical_w.value


def estimate(profile: DeviceProfile, latency: dict[str, Any]) -> dict[str, Any]:
    """As Run.per_inference, from the profile's own watts by the median latency; every figure is marked estimated.

    The profile's watts are with all cores at work, so the joules of fewer threads are told too high.

    Raises ConfigError where the profile tells no typical power.
    """
    typical, idle = require_typical(profile), profile.power.idle_w
    p50, n = latency["p50_s"]["value"], latency["p50_s"]["n"]
    none = stats.Figure(None, None, n, "estimated", f"profile {profile.id} tells no [power] idle_w")

    def figure(value: float) -> stats.Figure:
        return stats.Figure(value, None, n, "estimated")

    found = {
        "gross_j": figure(typical * p50),
        "net_j": figure((typical - idle.value) * p50) if idle else none,
        "work_w": figure(typical),
        "idle_w": figure(idle.value) if idle else none,
        "windows": [],
    }
    return stats.summary_to_json(found)


def judge(result: dict[str, Any], demands: Sequence[Demand], part: str = "") -> dict[str, str] | None:
    """{"verdict": pass, fail or undecided, "reason"} of one artifact by the intervals of its figures; None: no demand.

    part: as `unseen`; where it says something, what the profile allows the whole board cannot be passed.
    """
    found = [_one(demand, result[demand.key], part if demand.of_profile else "") for demand in demands]
    if not found:
        return None
    worst = next((name for name in ("fail", "undecided") if any(one[0] == name for one in found)), "pass")
    return {"verdict": worst, "reason": "; ".join(reason for _, reason in found)}


def _one(demand: Demand, figure: dict[str, Any], part: str) -> tuple[str, str]:
    words = f"{demand.words} {{}} the budget of {demand.most:g} {demand.unit}"
    if figure["value"] is None:
        return "undecided", f"{demand.words} is not known: {figure['invalid']}"
    if figure["how"] != "measured" or figure["interval"] is None:
        return "undecided", f"{words.format('stands against')}, but is {figure['how']}: that decides nothing"
    low, high = figure["interval"]
    if low > demand.most:
        return "fail", words.format("is over")
    if high > demand.most:
        return "undecided", f"the interval of {words.format('holds')}: more or longer windows would narrow it"
    if part:
        return "undecided", f"{words.format('is within')}, but {part}"
    return "pass", words.format("is within")
