"""Two runs side by side: what differs, and never which is better, since each measured against a baseline of its own."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import units
from .terminal import COLOURS, NAME_LIMIT, chosen_trial, part, row

CAUTION = (
    "No verdict compares these two runs: each measured its own baseline, at another time and perhaps on another board. "
    "Ratios are to the run's own fp32. To know which artifact is faster, measure both in one job: edgeopt compare"
)
OTHER_DATA = ". The two had another model, other data or other splits: their scores are of different things"
# What makes figures differ before any artifact does.
OF_THE_BOARD = ("model", "serial", "machine_id", "machine", "cpu_model", "kernel", "governor", "python", "address")
FIGURES = ("verdict", "latency_p50_s", "size_bytes", "peak_memory_bytes", "score", "drop", "ratios", "file_sha256")


def differences(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """What differs between two run.json documents, in plain values; `names` tells where they were found.

    {"runs": [two heads], "plan", "board": [{key, first, second}], "candidates": [{name, first, second}], "final",
    "caution"}. A candidate that one run lacks is None there.
    """
    return {
        "runs": [_head(run, name) for run, name in zip((first, second), names, strict=True)],
        "plan": _changed(_plan(first), _plan(second)),
        "board": _changed(_board(first), _board(second)),
        "candidates": _candidates(first, second),
        "final": {key: [part(run, "final").get(key) for run in (first, second)] for key in _FINAL},
        "caution": CAUTION + (OTHER_DATA if _given(first) != _given(second) else ""),
    }


_FINAL = ("metric", "value", "interval", "reference", "drop", "drop_interval", "n", "verdict")


def _head(run: dict[str, Any], name: str) -> dict[str, Any]:
    kept = ("name", "created", "edgeopt", "verdict", "chosen")
    return {"run": name, **{key: run.get(key) for key in kept}, "runtime": part(run, "plan").get("runtime")}


def _board(run: dict[str, Any]) -> dict[str, Any]:
    board = part(run, "board")
    runtimes = {f"runtimes.{name}": found for name, found in part(board, "runtimes").items() if found}
    return {key: board.get(key) for key in OF_THE_BOARD} | runtimes


def _plan(run: dict[str, Any]) -> dict[str, Any]:
    """The plan by dotted key, without what its run file says a second time."""
    plan = part(run, "plan")
    twice = ("name", "description", *plan)
    found = _flat(plan)
    return {key: value for key, value in found.items() if "." not in key or key.rsplit(".", 1)[-1] not in twice}


def _given(run: dict[str, Any]) -> list[Any]:
    """What decides which scores a run can have: the model, the data and its splits."""
    run_file = part(part(run, "plan"), "run_file")
    return [run_file.get("model"), run_file.get("task"), part(run, "plan").get("splits")]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf; lists are leaves."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}".lstrip("."))
    return found


def _changed(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "first": first.get(key), "second": second.get(key)}
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def _candidates(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    own, other = ({t["name"]: t for t in run.get("trials") or [] if t and t.get("name")} for run in (first, second))
    found = []
    for name in {**own, **other}:
        sides = [_figures(trials[name]) if name in trials else None for trials in (own, other)]
        found.append({"name": name, "first": sides[0], "second": sides[1]})
    return found


def _figures(trial: dict[str, Any]) -> dict[str, Any]:
    score, artifact = part(trial, "score"), part(trial, "artifact")
    ratios = {key: part(part(trial, "ratios"), key).get("value") for key in part(trial, "ratios")}
    found = (
        trial.get("verdict"),
        part(part(trial, "latency"), "p50_s").get("value"),
        artifact.get("size_bytes"),
        part(trial, "memory").get("above_runtime_bytes"),
        score.get("value"),
        score.get("drop"),
        ratios,
        artifact.get("sha256"),
    )
    return dict(zip(FIGURES, found, strict=True))


def render(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str], console: Console) -> None:
    """The two runs on one screen, candidate by candidate; the caution before any figure."""
    found = differences(first, second, names)
    for number, head in enumerate(found["runs"], start=1):
        verdict = str(head["verdict"])
        console.print(
            Text.assemble(
                (f"run {number}  ", "bold"),
                units.text(head["run"], 100),
                f", {units.when(head['created'])}, chosen {units.text(head['chosen'], NAME_LIMIT)}, ",
                (units.text(verdict, 20), COLOURS.get(verdict, "")),
            )
        )
    console.print(Text(found["caution"], "yellow"))
    for title in ("board", "plan"):
        _print_changed(title, found[title], console)
    console.print(_candidate_table(first, second))
    console.print(_final_table(first, second))


def _print_changed(title: str, changed: list[dict[str, Any]], console: Console) -> None:
    if not changed:
        console.print(Text(f"\nthe {title} is the same"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in (f"other in the {title}", "run 1", "run 2"):
        table.add_column(head, overflow="fold")
    for line in changed:
        sides = (_said(line["key"], line[side]) for side in ("first", "second"))
        table.add_row(*map(Text, (units.text(line["key"], 60), *sides)))
    console.print(table)


def _said(key: str, value: Any) -> str:
    return "absent" if value is None else units.by_key(key.rsplit(".", 1)[-1], value)


def _candidate_table(first: dict[str, Any], second: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("candidate", overflow="fold")
    table.add_column("run")
    table.add_column("verdict", no_wrap=True)
    for name in ("× own fp32", "size", "score", "drop"):
        table.add_column(name, justify="right")
    table.add_column("artifact")
    for line in _candidates(first, second):
        same = _same(line)
        for number, run in enumerate((first, second), start=1):
            trial = next((t for t in run.get("trials") or [] if t and t.get("name") == line["name"]), None)
            title = units.text(line["name"], NAME_LIMIT) if number == 1 else ""
            table.add_row(*_cells(title, number, trial, run, same if number == 2 else ""))
    return table


def _same(line: dict[str, Any]) -> str:
    if line["first"] is None or line["second"] is None:
        return ""
    hashes = [line[side]["file_sha256"] for side in ("first", "second")]
    return "" if None in hashes else "the same bytes" if hashes[0] == hashes[1] else "other bytes"


def _cells(title: str, number: int, trial: dict[str, Any] | None, run: dict[str, Any], same: str) -> list[Text]:
    if trial is None:
        return [Text(cell) for cell in (title, str(number), "not tried", "", "", "", "", "")]
    said = row(trial, False, str(part(run, "plan").get("metric") or "score"))
    chosen = " (chosen)" if trial is chosen_trial(run) else ""
    figures = [said[key].partition(" (")[0] for key in ("latency_ratio", "size", "score", "drop")]
    verdict = Text(said["verdict"] + chosen, COLOURS.get(said["verdict"], ""))
    return [Text(title), Text(str(number)), verdict, *map(Text, figures), Text(same)]


def _final_table(first: dict[str, Any], second: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("final", "score on the board", "source model", "drop", "n", "verdict"):
        table.add_column(head, overflow="fold")
    for number, run in enumerate((first, second), start=1):
        final = part(run, "final")
        metric = str(final.get("metric") or "score")
        score = units.score(final.get("value"), metric, final.get("interval"))
        drop = units.drop(final.get("drop"), metric, final.get("drop_interval"))
        said = (f"run {number}", score, units.score(final.get("reference"), metric), drop)
        table.add_row(
            *map(Text, said), units.count(final.get("n")), units.text(final.get("verdict") or "not scored", 20)
        )
    return table
