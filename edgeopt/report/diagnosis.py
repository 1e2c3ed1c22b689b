"""What `diagnose` found, on one screen: the checks in their order, the faults, the layers that matter."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import board, units
from .rows import Rows

SIGNS = {"good": ("good", "green"), "fault": ("FAULT", "bold red"), "not compared": ("not compared", "yellow")}
ROWS = 8
WORTH_DB = 45.0
NUMBERS = 46  # columns of the figures


def render(document: dict[str, Any], console: Console) -> None:
    name = f"{units.text(document['name'])} ({document['release'][:12]}) on {document['device']}"
    console.print(Text(f"{name}, {document['runtime']}, {units.count(document['samples'])} samples", "bold"))
    if measured_on := document.get("board"):
        board.head({"board": measured_on, "device": document["device"]}, console)
    checks = Table(box=None, pad_edge=False, show_header=False)
    for own in document["checks"]:
        sign, style = SIGNS[own["state"]]
        said = "see below" if own["state"] == "fault" else units.text(own["says"], 400)
        checks.add_row(own["check"], Text(sign, style), Text(said))
    console.print(checks)
    for found in document["findings"]:
        style = "bold red" if found["is_fault"] else "yellow"
        console.print()
        console.print(Text(units.text(found["says"], 600), style))
        console.print(Text(f"  try: {units.text(found['try'], 600)}"))
    _layers(document, console)
    console.print()
    faults = sum(found["is_fault"] for found in document["findings"])
    told = "no fault found in what was compared" if not faults else f"{faults} fault{'s' if faults > 1 else ''} found"
    console.print(Text(told, "bold"))


def _layers(document: dict[str, Any], console: Console) -> None:
    """The layers with a fault, and those that lose most."""
    at_fault = {found["evidence"].get("layer") for found in document["findings"]}
    rows = document["layers"]
    lossy = sorted((row for row in rows if _worst(row) < WORTH_DB), key=lambda row: -(row["loss_db"] or 0))
    shown = [row for row in rows if row["number"] in at_fault]
    shown += [row for row in lossy if row not in shown][: max(0, ROWS - len(shown))]
    if not shown:
        return
    table = Rows()
    table.add_column("layer", no_wrap=True)
    for title in ("board", "int8", "lost here", "at ends"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in sorted(shown, key=lambda row: int(row["number"])):
        own = row["range"]
        ends = f"{100 * max(own['at_low_end'], own['at_high_end']):.1f} %" if own else ""
        lost = f"{row['loss_db']:.1f} dB" if row["loss_db"] is not None else ""
        name = f"{row['number']} {units.text(row['operator'])} "
        rest = units.text(row["name"])
        room = max(8, console.width - NUMBERS - len(name))
        name += rest if len(rest) <= room else "…" + rest[1 - room :]
        told = (_decibels(row["host_board"]), _decibels(row["float_int8"]))
        table.add_row(Text(name, "red" if row["number"] in at_fault else ""), *told, lost, ends)
    console.print(table)
    columns = "board: against this host; int8: against float; at ends: share of values stored as an end of their range"
    console.print(Text(columns, "dim"))


def _worst(row: dict[str, Any]) -> float:
    found = [told["sqnr_db"] for told in (row["host_board"], row["float_int8"]) if told and told["sqnr_db"] is not None]
    return min(found, default=float("inf"))


def _decibels(told: dict[str, Any] | None) -> str:
    if told is None:
        return ""
    if told.get("shapes"):
        return "other shape"
    if told["max"] is None:
        return "not finite"
    return "equal" if told["sqnr_db"] is None else f"{told['sqnr_db']:.1f} dB"
