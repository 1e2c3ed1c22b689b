"""A run in words: what page and terminal both say, and the one screen that the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report import units

NAME_LIMIT = 40
WIDE = 130
STATES = {"pass": "met", "fail": "missed", "undecided": "undecided"}
COLOURS = {
    **{"pass": "green", "fail": "red", "undecided": "yellow"},
    **{"met": "green", "missed": "red", "not measured": "yellow"},
    **{"baseline": "cyan", "kept": "green", "rejected": "yellow", "failed": "red"},
}
BUDGET_FIELDS = {
    "latency_p50_s": ("latency", "p50_s"),
    "latency_p95_s": ("latency", "p95_s"),
    "size_bytes": ("artifact", "size_bytes"),
    "peak_memory_bytes": ("memory", "above_runtime_bytes"),
}


def render(run: dict[str, Any], console: Console, run_dir: Path | None = None) -> None:
    """Print the verdict, the demands, the ladder, the final score and where the files are (under `run_dir`, if told).

    run: run.json's content; fields may be null or absent. Foreign text is never read as markup or escape codes.
    """
    metric = str(part(run, "plan").get("metric") or "score")
    trials = [trial for trial in run.get("trials") or [] if trial]
    chosen = chosen_trial(run)
    rows = [row(trial, trial is chosen, metric) for trial in trials]
    verdict = run.get("verdict") if run.get("verdict") in STATES else "undecided"
    colour = COLOURS[str(verdict)]
    console.print(
        Text.assemble(
            (f" {str(verdict).upper()} ", f"bold reverse {colour}"),
            (" " + units.text(run.get("sentence") or "No verdict was written.", 600), "bold"),
        )
    )
    console.print()
    wide = console.width >= WIDE
    console.print(_ladder(rows, wide))
    if not wide:
        console.print(_grid([(Text(said["name"], "bold"), _reason(said)) for said in rows]))
    console.print(Text(f"stopped: {units.text(run.get('stop') or 'not said', 600)}", style="dim"))
    for note in run.get("notes") or []:
        console.print(Text(f"note: {units.text(note, 600)}", style="yellow"))
    console.print()
    found = demands(run, chosen, metric)
    lines = [(d["state"], Text(f"{d['what']}: {d['reached']}, allowed {d['limit']}")) for d in found]
    console.print(_grid([(Text(state, COLOURS[state]), said) for state, said in lines] + [_final(run, metric)]))
    bundle, at = part(run, "bundle").get("file"), "" if run_dir is None else f"{run_dir}/"
    console.print()
    console.print(Text(f"report  {at}report.html"), soft_wrap=True)
    console.print(Text("bundle  " + (f"{at}{units.text(bundle)}" if bundle else "none was made")), soft_wrap=True)


def render_plan(plan: dict[str, Any], address: str, console: Console) -> None:
    """What is fixed before work starts, on one screen. plan: `Plan.to_json`."""
    run_file, profile = part(plan, "run_file"), part(plan, "profile")
    task, ladder = part(run_file, "task"), part(run_file, "ladder")
    metric = str(plan["metric"])
    budgets = [f"{units.label(key)} at most {units.by_key(key, value)}" for key, value in plan["budgets"].items()]
    splits = [
        f"{name}: {_split_words(section)}"
        for name, section in part(run_file, "splits").items()
        if isinstance(section, dict)
    ]
    lines = {
        "run": plan["name"],
        "model": part(run_file, "model")["torch"],
        "data": f"{task['arrays'] or task['object']}, inputs {', '.join(task['inputs'])}, scored by {metric}",
        "splits": "; ".join(splits),
        "board": f"{profile['name']} at {address}",
        "budgets": "; ".join(budgets) or "none",
        "improves": units.label(plan["objective"]),
        "floor": f"a drop of at most {units.drop(plan['floor_drop'], metric)} below the source model",
        "rungs": f"{', '.join(plan['rungs'])} on {plan['runtime']}, {plan['threads']} threads",
        "stops": f"when every budget is met and a rung promises less than {units.share(ladder['min_gain'])}",
        "measures": f"mode {plan['mode']}, seed {plan['seed']}",
    }
    console.print(_grid([(Text(name, "bold"), Text(units.text(line, 600))) for name, line in lines.items()]))
    console.print(Text("Nothing has been checked but the run file and the profile: neither data, model nor board."))


def _split_words(section: dict[str, Any]) -> str:
    groups = f"groups {', '.join(map(str, section['groups']))}" if section["groups"] else ""
    count = f"at most {units.count(section['count'])} samples" if section["count"] else ""
    return ", ".join(filter(None, (groups, count)))


def chosen_trial(run: dict[str, Any]) -> dict[str, Any] | None:
    """The trial that the run chose, or None."""
    named = (trial for trial in run.get("trials") or [] if trial and trial.get("name") == run.get("chosen"))
    return next(named, None) if run.get("chosen") is not None else None


def row(trial: dict[str, Any], chosen: bool, metric: str) -> dict[str, Any]:
    """One rung of the ladder in words."""
    score, ratios = part(trial, "score"), part(trial, "ratios")
    metric = str(score.get("metric") or metric)
    return {
        "name": units.text(trial.get("name") or "?", NAME_LIMIT),
        "verdict": units.text(trial.get("verdict") or "?", 20),
        "chosen": chosen,
        "steps": [units.step(step) for step in trial.get("steps") or []],
        "latency": units.figure(part(trial, "latency").get("p50_s"), "s"),
        "latency_ratio": units.ratio(ratios.get("latency_p50_s")),
        "size": units.quantity(part(trial, "artifact").get("size_bytes"), "bytes"),
        "size_ratio": units.ratio(ratios.get("size_bytes")),
        "memory": units.quantity(part(trial, "memory").get("above_runtime_bytes"), "bytes"),
        "memory_ratio": units.ratio(ratios.get("peak_memory_bytes")),
        "score": units.score(score.get("value"), metric, score.get("interval")),
        "drop": units.drop(score.get("drop"), metric),
        "agreement": units.share(score.get("agreement")),
        "n": units.count(score.get("n")),
        "reason": units.text(trial.get("reason") or "no reason was written", 600),
        "marks": [units.text(mark) for mark in part(trial, "conditions").get("marks") or []],
    }


def demands(run: dict[str, Any], chosen: dict[str, Any] | None, metric: str) -> list[dict[str, str]]:
    """Each budget and the floor: what was asked, what the chosen artifact reached, and whether it was met."""
    plan, final = part(run, "plan"), part(run, "final")
    found = []
    for key, limit in part(plan, "budgets").items():
        if not units.known(limit):
            continue
        value = None if chosen is None else budgeted_value(chosen, key)
        state = "not measured" if value is None else "met" if value <= limit else "missed"
        got = "no artifact was chosen" if chosen is None else budgeted(chosen, key)
        found.append({"what": units.label(key), "limit": units.by_key(key, limit), "reached": got, "state": state})
    if units.known(plan.get("floor_drop")):
        got = units.drop(final.get("drop"), metric, final.get("drop_interval"))
        state = STATES.get(str(final.get("verdict")), "not measured")
        limit = units.drop(plan["floor_drop"], metric)
        what = f"drop in {units.text(metric, NAME_LIMIT)} on final data"
        found.append({"what": what, "limit": limit, "reached": got, "state": state})
    return found


def budgeted_value(trial: dict[str, Any], key: str) -> float | None:
    """What a trial reached of a budgeted quantity, in SI units; None where that was not measured or is invalid."""
    holder, field = BUDGET_FIELDS.get(key, ("", ""))
    value = part(trial, holder).get(field)
    if isinstance(value, dict):
        value = None if value.get("invalid") else value.get("value")
    return value if units.known(value) else None


def budgeted(trial: dict[str, Any], key: str, interval: bool = True) -> str:
    """The same in words."""
    holder, field = BUDGET_FIELDS.get(key, ("", ""))
    value = part(trial, holder).get(field)
    if not isinstance(value, dict):
        return units.by_key(key, value)
    return units.figure(value if interval else value | {"interval": None}, key.rsplit("_", 1)[-1])


def part(given: dict[str, Any], key: str) -> dict[str, Any]:
    """A dictionary within a dictionary; an empty one where it is null or absent."""
    found = given.get(key)
    return found if isinstance(found, dict) else {}


def _ladder(rows: list[dict[str, Any]], wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=wide)
    table.add_column("artifact", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for name in ("latency p50", "× fp32", "size", "drop"):
        table.add_column(name, justify="right")
    if wide:
        table.add_column("reason", ratio=1)
    for said in rows:
        titled = Text(("▸ " if said["chosen"] else "  ") + said["name"], style="bold" if said["chosen"] else "")
        cells = [_short(said[key]) for key in ("latency", "latency_ratio", "size", "drop")]
        judged = Text(said["verdict"], style=COLOURS.get(said["verdict"], ""))
        table.add_row(titled, judged, *map(Text, cells), *([_reason(said)] if wide else []))
    return table


def _reason(said: dict[str, Any]) -> Text:
    reason = Text(said["reason"])
    return reason.append("".join(f"; marked: {mark}" for mark in said["marks"]), "yellow")


def _short(figure: str) -> str:
    return figure if figure.startswith("invalid") else figure.partition(" (")[0]


def _final(run: dict[str, Any], metric: str) -> tuple[Text, Text]:
    final = part(run, "final")
    if not final:
        return Text("not scored", "yellow"), Text("final: no artifact was chosen, or the run broke off")
    metric, verdict = str(final.get("metric") or metric), units.text(final.get("verdict"), 20)
    score = units.score(final.get("value"), metric, final.get("interval"))
    of = f"n={units.count(final.get('n'))}" + (f" in {final['groups']} groups" if final.get("groups") else "")
    reason = units.text(final.get("reason") or "no reason was written", 600)
    said = f"final: {units.text(metric, NAME_LIMIT)} {score}, {of}; {reason}"
    return Text(verdict, COLOURS.get(verdict, "")), Text(said)


def _grid(lines: list[tuple[Text, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column()
    for line in lines:
        grid.add_row(*line)
    return grid
