"""Two runs side by side as one offline page: what `against` says, with a plot, for people who would rather look."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import ConfigError
from . import against, board, html, units
from .breakdown import MOST_ROWS
from .terminal import NAME_LIMIT, STATES, chosen_trial, part, row

MARK = '<meta name="generator" content="edgeopt report --against">'  # by this a page of ours is known again
TICKS = (1, 1.5, 2, 3, 5, 7)  # Chart.js leaves out those that would touch


def require_writable(out: Path, mark: str = MARK, what: str = "two runs") -> None:
    """Raises ConfigError unless a page can be put there: over nothing, or over an earlier page of the same kind."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a page's file ends in .html")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out}: it cannot be written; name a file in a folder of yours")
    if (out.exists() or out.is_symlink()) and not _is_ours(out, mark):
        raise ConfigError(f"--out {out}: something else is there; name a new file, or an earlier page of {what}")


def _is_ours(out: Path, mark: str) -> bool:
    if out.is_symlink() or not out.is_file():
        return False
    try:
        with out.open("rb") as file:
            return mark.encode() in file.read(1000)
    except OSError:
        return False


def write(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str], out: Path) -> Path:
    """The page of two run.json documents at `out`, as a whole or not at all; `names` tells where the runs are.

    Raises ConfigError as `require_writable`.
    """
    require_writable(out)
    return disk.write(out, html.page("against.html.j2", view(first, second, names)))


def view(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """What the template shows: text and numbers ready to print, nothing left to decide."""
    runs = (first, second)
    found = against.differences(first, second, names)
    metrics = list(dict.fromkeys(_metric(run) for run in runs))
    pareto = _plot(runs, metrics[0]) if len(metrics) == 1 else None
    return {
        "mark": MARK,
        "name": " and ".join(dict.fromkeys(units.text(run.get("name") or "run", 60) for run in runs)),
        "caution": found["caution"],
        "stand_ins": against.stand_ins(first, second),
        "heads": [_head(run, head) for run, head in zip(runs, found["runs"], strict=True)],
        "changed": {what: [against.changed_words(line) for line in found[what]] for what in ("board", "plan")},
        "metrics": [units.text(metric, 40) for metric in metrics],
        "candidates": [_candidate(name, trials, runs) for name, trials in against.trials_by_name(*runs).items()],
        "pareto": pareto,
        "charts": {"pareto": pareto},
        "finals": [_final(run) for run in runs],
        "slices": [
            _slices(found[key], runs, key, unit) for key, unit in (("per_class", "class"), ("per_group", "group"))
        ],
    }


def _metric(run: dict[str, Any]) -> str:
    return str(part(run, "plan").get("metric") or "score")


def _head(run: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    own = part(run, "board")
    measured_on = board.mark(own) or board.described(own)
    pairs = [
        ("name", units.text(head["name"] or "run", 80)),
        ("written", units.when(head["created"] or "at an unknown time")),
        ("written by", f"edgeopt {units.text(head['edgeopt'] or '?', 20)}"),
        ("board", measured_on),
        ("runtime", units.text(head["runtime"] or "not told", 40)),
        ("chosen", units.text(head["chosen"] or "none", NAME_LIMIT)),
    ]
    verdict = head["verdict"] if head["verdict"] in STATES else "undecided"
    sentence = units.text(run.get("sentence") or "No verdict was written.", 600)
    return {"folder": units.text(head["run"]), "verdict": verdict, "sentence": sentence, "pairs": pairs}


def _candidate(
    name: str, trials: list[dict[str, Any] | None], runs: tuple[dict[str, Any], dict[str, Any]]
) -> dict[str, Any]:
    sides = [
        None if trial is None else row(trial, trial is chosen_trial(run), _metric(run))
        for trial, run in zip(trials, runs, strict=True)
    ]
    return {"name": units.text(name, NAME_LIMIT), "same": against.same_words(trials), "sides": sides}


def _plot(runs: tuple[dict[str, Any], dict[str, Any]], metric: str) -> dict[str, Any]:
    """Points (x: latency ratio to the run's own baseline, y: drop on its selection data), alike to html's plot."""
    factor, unit = units.drop_axis(metric)
    points: list[dict[str, Any]] = []
    left_out: list[str] = []
    where: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for number, run in enumerate(runs, start=1):
        for trial in filter(None, run.get("trials") or []):
            said = row(trial, trial is chosen_trial(run), metric)
            found = html.point(trial, said, part(trial, "score").get("drop"), factor)
            label = f"{number}: {said['name']}"
            if found is None or found["x"] <= 0:
                left_out.append(label)
                continue
            tip = [f"latency {said['latency_ratio']}", f"drop {said['drop']}", said["size"], said["verdict"]]
            points.append(found | {"name": label, "look": f"run-{number}", "tip": tip})
            where[number - 1][str(trial.get("name"))] = [found["x"], found["y"]]
    floor = _floor(runs)
    shown = [] if floor is None else [floor * factor]
    return {
        "points": points,
        "left_out": left_out,
        "lines": [],
        "floor": None if floor is None else {"y": floor * factor, "label": f"floor: {units.drop(floor, metric)}"},
        "paths": [[where[0][name], where[1][name]] for name in where[0] if name in where[1]],
        "x_title": "Median latency relative to the run's own fp32",
        "y_title": f"Drop in {units.text(metric, 40)} on selection data{unit}",
        "y_axis": {**html.padded([0.0, *shown, *(point["y"] for point in points)]), "reverse": True},
        **_ratio_axis(points),
    }


def _floor(runs: tuple[dict[str, Any], dict[str, Any]]) -> float | None:
    """The largest drop allowed, where both runs allowed the same."""
    allowed = [part(run, "plan").get("floor_drop") for run in runs]
    return allowed[0] if units.known(allowed[0]) and allowed[0] == allowed[1] else None


def _ratio_axis(points: list[dict[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis: half as long and twice as long are equally far from 1."""
    ends = [x for point in points for x in (point["x"], *(point["x_interval"] or ())) if x > 0]
    low, high = min([0.5, *ends]) / 1.15, max([1.0, *ends]) * 1.25
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in TICKS]
    shown = [[tick, f"{tick:g}×"] for tick in ticks if low <= tick <= high]
    return {"x_axis": {"type": "logarithmic", "min": low, "max": high}, "x_ticks": shown}


def _final(run: dict[str, Any]) -> dict[str, Any]:
    final = part(run, "final")
    metric = str(final.get("metric") or _metric(run))
    return {
        "verdict": final.get("verdict") if final.get("verdict") in STATES else None,
        "metric": units.text(metric, 40),
        "score": units.score(final.get("value"), metric, final.get("interval")),
        "reference": units.score(final.get("reference"), metric),
        "drop": units.drop(final.get("drop"), metric, final.get("drop_interval")),
        "n": units.count(final.get("n")),
    }


def _slices(
    found: list[dict[str, Any]], runs: tuple[dict[str, Any], dict[str, Any]], key: str, unit: str
) -> dict[str, Any]:
    """One table of classes or groups: {unit, rows: [{label, sides: [{n, score, drop, invalid}], difference}], more,
    alone: how many only one run has}."""
    finals = [part(run, "final") for run in runs]
    metric = str(finals[0].get("metric") or _metric(runs[0]))
    rows = [
        {
            "label": units.text(line["label"], NAME_LIMIT),
            "sides": [_side(line[side], metric) for side in ("first", "second")],
            "difference": units.drop(line["difference"], metric) if line["difference"] is not None else "",
        }
        for line in found[:MOST_ROWS]
    ]
    alone = sum(len(final.get(key) or []) for final in finals) - 2 * len(found)
    return {"unit": unit, "rows": rows, "more": max(0, len(found) - MOST_ROWS), "alone": alone}


def _side(given: dict[str, Any], metric: str) -> dict[str, str]:
    if not units.known(given.get("value")):
        return {"n": units.count(given.get("n")), "score": "", "drop": ""}
    score, drop = units.score(given["value"], metric), units.drop(given.get("drop"), metric)
    return {"n": units.count(given.get("n")), "score": score, "drop": drop}
