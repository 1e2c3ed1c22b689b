"""A sustained run as one offline page: latency, temperature and clock over time, and what was judged, the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import disk
from . import against_page, board, html, measured, units
from .terminal import NAME_LIMIT

MARK = '<meta name="generator" content="edgeopt report, sustained">'  # by this a page of ours is known again
SHOWN = (
    ("latency", "Latency", "s", (("p50_s", "p50"), ("p90_s", "p90"))),
    ("temperature", "Temperature", "c", (("temperature_c", ""),)),
    ("clock", "Clock", "hz", (("frequency_hz", ""),)),
)


def require_writable(out: Path) -> None:
    """Raises ConfigError unless a page can be put there: over nothing, or over an earlier one of a sustained run."""
    against_page.require_writable(out, MARK, "a sustained run")


def write(document: dict[str, Any], out: Path) -> Path:
    """The page of what `bench` or `compare --mode sustained --json` prints. Raises ConfigError as require_writable."""
    require_writable(out)
    return disk.write(out, html.page("sustained.html.j2", view(document)))


def view(document: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: text and numbers ready to print, nothing left to decide."""
    told, results = document["board"], document["results"]
    names = [units.text(result["name"], NAME_LIMIT) for result in results]
    plots = {name: _plot(results, names, title, unit, keys) for name, title, unit, keys in SHOWN}
    sentences = []
    for part in ("start", "end"):
        if (ratio := document.get(f"ratio_{part}")) is not None:
            sentences.append(f"At the {part}: {measured.compared(results, ratio)}")
    reasons = [units.text(reason, 600) for reason in document.get("reasons") or []]
    return {
        "mark": MARK,
        "name": board.name(told),
        "place": f"{board.described(told)}, at {units.text(document['device'])}",
        "stand_in": board.mark(told),
        "verdict": document.get("verdict"),
        "sentences": sentences + reasons,
        "rows": [_row(name, result) for name, result in zip(names, results, strict=True)],
        "plots": [{"id": name, "title": title, "plot": plots[name]} for name, title, *_ in SHOWN],
        "charts": {"timelines": {name: plot for name, plot in plots.items() if plot}},
    }


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    found = result["sustained"]
    figures = [units.figure(found[part][key], "s") for part in ("start", "end") for key in ("p50_s", "p95_s")]
    slower = units.NOT_MEASURED if found["slower"] is None else f"{units.number(found['slower'], 2)}×"
    return {"name": name, "cells": [*figures, slower], "marks": [units.text(mark, 300) for mark in result["marks"]]}


def _plot(
    results: list[dict[str, Any]], names: list[str], title: str, unit: str, keys: tuple[tuple[str, str], ...]
) -> dict[str, Any] | None:
    """Lines of points (minutes, in the unit of `y_title`), and where start and end lie; None where the board tells
    nothing of it. The board's own readings are the same for all models, so one line stands for them."""
    series: list[dict[str, Any]] = []
    for index, (name, result) in enumerate(zip(names, results, strict=True)):
        curve = result["sustained"]["curve"]
        for dash, (key, label) in enumerate(keys):
            pairs = [
                (at / 60, y)
                for at, y in zip(curve["seconds"], curve[key], strict=True)
                if y is not None and units.known(y)
            ]
            if pairs and (label or not index):
                words = f"{name} {label}" if label else "the board"
                series.append({"name": words, "index": index, "dash": dash, "points": pairs})
    if not any(len(one["points"]) > 1 for one in series):
        return None
    factor, shown = units.scale(max(y for one in series for _, y in one["points"]), unit)
    for one in series:
        one["points"] = [[at, y / factor] for at, y in one["points"]]
    parts = results[0]["sustained"]["parts"]
    bands = [{"from": low / 60, "to": high / 60, "label": name} for name, (low, high) in parts.items()]
    return {"series": series, "bands": bands, "x_title": "Time (min)", "y_title": f"{title} ({shown})", "unit": shown}
