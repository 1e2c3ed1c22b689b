"""What `power` found as one offline page: the joules, and the watts over time with the windows of each model shaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import disk
from . import against_page, board, html, joules, units
from .terminal import NAME_LIMIT

MARK = '<meta name="generator" content="edgeopt power --out">'  # by this a page of ours is known again


def require_writable(out: Path) -> None:
    """Raises ConfigError unless a page can be put there: over nothing, or over an earlier one of `power`."""
    against_page.require_writable(out, MARK, "power")


def write(document: dict[str, Any], out: Path) -> Path:
    """The page of what `power --json` prints. Raises ConfigError as `require_writable`."""
    require_writable(out)
    return disk.write(out, html.page("power.html.j2", view(document)))


def view(document: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: text and numbers ready to print, nothing left to decide."""
    told, overhead = document["board"], document["sampler_overhead"]
    plot = _plot(document)
    lost = [f"{units.count(n)} readings failed: {units.text(why)}" for why, n in document["sensor"]["failures"].items()]
    return {
        "mark": MARK,
        "name": board.name(told),
        "place": f"{board.described(told)}, at {units.text(document['device'])}",
        "stand_in": board.mark(told),
        "source": joules.source(document),
        "estimated": document["sensor"]["how"] != "measured",
        "notes": [line for line in (joules.aligned(document), *lost, *joules.marks(document)) if line],
        "overhead": None if overhead is None else units.ratio(overhead),
        "random": document["random_inputs"],
        "rows": [_row(result) for result in document["results"]],
        "plot": plot,
        "charts": {"watts": plot},
    }


def _row(result: dict[str, Any]) -> dict[str, Any]:
    figures = [
        units.figure(result[key], unit)
        for key, unit in (("gross_j", "j"), ("net_j", "j"), ("work_w", "w"), ("idle_w", "w"))
    ]
    windows, lost = joules.windows(result)
    return {
        "name": units.text(result["name"], NAME_LIMIT),
        "figures": figures,
        "windows": windows,
        "lost": lost,
        "verdict": result["verdict"] and {**result["verdict"], "reason": units.text(result["verdict"]["reason"], 400)},
    }


def _plot(document: dict[str, Any]) -> dict[str, Any] | None:
    """Points (seconds since the first reading, in the unit of `y_title`), and the windows: bands with a model's index,
    -1: the board was idle. None where nothing was measured."""
    watts = document["watts"]
    pairs = [(at, value) for at, value in zip(watts["seconds"], watts["power_w"], strict=True) if units.known(value)]
    if len(pairs) < 2:
        return None
    factor, unit = units.scale(max(abs(value) for _, value in pairs) or 1.0, "w")
    bands = [
        {
            "from": mark["began_s"] - watts["first_s"],
            "to": mark["ended_s"] - watts["first_s"],
            "index": -1 if mark["artifact"] is None else mark["artifact"],
        }
        for mark in document["marks"]
    ]
    return {
        "points": [[at, value / factor] for at, value in pairs],
        "bands": bands,
        "names": [units.text(result["name"], 30) for result in document["results"]],
        "x_title": "Time (s)",
        "y_title": f"Power ({unit})",
        "unit": unit,
    }
