"""What `power` found, on one screen."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import units

BARS = " ▁▂▃▄▅▆▇█"
NAME_LIMIT = 40


def render(document: dict[str, Any], console: Console) -> None:
    """Gross and net joules of each model; the watts over time, with the windows of each model under them."""
    board, sensor = document["board"], document["sensor"]
    place = units.text(board["model"] or board["hostname"])
    console.print(Text(f"{place}, {units.text(board['cpu_model'])}, at {document['device']}", "bold"))
    told = f"{units.text(sensor['kind'])}:{units.text(sensor['rail'])}, read every {sensor['period_s']:g} s"
    console.print(Text(f"sensor {told}"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for result in document["results"]:
        table.add_column(units.text(result["name"], NAME_LIMIT), justify="right")
    for title, key, unit in (
        ("gross, one inference", "gross_j", "j"),
        ("net, one inference", "net_j", "j"),
        ("idle board", "idle_w", "w"),
    ):
        table.add_row(title, *(Text(units.figure(result[key], unit)) for result in document["results"]))
    table.add_row("windows", *(units.count(len(result["windows"])) for result in document["results"]))
    console.print(table)
    console.print(Text(f"median latency with the sampler / without: {units.ratio(document['sampler_overhead'])}"))
    for line in _plot(document, max(20, console.width - 12)):
        console.print(Text(line))
    for words, times in sensor["failures"].items():
        console.print(Text(f"{units.count(times)} readings failed: {units.text(words, 200)}", "yellow"))
    if document["random_inputs"]:
        console.print(Text("marked: random inputs", "yellow"))


def _plot(document: dict[str, Any], width: int) -> list[str]:
    """Watts as bars, and under them which model worked: 1, 2, …; a dot: the board was idle."""
    seconds, watts = document["watts"]["seconds"], document["watts"]["power_w"]
    known = [value for value in watts if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return []
    low, high, span = min(0.0, *known), max(known), seconds[-1] or 1.0
    columns: list[list[float]] = [[] for _ in range(width)]
    for at, value in zip(seconds, watts, strict=True):
        if value is not None and math.isfinite(value):
            columns[min(width - 1, int(at / span * width))].append(value)
    heights = [sum(column) / len(column) if column else low for column in columns]
    bars = "".join(BARS[round((height - low) / (high - low or 1.0) * (len(BARS) - 1))] for height in heights)
    began = document["watts"]["first_s"]
    under = [" "] * width
    for mark in document["marks"]:
        first, last = (int((mark[key] - began) / span * width) for key in ("began_s", "ended_s"))
        for column in range(max(0, first), min(width, last + 1)):
            under[column] = "." if mark["artifact"] is None else str(mark["artifact"] + 1)
    return [f"{units.quantity(high, 'w'):>10} {bars}", f"{'':>10} {''.join(under)}"]
