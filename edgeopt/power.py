"""Asks a board for the readings of its power sensor while artifacts work there, and turns them into joules."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import energy, measure, stats
from .artifact import Artifact
from .device.session import Session
from .energy import Readings, Sensor, Window
from .errors import ConfigError
from .task import Array

OVERHEAD_ROUNDS = 6  # off, on, on, off: the least that gives the ratio of medians an interval
WATTS_SHOWN = 600  # points of the plot


@dataclasses.dataclass(frozen=True)
class Run:
    """What the board did and what its sensor said meanwhile. marks: windows of each artifact, in order; None: idle."""

    result: dict[str, Any]
    readings: Readings
    marks: list[tuple[int | None, Window]]
    overhead_s: Array | None  # invoke seconds (n,) of the blocks with and without the sampler

    @classmethod
    def read(cls, folder: Path) -> Run:
        """From the raw samples that `sample` kept. Raises OSError."""
        result = json.loads((folder / "energy.json").read_text())
        rows = np.fromfile(folder / "power.f64").reshape(-1, 2)
        readings = Readings(Sensor.of(result["sensor"]), rows[:, 0], rows[:, 1])
        marks = [(mark["artifact"], Window(mark["began_s"], mark["ended_s"], mark["n"])) for mark in result["marks"]]
        blocks = folder / "samples-overhead.f64"
        overhead = np.fromfile(blocks).reshape(-1, 2)[:, 1] if result["overhead"] else None
        return cls(result, readings, marks, overhead)

    def idles(self) -> list[Window]:
        return [window for artifact, window in self.marks if artifact is None]

    def windows(self, index: int) -> list[Window]:
        return [window for artifact, window in self.marks if artifact == index]

    def per_inference(self, index: int, most_w: float = energy.MOST_W) -> dict[str, Any]:
        """energy.per_inference of one artifact, its figures as run.json keeps them."""
        return stats.summary_to_json(energy.per_inference(self.readings, self.windows(index), self.idles(), most_w))

    def overhead(self) -> dict[str, Any]:
        """Median latency with the sampler over that without, from alternating blocks."""
        if self.overhead_s is None:
            return stats.Figure(None, None, 0, invalid="not measured").to_json()
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


def choose(text: str | None) -> dict[str, str | None]:
    """--sensor KIND:RAIL, KIND or nothing, as the agent takes it. Raises ConfigError."""
    kind, _, rail = (text or "").partition(":")
    if text is not None and not kind:
        raise ConfigError(f"--sensor {text}: allowed is KIND:RAIL as `edgeopt power --list` shows them, or KIND")
    return {"kind": kind or None, "rail": rail or None}


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
) -> Run:
    """Run the artifacts in windows and keep what the sensor says, raw, in `folder`.

    inputs: shards of real samples; none: random tensors. Raises AgentFailure ("no-sensor"), DeviceUnreachable.
    """
    for artifact in artifacts:
        measure.send(session, artifact)
    hashes = [session.send(data, "inputs") for data in inputs]
    job, result = session.run(
        {
            "kind": "energy",
            "artifacts": [artifact.entry() for artifact in artifacts],
            "shards": hashes,
            "sensor": sensor,
            "windows": windows,
            "window_seconds": window_s,
            "idle_seconds": idle_s,
            "overhead_rounds": OVERHEAD_ROUNDS,
            "seed": seed,
        }
    )
    (folder / "power.f64").write_bytes(session.fetch(job, result["power"]))
    if result["overhead_samples"]:
        (folder / "samples-overhead.f64").write_bytes(session.fetch(job, result["overhead_samples"]))
    (folder / "energy.json").write_text(json.dumps(result))
    return Run.read(folder)
