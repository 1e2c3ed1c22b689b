"""What bench, compare and validate found, on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import accounts, board, breakdown, curves, placement, units
from .rows import Rows
from .terminal import COLOURS, worst

PERCENTILES = ("p50_s", "p90_s", "p95_s", "p99_s")
NOT_IN_RAPID = ("p95_s", "p99_s")
BESIDE = {"pre_s": "preparing", "copy_s": "copying in", "post_s": "fetching outputs"}
NOT_TOLD = "not told"  # breakdown.detail's word for it
MARGIN = 0.02  # as ladder.MARGIN: two processes of one artifact differ by as much


def render_bench(document: dict[str, Any], console: Console) -> None:
    """Latency and memory of one or two artifacts; with two, the ratio of their paired medians."""
    board.head(document, console)
    if mode := _power_mode(document.get("power_mode") or {}):
        console.print(Text(f"power mode: {mode}"))
    table = Rows()
    table.add_column("")
    for result in document["results"]:
        table.add_column(units.text(result["name"], 40), justify="right")
    for title, cells in _rows(document["results"]):
        table.add_row(title, *map(Text, cells))
    console.print(board.marked(table, document["board"]))
    for result in document["results"]:
        console.print(Text(_beside(result, len(document["results"]) > 1)))
    for result in document["results"]:
        if result.get("operators"):
            render_operators(result, console, document["board"])
    for line in inputs_of(document["results"]):
        console.print(Text(line))
    for result in document["results"]:
        if score := result.get("score"):
            own = units.score(score["value"], score["metric"])
            console.print(Text(f"{score['metric']} of {units.text(result['name'], 40)}: {own}, n={score['n']}"))
    if _all_rapid(document["results"]):
        console.print(Text("p95 and p99 need --mode quick or normal", "dim"))
    for result in document["results"]:
        for mark in result["marks"]:
            console.print(Text(f"marked {units.text(result['name'], 40)}: {units.text(mark)}", "yellow"))
    if again := document.get("repeated"):
        console.print(Text(f"measured again because {units.text(again)}"))
    for result in document["results"]:
        if "sustained" in result:
            curves.render(result, console)
    if "ratio_end" in document:
        start, end = (compared(document["results"], document[f"ratio_{part}"]) for part in ("start", "end"))
        console.print(Text(f"at the start: {start}"))
        console.print(Text(f"at the end: {end}", "bold"))
    elif "ratio" in document:
        console.print(Text(compared(document["results"], document["ratio"]), "bold"))
    if verdict := document.get("verdict"):
        console.print(Text(f" {verdict.upper()} ", f"bold reverse {COLOURS[verdict]}"), end=" ")
    for reason in document.get("reasons") or []:
        console.print(Text(units.text(reason, 600)))


def inputs_of(results: list[dict[str, Any]]) -> list[str]:
    """Which array of --inputs each input of each artifact took, a line each, and what was left alone."""
    lines = []
    for result in results:
        bound = result.get("inputs")
        if bound is None:
            continue
        pairs = [
            f"{own['input']} ← array {own['array']}" + "".join(f", {step['op']}" for step in steps)
            for own, steps in zip(bound["inputs"], bound["steps"], strict=True)
        ]
        by = " in their order" if bound["by"] == "order" and len(pairs) > 1 else ""
        lines.append(units.text(f"inputs of {result['name']}{by}: {'; '.join(pairs)}", 600))
    left = [name for result in results[:1] if result.get("inputs") for name in result["inputs"]["left"]]
    return lines + ([units.text(f"left alone: {', '.join(left)}", 600)] if left else [])


def render_operators(result: dict[str, Any], console: Console, measured_on: dict[str, Any]) -> None:
    """A row an operator, in the order in which they ran; times are of a run of their own."""
    rows, note = placement.table(result["operators"], result["conversions"])
    table = Rows(title=f"operators of {units.text(result['name'], 40)}")
    for title, justify in (("operator", "left"), ("on", "left"), ("in", "left"), ("MACs", "right"), ("time", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(board.marked(table, measured_on))
    console.print(Text(note, "dim"))


def render_validation(found: dict[str, Any], console: Console) -> None:
    """The verdict of a release on its board, with its reasons and figures."""
    verdict, final, metric = found["verdict"], found["final"], str(found["final"]["metric"] or "score")
    head = f" {verdict.upper()} ", f"bold reverse {COLOURS[verdict]}"
    name = units.text(found["name"])
    console.print(Text.assemble(head, (f" {name} ({found['release'][:12]}) on {found['device']}", "bold")))
    told = found.get("board") or {}
    console.print(Text(f"  measured on {board.described(told)}"))
    if said := board.mark(told):
        console.print(Text(f"  marked: {said}; {board.different(told)}", "yellow"))
    for reason in found["reasons"]:
        console.print(Text(f"  {units.text(reason, 600)}"))
    latency = found["latency"]
    own = (found.get("reference") or {}).get("kind") == "own"
    file = (found.get("reference") or {}).get("file")
    source = "recorded when it was bundled" if own else "source model"
    rows = [
        ("score on the board", units.score(final["value"], metric, final["interval"])),
        (source, units.score(final["reference"], metric) + (f", {units.text(file, 60)}" if file else "")),
        ("drop", units.drop(final["drop"], metric, final["drop_interval"]) + f", n={units.count(final['n'])}"),
        ("drop allowed", units.drop(final["floor_drop"], metric)),
        ("same answer as recorded then" if own else "same answer as the source model", units.share(final["agreement"])),
        ("latency p50", units.figure(latency["p50_s"], "s")),
        ("latency p90", units.figure(latency["p90_s"], "s")),
        ("memory above the runtime", units.quantity((found["memory"] or {}).get("above_runtime_bytes"), "bytes")),
    ]
    rows += [*accounts.errors(final), *accounts.review(final)]
    rows += accounts.cost(found["cost"]) if found.get("cost") else []
    grid = Table.grid(padding=(0, 2))
    for title, said in rows:
        grid.add_row(f"  {title}", Text(said))
    for heading, words in worst(final, metric, "recorded" if own else source):
        grid.add_row(Text("  ").append(heading), words)
    console.print(board.marked(grid, told))
    for mark in found["conditions"]["marks"]:
        console.print(Text(f"  marked: {units.text(mark)}", "yellow"))


def _power_mode(mode: dict[str, Any]) -> str:
    """What the board tells of it: "governor ondemand, at most 1.5 GHz"."""
    caps = mode.get("frequency_max_hz") or []
    told = [f"at most {units.quantity(max(caps), 'hz')}"] if caps else []
    rest = [f"{key.replace('_', ' ')} {units.text(value)}" for key, value in mode.items() if isinstance(value, str)]
    return ", ".join(rest + told)


def compared(results: list[dict[str, Any]], ratio: dict[str, Any]) -> str:
    """The ratio of medians as a sentence: a bare "2.19×" was read as a gain."""
    first, second = (units.text(result["name"], 40) for result in results)
    if first == second:
        first, second = f"the first {first}", f"the second {second}"
    value, interval = ratio["value"], ratio["interval"]
    if ratio.get("invalid") or not units.known(value) or interval is None:
        return f"{second} compared with {first}: {units.ratio(ratio)}"
    low, high = interval
    same = low <= 1 <= high or abs(value - 1) <= MARGIN
    judged = "no difference shown" if same else "slower" if value > 1 else "faster"
    return f"{second} takes {units.ratio(ratio)} as long as {first}: {judged}"


def _beside(result: dict[str, Any], several: bool) -> str:
    """What a query costs before and after the invoke that is timed."""
    of = f" of {units.text(result['name'], 40)}" if several else ""
    told = ", ".join(f"{words} {units.figure(result['latency'][key], 's')}" for key, words in BESIDE.items())
    return f"medians beside invoke{of}: {told}"


def _all_rapid(results: list[dict[str, Any]]) -> bool:
    return all(result["latency"].get("mode") == "rapid" for result in results)


def _rows(results: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Titles with a cell a result; without what is told of none."""
    names = [name for name in PERCENTILES if name not in NOT_IN_RAPID or not _all_rapid(results)]
    rows = [
        ("runtime", [units.text(r.get("runtime") or NOT_TOLD, 20) for r in results]),
        *((f"latency {name[:-2]}", [units.figure(r["latency"][name], "s") for r in results]) for name in names),
        ("queries", [units.count(r["latency"]["n"]) for r in results]),
        ("mean", [units.figure(r["latency"]["mean_s"], "s") for r in results]),
        ("min", [units.figure(r["latency"]["min_s"], "s") for r in results]),
        ("load, from the disk", [units.quantity(r.get("load_cold_s"), "s") for r in results]),
        ("load, file in memory", [units.quantity(r["load_s"], "s") for r in results]),
        ("first inference", [units.quantity(r["first_inference_s"], "s") for r in results]),
        (
            "memory above runtime",
            [units.quantity((r["memory"] or {}).get("above_runtime_bytes"), "bytes") for r in results],
        ),
        ("size", [units.quantity(r["size_bytes"], "bytes") for r in results]),
        ("threads", [str(r["executed"]["threads"]) for r in results]),
        ("float parts computed in", [breakdown.detail(r)["precision"] for r in results]),
        ("MACs", [breakdown.detail(r)["macs"] for r in results]),
        ("ran on", [placement.places(r["executed"]) for r in results]),
    ]
    return [(title, cells) for title, cells in rows if any(cell != NOT_TOLD for cell in cells)]
