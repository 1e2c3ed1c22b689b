"""What `power` found, on one screen."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from . import board, units
from .rows import Rows
from .terminal import COLOURS

BARS = " ▁▂▃▄▅▆▇█"
NAME_LIMIT = 40


def render(document: dict[str, Any], console: Console) -> None:
    """Gross and net joules of each model; the watts over time, with the windows of each model under them."""
    sensor = document["sensor"]
    board.head(document, console)
    console.print(Text(source(document), "" if sensor["how"] == "measured" else "yellow"))
    if told := aligned(document):
        console.print(Text(told, "yellow" if document["alignment"]["problem"] else ""))
    table = Rows()
    table.add_column("")
    for result in document["results"]:
        table.add_column(units.text(result["name"], NAME_LIMIT), justify="right")
    for title, key, unit in (
        ("gross, one inference", "gross_j", "j"),
        ("net, one inference", "net_j", "j"),
        ("board at work", "work_w", "w"),
        ("idle board", "idle_w", "w"),
    ):
        table.add_row(title, *(Text(units.figure(result[key], unit)) for result in document["results"]))
    table.add_row("windows", *(windows(result)[0] for result in document["results"]))
    console.print(board.marked(table, document["board"]))
    for result in document["results"]:
        for reason in windows(result)[1]:
            console.print(Text(f"{units.text(result['name'], NAME_LIMIT)}  a window is left out: {reason}", "yellow"))
        if judged := result["verdict"]:
            words = Text.assemble(
                (judged["verdict"], COLOURS[judged["verdict"]]), f": {units.text(judged['reason'], 400)}"
            )
            console.print(Text.assemble(f"{units.text(result['name'], NAME_LIMIT)}  ", words))
    if document["sampler_overhead"] is not None:
        console.print(Text(f"median latency with the sampler / without: {units.ratio(document['sampler_overhead'])}"))
    for line in _plot(document, max(20, console.width - 12)):
        console.print(Text(line))
    for words, times in sensor["failures"].items():
        console.print(Text(f"{units.count(times)} readings failed: {units.text(words, 200)}", "yellow"))
    for line in marks(document):
        console.print(Text(line, "yellow"))
    if document["random_inputs"]:
        console.print(Text("marked: random inputs", "yellow"))


def source(document: dict[str, Any]) -> str:
    """Where the watts come from, in words."""
    sensor = document["sensor"]
    if sensor["how"] != "measured":
        rail = units.text(sensor["rail"])
        return f"no power sensor: {units.text(sensor['how'])} from the watts of {rail} by time, as if all cores worked"
    name = f"{units.text(sensor['kind'])}:{units.text(sensor['rail'])}"
    return f"{'meter' if document['alignment'] else 'sensor'} {name}, read every {sensor['period_s']:.3g} s"


def marks(document: dict[str, Any]) -> list[str]:
    """What disturbed the run, and why it was measured a second time."""
    again = document.get("repeated")
    told = [f"measured again because: {units.text(again, 300)}"] if again else []
    return told + [f"marked: {units.text(mark, 300)}" for mark in document["disturbances"]]


def windows(result: dict[str, Any]) -> tuple[str, list[str]]:
    """How many windows count, as "3 of 5", and why others do not, each reason once."""
    lost = [units.text(window["invalid"]) for window in result["windows"] if window["invalid"]]
    total = len(result["windows"])
    return f"{units.count(total - len(lost))} of {units.count(total)}" if total else "none", list(dict.fromkeys(lost))


def aligned(document: dict[str, Any]) -> str:
    """How a meter's clock lies beside the board's, in words; nothing with the board's own sensor."""
    told = document["alignment"]
    if told is None:
        return ""
    if told["problem"]:
        return f"clocks: {units.text(told['problem'], 400)}"
    by = "by round trips to the board" if told["by"] == "round trips" else "by the steps of its watts"
    unsure = f"within {units.quantity(told['error_s'], 's')}"
    if told["by"] != "round trips":
        return f"the meter's clock is known {by}, {unsure}"
    if told["steps_say_s"] is None:
        return f"the meter's clock is known {by}, {unsure}; its watts show no step that could confirm it"
    away = units.quantity(abs(told["steps_say_s"] - told["offset_s"]), "s")
    return f"the meter's clock is known {by}, {unsure}; the steps of its watts are {away} beside it"


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
