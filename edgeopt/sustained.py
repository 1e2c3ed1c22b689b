"""A long run: what artifacts do once the board is warm. Ranking and verdict rest on the end, not on the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import stats
from .measure import Comparison
from .task import Array

LEAST_ROUNDS = 6  # of a part: what the ratio of medians needs for its interval
PARTS = 6  # start and end are a sixth of the run each


def curve(comparison: Comparison, index: int) -> dict[str, list[float | None]]:
    """One point a round: seconds since the start, p50 and p90 of the round, degrees and mean clock after it."""
    blocks = comparison.blocks(index)
    rounds = [np.concatenate(blocks[i : i + 2]) for i in range(0, len(blocks), 2)]
    readings = comparison.result["conditions"]
    first, after = readings[0], readings[1 : len(rounds) + 1]
    return {
        "seconds": [reading["at_s"] - first["at_s"] for reading in after],
        "p50_s": [float(np.median(samples)) for samples in rounds],
        "p90_s": [float(np.percentile(samples, 90)) for samples in rounds],
        "temperature_c": [reading["temperature_c"] for reading in after],
        "frequency_hz": [_mean(reading["frequency_hz"]) for reading in after],
    }


def summary(comparison: Comparison, index: int) -> dict[str, Any]:
    """{"start", "end": {"p50_s", "p90_s", "p95_s": Figure}, "slower": median at the end / at the start, "curve",
    "parts": {"start", "end": [from, to], seconds of the curve}; without them where the run was stopped early}."""
    parts = {name: np.concatenate(_part(comparison, index, name)) for name in ("start", "end")}
    figures = {
        name: {f"p{percent}_s": stats.percentile_figure(samples, percent).to_json() for percent in (50, 90, 95)}
        for name, samples in parts.items()
    }
    slower = float(np.median(parts["end"]) / np.median(parts["start"])) if len(parts["end"]) else None
    found = curve(comparison, index)
    return {**figures, "slower": slower, "curve": found, "parts": _bounds(found["seconds"])}


def ratio(comparison: Comparison, index: int, against: int, part: str) -> stats.Figure:
    """stats.ratio_of_medians within one part of the run, "start" or "end"; the same processes run all of it, so what
    differs between processes is not in its interval."""
    if not _part(comparison, index, part)[0].size:
        return stats.Figure(None, None, 0, invalid=f"stopped early, needs {2 * LEAST_ROUNDS} rounds")
    return stats.ratio_of_medians(_part(comparison, index, part), _part(comparison, against, part))


def verdict(found: Mapping[str, Any], budgets: Mapping[str, float]) -> tuple[str | None, list[str]]:
    """("pass" | "fail" | "undecided" | None: no budget of latency, reasons) for the end of `summary`."""
    judged: list[str] = []
    reasons: list[str] = []
    for name in ("latency_p50_s", "latency_p95_s"):
        if name not in budgets:
            continue
        budget, (start, end) = budgets[name], (found[part][name.removeprefix("latency_")] for part in ("start", "end"))
        if end["interval"] is None:
            judged.append("undecided")
            reasons.append(f"{name}: not known at the end ({end['invalid'] or 'too few samples for an interval'})")
            continue
        low, high = end["interval"]
        before = f"{start['value']:.6g}" if start["value"] is not None else f"not known ({start['invalid']})"
        judged.append("fail" if low > budget else "pass" if high <= budget else "undecided")
        reasons.append(
            f"{name}: {end['value']:.6g} ({low:.6g} to {high:.6g}) at the end, {before} at the start; the "
            f"budget is {budget:g}"
        )
    worst = next((name for name in ("fail", "undecided", "pass") if name in judged), None)
    return worst, reasons


def _part(comparison: Comparison, index: int, name: str) -> list[Array]:
    """Its blocks; none where start and end would share some: the run was stopped early."""
    blocks = comparison.blocks(index)
    count = 2 * _rounds(len(blocks) // 2)
    if not count:
        return [np.zeros(0)]
    return blocks[:count] if name == "start" else blocks[-count:]


def _rounds(count: int) -> int:
    """Of `count` rounds, those of one part; 0 where there are too few for two."""
    own = max(LEAST_ROUNDS, count // PARTS)
    return own if 2 * own <= count else 0


def _bounds(seconds: list[Any]) -> dict[str, list[float]]:
    own = _rounds(len(seconds))
    return {"start": [0.0, seconds[own - 1]], "end": [seconds[-own - 1], seconds[-1]]} if own else {}


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
