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
REPEATS = 10
SLOWEST = 0.01
LEAST_INPUTS = 100  # below, "the slowest 1 %" says nothing
MOST_BUSY = 0.98
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
    """{"streams", "arrivals", "slow_inputs", "corner_inputs", "executed", "conditions"}; raw samples stay in `folder`.

    inputs: shards of real samples; none: random tensors, and nothing is said of slow and corner inputs. rates: queries
    a second; none: SHARES of what one stream does. Raises AgentFailure, DeviceUnreachable.
    """
    measure.send(session, artifact)
    common: dict[str, Any] = {
        "kind": "load",
        "artifact": artifact.entry(),
        "shards": [session.send(data, "inputs") for data in inputs],
        "seconds": seconds,
        "seed": seed,
        "power_mode": dict(power_mode or {}),
    }
    chosen = sorted({1, *streams})
    limit_s = measure.SLACK_S + 3 * seconds * (len(chosen) + len(rates or SHARES))
    job, result = session.run({**common, "streams": chosen, "rates": [], "repeats": 0}, limit_s)
    for one in result["streams"]:
        for entry, name in zip(one["samples"], _names(one), strict=True):
            (folder / name).write_bytes(session.fetch(job, entry))
    offered = list(rates) or [share * _per_second(result["streams"][0]) for share in SHARES]
    job, second = session.run({**common, "streams": [], "rates": offered, "repeats": 0}, limit_s)
    for number, one in enumerate(second["rates"]):
        (folder / f"arrivals-{number}.f64").write_bytes(session.fetch(job, one["samples"]))
    done, corners = [result, second], None
    if inputs:
        plain = not any(artifact.preprocess)
        names, made, real = corner_inputs(inputs, plain)
        shards = [*common["shards"], *(session.send(data, "corner inputs") for data in measure.shards(made))]
        both = {**common, "shards": shards, "streams": [], "rates": [], "repeats": REPEATS}
        job, third = session.run(both, limit_s)
        (folder / "each.f64").write_bytes(session.fetch(job, third["each"]["samples"]))
        corners = {"names": names, "real": real}
        done.append(third)
    (folder / "load.json").write_text(json.dumps({"jobs": done, "corners": corners}))
    return figures(folder)


def figures(folder: Path) -> dict[str, Any]:
    """As `measured`, from the raw samples that it kept. Raises OSError."""
    kept = json.loads((folder / "load.json").read_text())
    by_streams, by_rates = kept["jobs"][:2]
    slow, corners = None, None
    if told := kept["corners"]:
        each, repeats = _rows(folder, "each.f64"), kept["jobs"][2]["each"]["repeats"]
        slow, corners = _slow(each, told["real"], repeats), _corners(each, told["real"], told["names"])
    series = [reading for one in kept["jobs"] for reading in one["conditions"]]
    marks = conditions.slowed(series) + conditions.background(series) + conditions.changed(series)
    return {
        "streams": [_streams(one, folder) for one in by_streams["streams"]],
        "arrivals": [_arrivals(one, _rows(folder, f"arrivals-{i}.f64")) for i, one in enumerate(by_rates["rates"])],
        "slow_inputs": slow,
        "corner_inputs": corners,
        "executed": by_rates["executed"],
        "conditions": {"marks": marks, **conditions.summary(series)},
    }


def corner_inputs(inputs: Sequence[bytes], plain: bool) -> tuple[list[str], Samples, int]:
    """(their names, one sample each, how many real ones there are), made of the shards' real inputs: all values zero,
    the least, the greatest, and for floats one sample made so small that its numbers are subnormal, which some
    processors compute slowly; not where preprocessing (`plain` False) would make other numbers of them."""
    columns: list[list[Array]] = []
    for data in inputs:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            columns.append([archive[name] for name in archive.files if name.startswith("input")])
    arrays = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    names = ["zeros", "least", "greatest"]
    rows = [[np.zeros_like(a[0]), np.full_like(a[0], a.min()), np.full_like(a[0], a.max())] for a in arrays]
    if plain and any(array.dtype.kind == "f" for array in arrays):
        names.append("subnormal")
        for array, own in zip(arrays, rows, strict=True):
            own.append(_subnormal(array[0]) if array.dtype.kind == "f" else array[0])
    return names, Samples(tuple(np.stack(own) for own in rows), None, None), len(arrays[0])


def _subnormal(sample: Array) -> Array:
    greatest = float(np.abs(sample).max()) or 1.0
    small: Array = (sample / greatest * np.finfo(sample.dtype).tiny / 4).astype(sample.dtype)
    return small


def _names(found: Mapping[str, Any]) -> list[str]:
    return [f"streams-{found['streams']}-{index}.f64" for index in range(found["streams"])]


def _per_second(found: Mapping[str, Any]) -> float:
    """Queries a second of all streams together."""
    return float(sum(block["queries"] / block["seconds"] for block in found["blocks"]))


def _streams(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Queries a second, and the latency of one query meanwhile."""
    invoke = np.concatenate([_rows(folder, name)[:, 1] for name in _names(found)])
    return {"streams": found["streams"], "per_second": _per_second(found), "latency": _figures(invoke)}


def _arrivals(found: Mapping[str, Any], raw: Array) -> dict[str, Any]:
    """Latency from a query's arrival to its answer: waiting for those before it, and for the process to wake up."""
    waited, served = raw[:, 0], raw[:, 1]
    late = found["offered"] - found["served"]
    busy = float(served.sum() / found["seconds"])
    why = None
    if late:
        why = f"{late} of {found['offered']} queries were never served: the board cannot keep up"
    elif busy > MOST_BUSY:
        why = f"busy {busy:.0%} of the time: the queue grows as long as this goes on"
    return {
        "rate_per_s": found["rate_per_s"],
        "offered": found["offered"],
        "served": found["served"],
        "latency": _figures(waited + served, why),
        "waiting": _figures(waited, why),
        "busy_share": busy,
        "invalid": why,
    }


def _slow(raw: Array, count: int, repeats: int) -> dict[str, Any]:
    """The slowest 1 % of the real inputs: {"inputs": their numbers, "ratio": to the median of all}. They are chosen by
    every other repeat and measured by the rest: chosen and measured by the same, equal inputs would differ, too."""
    why = f"n={count} inputs, needs {LEAST_INPUTS}" if count < LEAST_INPUTS else None
    why = why or (f"{repeats} repeats in the time there was, needs {REPEATS}" if repeats < REPEATS else None)
    if why:
        return {"inputs": [], "ratio": None, "n": count, "invalid": why}
    rounds = _by_repeat(raw)[:, :count]
    slowest = np.argsort(-np.median(rounds[::2], axis=0))[: round(SLOWEST * count)]
    others = np.median(rounds[1::2], axis=0)
    ratio = float(np.median(others[slowest]) / np.median(others))
    return {"inputs": [int(number) for number in slowest], "ratio": ratio, "n": count, "invalid": None}


def _corners(raw: Array, real: int, names: Sequence[str]) -> dict[str, float]:
    """Median time of each corner input, to the median of the real ones, which the same process met between them."""
    medians = np.median(_by_repeat(raw), axis=0)
    usual = float(np.median(medians[:real]))
    return {name: float(medians[real + number]) / usual for number, name in enumerate(names)}


def _by_repeat(raw: Array) -> Array:
    """Seconds (repeats, inputs) of rows (number of the input, seconds) in the order in which they ran."""
    inputs = int(raw[:, 0].max()) + 1 if len(raw) else 0
    rounds = raw.reshape(-1, max(1, inputs), 2)
    return np.take_along_axis(rounds[:, :, 1], np.argsort(rounds[:, :, 0], axis=1), axis=1)


def _figures(seconds: Array, why: str | None = None) -> dict[str, Any]:
    """why: what makes all of them invalid."""
    found = {f"p{percent}_s": stats.percentile_figure(seconds, percent) for percent in PERCENTILES}
    none = stats.Figure(None, None, len(seconds), invalid=why)
    return {name: (none if why else figure).to_json() for name, figure in found.items()}


def _rows(folder: Path, name: str) -> Array:
    return np.fromfile(folder / name).reshape(-1, 2)
