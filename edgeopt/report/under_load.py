"""What `load` found, on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from . import board, units
from .rows import Rows

NAMED = 10  # slow inputs


def render(document: dict[str, Any], console: Console) -> None:
    """Throughput by streams and batches, latency by arrival rate, the slowest inputs, and the marks."""
    board.head(document, console)
    console.print(Text(f"{units.text(document['name'], 60)}, {units.count(document['threads'])} threads a stream"))
    table = Rows()
    for title in ("streams", "batch", "a second", "p50", "p90", "p99"):
        table.add_column(title, justify="right")
    together = document["streams"] + document["batches"]
    for row in together:
        if not row["invalid"]:
            numbers = units.count(row["streams"]), units.count(row["batch"]), f"{row['per_second']:.1f}"
            table.add_row(*numbers, *_latency(row["latency"]))
    console.print(Text("copies at once, each asked again as soon as it has answered, with so many samples a query"))
    console.print(board.marked(table, document["board"]))
    for row in together:
        if row["invalid"]:
            console.print(Text(f"{row['batch']} samples a query: {units.text(row['invalid'])}", "yellow"))
    table = Rows()
    for title in ("arriving", "busy", "p50", "p90", "p99", "of it waiting"):
        table.add_column(title, justify="right")
    for row in document["arrivals"]:
        waiting = Text(_short(row["waiting"]["p50_s"]))
        table.add_row(f"{row['rate_per_s']:.1f}/s", units.share(row["busy_share"]), *_latency(row["latency"]), waiting)
    console.print(Text("one copy, queries that arrive at random; from arrival to answer"))
    console.print(board.marked(table, document["board"]))
    for row in document["arrivals"]:
        if row["invalid"]:
            console.print(Text(f"at {row['rate_per_s']:.1f} a second: {row['invalid']}", "yellow"))
    if slow := document["slow_inputs"]:
        console.print(Text(_slow(slow)))
    if corners := document["corner_inputs"]:
        told = ", ".join(f"{units.text(name)} {ratio:.2f}×" for name, ratio in corners.items())
        console.print(Text(f"corner inputs, to the median of the real ones: {told}"))
    if document["repeated"]:
        console.print(Text(f"measured again because {units.text(document['repeated'])}"))
    for mark in document["marks"]:
        console.print(Text(f"marked: {units.text(mark)}", "yellow"))


def _latency(figures: dict[str, Any]) -> list[Text]:
    return [Text(_short(figures[name])) for name in ("p50_s", "p90_s", "p99_s")]


def _short(figure: dict[str, Any]) -> str:
    """Without its interval, which the JSON has; why there is none."""
    return units.figure(figure, "s") if figure["value"] is None else units.quantity(figure["value"], "s")


def _slow(slow: dict[str, Any]) -> str:
    if slow["invalid"]:
        return f"the slowest inputs are not told: {slow['invalid']}"
    which = ", ".join(str(number) for number in slow["inputs"][:NAMED])
    return f"the slowest 1 % of {slow['n']} inputs take {slow['ratio']:.2f}× the median (samples {which})"
