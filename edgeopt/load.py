"""An artifact under load, on a board: throughput by streams, latency at random arrivals, and its slowest inputs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import conditions, measure, stats
from .artifact import Artifact
from .device.session import Session
from .task import Array, Samples

SHARES = (0.5, 0.8)  # of one stream's throughput: the rates where none are named
REPEATS = 5
CORNER_REPEATS = 20
SLOWEST = 0.01
LEAST_INPUTS = 20  # below, "the slowest 1 %" says nothing
PERCENTILES = (50, 90, 99)


def measured(
    session: Session,
    artifact: Artifact,
    inputs: Sequence[bytes],
    streams: Sequence[int],
    rates: Sequence[float],
    seconds: float,
    seed: int,
    folder: Path,
    power_mode: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{"streams", "arrivals", "slow_inputs", "corner_inputs", "marks"}; raw samples are kept in `folder`.

    inputs: shards of real samples; none: random tensors. rates: queries a second; none: SHARES of what one stream does.
    Raises AgentFailure, DeviceUnreachable.
    """
    measure.send(session, artifact)
    common = {
        "kind": "load",
        "artifact": artifact.entry(),
        "shards": [session.send(data, "inputs") for data in inputs],
        "seconds": seconds,
        "seed": seed,
        "power_mode": dict(power_mode or {}),
    }
    chosen = sorted({1, *streams})
    job, result = session.run({**common, "streams": chosen, "rates": [], "repeats": 0})
    by_streams = [_streams(session, job, one, folder) for one in result["streams"]]
    offered = list(rates) or [share * by_streams[0]["per_second"] for share in SHARES]
    job, second = session.run({**common, "streams": [], "rates": offered, "repeats": REPEATS if inputs else 0})
    arrivals = [_arrivals(session, job, one, number, folder) for number, one in enumerate(second["rates"])]
    done = [result, second]
    slow, corners = None, None
    if second["each"]:
        each = _fetched(session, job, second["each"], folder, "each.f64")
        slow, (names, made) = _slow(each), corner_inputs(inputs)
        shards = [session.send(data, "corner inputs") for data in measure.shards(made)]
        job, third = session.run({**common, "shards": shards, "streams": [], "rates": [], "repeats": CORNER_REPEATS})
        own = _fetched(session, job, third["each"], folder, "corners.f64")
        corners = {name: _median(own, number) / float(np.median(each[:, 1])) for number, name in enumerate(names)}
        done.append(third)
    series = [reading for one in done for reading in one["conditions"]]
    (folder / "load.json").write_text(json.dumps(done))
    marks = conditions.slowed(series) + conditions.background(series) + conditions.changed(series)
    return {
        "streams": by_streams,
        "arrivals": arrivals,
        "slow_inputs": slow,
        "corner_inputs": corners,
        "marks": marks,
    }


def corner_inputs(inputs: Sequence[bytes]) -> tuple[list[str], Samples]:
    """(their names, one sample each), made of the shards' real inputs: all values zero, the least, the greatest, and
    for floats one sample made so small that its numbers are subnormal, which some processors compute slowly."""
    columns: list[list[Array]] = []
    for data in inputs:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            columns.append([archive[name] for name in archive.files if name.startswith("input")])
    arrays = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    names = ["zeros", "least", "greatest"]
    rows = [[np.zeros_like(a[0]), np.full_like(a[0], a.min()), np.full_like(a[0], a.max())] for a in arrays]
    if any(array.dtype.kind == "f" for array in arrays):
        names.append("subnormal")
        for array, own in zip(arrays, rows, strict=True):
            own.append(_subnormal(array[0]) if array.dtype.kind == "f" else array[0])
    return names, Samples(tuple(np.stack(own) for own in rows), None, None)


def _subnormal(sample: Array) -> Array:
    greatest = float(np.abs(sample).max()) or 1.0
    small: Array = (sample / greatest * np.finfo(sample.dtype).tiny / 4).astype(sample.dtype)
    return small


def _median(raw: Array, number: int) -> float:
    return float(np.median(raw[raw[:, 0] == number, 1]))


def _streams(session: Session, job: str, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Queries a second of all streams together, and the latency of one query meanwhile."""
    names = [f"streams-{found['streams']}-{index}.f64" for index in range(found["streams"])]
    raw = [_fetched(session, job, entry, folder, name) for entry, name in zip(found["samples"], names, strict=True)]
    invoke = np.concatenate([rows[:, 1] for rows in raw])
    per_second = sum(block["queries"] / block["seconds"] for block in found["blocks"])
    return {"streams": found["streams"], "per_second": per_second, "latency": _figures(invoke)}


def _arrivals(session: Session, job: str, found: dict[str, Any], number: int, folder: Path) -> dict[str, Any]:
    """Latency from a query's arrival to its answer: waiting for those before it, and for the process to wake up."""
    raw = _fetched(session, job, found["samples"], folder, f"arrivals-{number}.f64")
    waited, served = raw[:, 0], raw[:, 1]
    late = found["offered"] - found["served"]
    return {
        "rate_per_s": found["rate_per_s"],
        "offered": found["offered"],
        "served": found["served"],
        "latency": _figures(waited + served),
        "waiting": _figures(waited),
        "busy_share": float(served.sum() / found["seconds"]) if len(served) else 0.0,
        "invalid": f"{late} of {found['offered']} queries were never served: the board cannot keep up"
        if late
        else None,
    }


def _slow(raw: Array) -> dict[str, Any]:
    """The slowest 1 % of the inputs by their own medians: {"inputs": their numbers, "ratio": to the median of all}."""
    numbers = raw[:, 0].astype(int)
    medians = np.array([_median(raw, number) for number in range(numbers.max() + 1)])
    count = len(medians)
    if count < LEAST_INPUTS:
        return {"inputs": [], "ratio": None, "n": count, "invalid": f"n={count} inputs, needs {LEAST_INPUTS}"}
    slowest = np.argsort(-medians)[: max(1, round(SLOWEST * count))]
    ratio = float(np.median(medians[slowest]) / np.median(medians))
    return {"inputs": [int(number) for number in slowest], "ratio": ratio, "n": count, "invalid": None}


def _figures(seconds: Array) -> dict[str, Any]:
    return {f"p{percent}_s": stats.percentile_figure(seconds, percent).to_json() for percent in PERCENTILES}


def _fetched(session: Session, job: str, entry: dict[str, Any], folder: Path, name: str) -> Array:
    (folder / name).write_bytes(session.fetch(job, entry))
    return np.fromfile(folder / name).reshape(-1, 2)
