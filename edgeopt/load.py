"""An artifact under load, on a board: throughput by streams and batches, latency at random arrivals, slowest inputs."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import replies

from . import conditions, disk, measure, stats
from .artifact import Artifact
from .cache import check_json
from .device.session import Session
from .errors import IntegrityError, ProtocolError
from .task import Array, Samples

SHARES = (0.5, 0.8)  # of one stream's throughput: the rates where none are named
REPEATS = 10
SLOWEST = 0.01
LEAST_INPUTS = 100  # below, "the slowest 1 %" says nothing
MOST_BUSY = 0.98
PERCENTILES = (50, 90, 99)
EARLY_S = 1e-3  # by which rounding may begin a query before it is due


@dataclasses.dataclass(frozen=True)
class Asked:
    """streams: numbers of copies at once, one is always measured; batches: numbers of samples a query, of one copy;
    rates: queries a second that arrive, none: SHARES of what one stream does; seconds: of each of these."""

    streams: Sequence[int]
    batches: Sequence[int]
    rates: Sequence[float]
    seconds: float
    seed: int

    def copies(self) -> list[int]:
        return sorted({1, *self.streams})

    def timed_s(self) -> float:
        """What all of it takes, about; queries that come late are served for twice the time."""
        return self.seconds * (len(self.copies()) + len(self.batches) + 2 * len(self.rates or SHARES))


def settled(
    session: Session,
    artifact: Artifact,
    inputs: Sequence[bytes],
    asked: Asked,
    folder: Path,
    say: Callable[[dict[str, Any]], None],
    power_mode: Mapping[str, Any] | None = None,
    repeat: bool = True,
) -> dict[str, Any]:
    """`measured`, and with `repeat` all of it once more after a cool-down where the board throttled or a second half
    departed from its first. `say` is told; the reason is `repeated` then."""
    found = measured(session, artifact, inputs, asked, folder, power_mode)
    if repeat and (disturbed := found["disturbances"]):
        reason = measure.cool_down(session, disturbed, say)
        found = measured(session, artifact, inputs, asked, folder, power_mode, repeated=reason)
    return found


def measured(
    session: Session,
    artifact: Artifact,
    inputs: Sequence[bytes],
    asked: Asked,
    folder: Path,
    power_mode: Mapping[str, Any] | None = None,
    repeated: str | None = None,
) -> dict[str, Any]:
    """{"streams", "batches", "arrivals", "slow_inputs", "corner_inputs", "executed", "conditions", "disturbances",
    "repeated"}; raw samples stay in `folder`.

    inputs: shards of real samples; none: random tensors, and nothing is said of slow and corner inputs. repeated: why
    this is the second time. Raises AgentFailure, DeviceUnreachable.
    """
    measure.send(session, artifact)
    common: dict[str, Any] = {
        "kind": "load",
        "artifact": artifact.entry(),
        "shards": [session.send(data, "inputs") for data in inputs],
        "streams": [],
        "batches": [],
        "rates": [],
        "repeats": 0,
        "seconds": asked.seconds,
        "seed": asked.seed,
        "power_mode": dict(power_mode or {}),
    }
    limit_s = measure.SLACK_S + 2 * asked.timed_s()
    request = {**common, "streams": asked.copies(), "batches": list(asked.batches)}
    job, result = session.run(request, limit_s)
    _require_asked(session, job, result, {"streams": asked.copies(), "batches": list(asked.batches)})
    for one in result["streams"] + result["batches"]:
        for entry, name in zip(one.get("samples", ()), _names(one), strict=True):
            disk.write(folder / name, session.fetch(job, entry))
    offered = list(asked.rates) or [share * _per_second(result["streams"][0]) for share in SHARES]
    job, second = session.run({**common, "rates": offered}, limit_s)
    _require_asked(session, job, second, {"rate_per_s": offered})
    for number, one in enumerate(second["rates"]):
        disk.write(folder / f"arrivals-{number}.f64", session.fetch(job, one["samples"]))
    done, corners = [result, second], None
    if inputs:
        plain = not any(artifact.preprocess)
        names, made, real = corner_inputs(inputs, plain)
        shards = [*common["shards"], *(session.send(data, "corner inputs") for data in measure.shards(made))]
        job, third = session.run({**common, "shards": shards, "repeats": REPEATS}, limit_s)
        _require_asked(session, job, third, {"each": [True]})
        disk.write(folder / "each.f64", session.fetch(job, third["each"]["samples"]))
        corners = {"names": names, "real": real}
        done.append(third)
    disk.write(folder / "load.json", json.dumps({"jobs": done, "corners": corners, "repeated": repeated}))
    with measure.believed(session, job):
        return figures(folder)


def _require_asked(session: Session, job: str, result: Mapping[str, Any], asked: Mapping[str, Sequence[Any]]) -> None:
    """Raises ProtocolError where a job did not do what it was asked for, in that order."""
    found = {
        "streams": [one["streams"] for one in result["streams"]],
        "batches": [one["batch"] for one in result["batches"]],
        "rate_per_s": [one["rate_per_s"] for one in result["rates"]],
        "each": [True] if result["each"] else [],
    }
    wanted = {name: list(asked.get(name, ())) for name in found}
    for name, values in wanted.items():
        if found[name] != values:
            raise ProtocolError(
                f"{session.address}: job {job} measured {name} {found[name]}, and was asked for {values}"
            )


def figures(folder: Path) -> dict[str, Any]:
    """As `measured`, from the raw samples that it kept. Raises OSError, IntegrityError."""
    kept = check_json(folder / "load.json")
    try:
        for one in kept["jobs"]:
            if wrong := replies.result_problem("load", one):
                raise ValueError(wrong)
        return _figures_of(kept, folder)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IntegrityError(f"{folder / 'load.json'}: not what `edgeopt load` kept ({error!r})") from error


def _figures_of(kept: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    by_streams, by_rates = kept["jobs"][:2]
    slow, corners = None, None
    if told := kept["corners"]:
        each, repeats = _rows(folder, "each.f64"), kept["jobs"][2]["each"]["repeats"]
        slow, corners = _slow(each, told["real"], repeats), _corners(each, told["real"], told["names"])
    series = [reading for one in kept["jobs"] for reading in one["conditions"]]
    together = by_streams["streams"] + by_streams["batches"]
    disturbances = [mark for one in together for mark in _drifted(one, folder)] + conditions.slowed(series)
    marks = disturbances + conditions.background(series) + conditions.changed(series)
    return {
        "streams": [_together(one, folder) for one in by_streams["streams"]],
        "batches": [_together(one, folder) for one in by_streams["batches"]],
        "arrivals": [
            _arrivals(one, _rows(folder, f"arrivals-{i}.f64", -EARLY_S)) for i, one in enumerate(by_rates["rates"])
        ],
        "slow_inputs": slow,
        "corner_inputs": corners,
        "executed": by_rates["executed"],
        "conditions": {"marks": marks, **conditions.summary(series)},
        "disturbances": disturbances,
        "repeated": kept["repeated"],
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
    """Files of samples, one a stream; none where the batch was refused. Raises ValueError where it has more or less."""
    count = found.get("streams", 0)
    told = {len(found.get(key, ())) for key in ("blocks", "samples")}
    if told != {count} or bool(found.get("refused")) == bool(count):
        raise ValueError(f"{count} streams with {sorted(told)} blocks and files of samples")
    return [f"streams-{count}-batch-{found['batch']}-{index}.f64" for index in range(count)]


def _per_second(found: Mapping[str, Any]) -> float:
    """Samples a second of all streams together."""
    return float(found["batch"] * sum(block["queries"] / block["seconds"] for block in found["blocks"]))


def _together(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Samples a second, and the latency of one query, which is of the whole batch."""
    if why := found.get("refused"):
        none = _figures(np.zeros(0), why)
        return {"streams": 1, "batch": found["batch"], "per_second": None, "latency": none, "invalid": why}
    invoke = np.concatenate([_rows(folder, name)[:, 1] for name in _names(found)])
    per_second, latency = _per_second(found), _figures(invoke)
    names = {name: found[name] for name in ("streams", "batch")}
    return {**names, "per_second": per_second, "latency": latency, "invalid": None}


def _drifted(found: Mapping[str, Any], folder: Path) -> list[str]:
    """Of each stream whose second half departs from its first."""
    halves = [stats.drift([_rows(folder, name)[:, 1]]) for name in _names(found)]
    what = f"{found['batch']} samples a query" if found["batch"] > 1 else f"{len(halves)} streams"
    return [f"drift with {what}: {one.reason}" for one in halves if one.drifted]


def _arrivals(found: Mapping[str, Any], raw: Array) -> dict[str, Any]:
    """Latency from a query's arrival to its answer: waiting for those before it, and for the process to wake up."""
    waited, served = raw[:, 0], raw[:, 1]
    late = found["offered"] - found["served"]
    if late < 0 or found["served"] != len(raw):
        raise ValueError(f"{found['served']} of {found['offered']} queries served, and {len(raw)} samples of them")
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


def _rows(folder: Path, name: str, least: float = 0.0) -> Array:
    """(n, 2) float64, none of them less than `least`. Raises OSError, ValueError."""
    found = measure.read_pairs(folder / name)
    if not bool(((found >= least) & (found <= measure.LONGEST_S)).all()):
        raise ValueError(f"{name} holds what are no seconds: from {found.min():g} to {found.max():g}")
    return found
