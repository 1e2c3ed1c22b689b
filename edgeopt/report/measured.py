"""What bench, compare and validate found, on one screen."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import breakdown, units
from .terminal import COLOURS, worst

PERCENTILES = ("p50_s", "p90_s", "p95_s", "p99_s")


def render_bench(document: dict[str, Any], console: Console) -> None:
    """Latency and memory of one or two artifacts; with two, the ratio of their paired medians."""
    board = document["board"]
    place = units.text(board["model"] or board["hostname"])
    console.print(Text(f"{place}, {units.text(board['cpu_model'])}, at {document['device']}", "bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for result in document["results"]:
        table.add_column(units.text(result["name"], 40), justify="right")
    for title, cells in _rows(document["results"]):
        table.add_row(title, *map(Text, cells))
    console.print(table)
    for result in document["results"]:
        for mark in result["marks"]:
            console.print(Text(f"marked {units.text(result['name'], 40)}: {units.text(mark)}", "yellow"))
    if "ratio" in document:
        first, second = (units.text(result["name"], 40) for result in document["results"])
        console.print(Text(f"median of {second} / median of {first}: {units.ratio(document['ratio'])}", "bold"))


def render_validation(found: dict[str, Any], console: Console) -> None:
    """The verdict of a release on its board, with its reasons and figures."""
    verdict, final, metric = found["verdict"], found["final"], str(found["final"]["metric"] or "score")
    head = f" {verdict.upper()} ", f"bold reverse {COLOURS[verdict]}"
    name = units.text(found["name"])
    console.print(Text.assemble(head, (f" {name} ({found['release'][:12]}) on {found['device']}", "bold")))
    for reason in found["reasons"]:
        console.print(Text(f"  {units.text(reason, 600)}"))
    latency = found["latency"]
    rows = [
        ("score on the board", units.score(final["value"], metric, final["interval"])),
        ("source model", units.score(final["reference"], metric)),
        ("drop", units.drop(final["drop"], metric, final["drop_interval"]) + f", n={units.count(final['n'])}"),
        ("drop allowed", units.drop(final["floor_drop"], metric)),
        ("same answer as the source model", units.share(final["agreement"])),
        ("latency p50", units.figure(latency["p50_s"], "s")),
        ("latency p90", units.figure(latency["p90_s"], "s")),
        ("memory above the runtime", units.quantity((found["memory"] or {}).get("above_runtime_bytes"), "bytes")),
    ]
    grid = Table.grid(padding=(0, 2))
    for title, said in rows:
        grid.add_row(f"  {title}", Text(said))
    for heading, words in worst(final, metric):
        grid.add_row(Text("  ").append(heading), words)
    console.print(grid)
    for mark in found["conditions"]["marks"]:
        console.print(Text(f"  marked: {units.text(mark)}", "yellow"))


def _rows(results: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = [(f"latency {name[:-2]}", [units.figure(r["latency"][name], "s") for r in results]) for name in PERCENTILES]
    return [
        *rows,
        ("queries", [units.count(r["latency"]["n"]) for r in results]),
        ("mean", [units.figure(r["latency"]["mean_s"], "s") for r in results]),
        ("copying the input", [units.figure(r["latency"]["copy_s"], "s") for r in results]),
        ("load", [units.quantity(r["load_s"], "s") for r in results]),
        ("first inference", [units.quantity(r["first_inference_s"], "s") for r in results]),
        (
            "memory above runtime",
            [units.quantity((r["memory"] or {}).get("above_runtime_bytes"), "bytes") for r in results],
        ),
        ("size", [units.quantity(r["size_bytes"], "bytes") for r in results]),
        ("threads", [str(r["executed"]["threads"]) for r in results]),
        ("float parts in", [breakdown.detail(r)["precision"] for r in results]),
        ("MACs", [breakdown.detail(r)["macs"] for r in results]),
    ]
