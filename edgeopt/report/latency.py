"""Latencies for the page: a curve an artifact, and a row of percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import arrays
from edgeopt.errors import IntegrityError
from edgeopt.report import units
from edgeopt.report.terminal import NAME_LIMIT, part

CURVE_POINTS = 161
BESIDE = {"pre_s": "preparing", "post_s": "fetching", "copy_s": "copies"}
ENERGY = {
    "energy": ("gross_j", "j"),
    "energy above idle": ("net_j", "j"),
    "power at work": ("work_w", "w"),
    "power when idle": ("idle_w", "w"),
}
SHOWN_SHARE = 0.99  # of the inferences are within the plot's right edge
LOG_FROM = 4.0  # times between its ends, from which the axis is logarithmic
PERCENTILES = (
    ("p50_s", "p50"),
    ("p90_s", "p90"),
    ("p95_s", "p95"),
    ("p99_s", "p99"),
    ("mean_s", "mean"),
    ("min_s", "min"),
)


def table(trials: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """(a row a trial, the names of its figures): a percentile that no trial has takes no column."""
    rows = [row(trial) for trial in trials]
    given = [
        (name, place)
        for place, (_, name) in enumerate(PERCENTILES)
        if any(not one["figures"][place].startswith(("invalid", units.NOT_MEASURED)) for one in rows)
    ]
    for one in rows:
        one["figures"] = [one["figures"][place] for _, place in given]
    return rows, [name for name, _ in given]


def curves(
    trials: list[dict[str, Any]], plan: dict[str, Any], run_dir: Path, chosen: dict[str, Any] | None
) -> dict[str, Any]:
    """Cumulative distribution of each trial's latencies, thinned to quantiles, in the unit that reads best."""
    shares = np.linspace(0, 1, CURVE_POINTS)
    found, missing = {}, []
    for trial in trials:
        name = units.text(trial.get("name") or "?", NAME_LIMIT)
        seconds = samples(trial, run_dir)
        if seconds is None:
            missing.append(name)
        else:
            found[name] = np.quantile(seconds, shares)
    ends = [np.interp((0.005, SHOWN_SHARE), shares, quantiles) for quantiles in found.values()]
    edge = max((float(last) for _, last in ends), default=1.0)
    first = min((float(low) for low, _ in ends), default=0.0)
    factor, unit = units.scale(edge, "s")
    budgets = {k: v for k, v in part(plan, "budgets").items() if k in ("latency_p50_s", "latency_p95_s")}
    limits = [(key, value) for key, value in budgets.items() if units.known(value)]
    right = max([edge * 1.04, *(value * 1.04 for _, value in limits if value < 1.5 * edge)]) / factor
    return {
        "series": [
            {
                "name": name,
                "points": [[float(x) / factor, 100 * float(y)] for x, y in zip(quantiles, shares, strict=True)],
                "chosen": chosen is not None and name == units.text(chosen["name"], NAME_LIMIT),
            }
            for name, quantiles in found.items()
        ],
        "missing": missing,
        "lines": [{"x": v / factor, "label": f"{units.label(k)} ≤ {units.by_key(k, v)}"} for k, v in limits],
        "unit": unit,
        "x_title": f"Latency of one inference ({unit})",
        "y_title": "Share of inferences at least as fast (%)",
        "x_max": right,
        # so that a slow artifact does not press the others into one line
        "x_min": 0.9 * first / factor if 0 < first < edge / LOG_FROM else None,
    }


def samples(trial: dict[str, Any], run_dir: Path) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The trial's seconds (n,), or None where it has none or they cannot be read; never from outside the run."""
    given = trial.get("samples")
    path = (run_dir / str(given)).resolve()
    if not given or not path.is_relative_to(run_dir.resolve()) or not path.is_file():
        return None
    try:
        seconds = np.asarray(arrays.read(path, str(path), "seconds")["seconds"], dtype=np.float64).ravel()
    except (OSError, ValueError, KeyError, IntegrityError):
        return None
    return seconds if len(seconds) and np.isfinite(seconds).all() else None


def row(trial: dict[str, Any]) -> dict[str, Any]:
    latency, energy = part(trial, "latency"), part(trial, "energy")
    return {
        "name": units.text(trial.get("name") or "?", NAME_LIMIT),
        "n": units.count(latency.get("n")),
        "figures": [units.figure(latency.get(key), "s") for key, _ in PERCENTILES],
        "load": units.quantity(trial.get("load_s"), "s"),
        "first": units.quantity(trial.get("first_inference_s"), "s"),
        "beside": {name: units.figure(latency.get(key), "s") for key, name in BESIDE.items()}
        | {name: units.figure(energy.get(key), unit) for name, (key, unit) in ENERGY.items()},
    }
