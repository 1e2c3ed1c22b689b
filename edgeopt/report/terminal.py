"""A run in words: what page and terminal both say, and the one screen that the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report import accounts, board, breakdown, timing, units
from edgeopt.report.rows import Rows

NAME_LIMIT = 40
WIDE = 130
COLUMNS = {
    **{"latency": "latency p50", "beside": "fp32 beside", "latency_ratio": "× fp32", "size": "size", "drop": "drop"},
    **{"energy": "energy", "power": "at work"},
}
SHOWN = 2  # worst classes, groups, confusions on one screen
SHOWN_IN_FULL = 20
SHORT = 24
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
    "energy_j": ("energy", "gross_j"),
    "power_w": ("energy", "work_w"),
}


def render(
    run: dict[str, Any],
    console: Console,
    run_dir: Path | None = None,
    full: bool = False,
    costs: dict[str, Any] | None = None,
) -> None:
    """Print the verdict, the demands, the ladder, the final score and where the files are (under `run_dir`, if told).

    full: with how each artifact was made and run, and the tables by class and by group. costs: cost.per_1000_runs by
    trial, where there are prices.
    run: run.json's content; fields may be null or absent. Foreign text is never read as markup or escape codes.
    """
    metric = str(part(run, "plan").get("metric") or "score")
    trials = [trial for trial in run.get("trials") or [] if trial]
    chosen = chosen_trial(run)
    rows = [row(trial, trial is chosen, metric) for trial in trials]
    console.print(_headline(run))
    own = part(run, "board")
    at = f", at {units.text(own['address'])}" if own.get("address") else ""
    console.print(Text(f"measured on {board.described(own)}{at}"))
    if said := board.mark(own):
        console.print(Text(f"marked: {said}; {board.different(own)}", "yellow"))
    console.print()
    wide = console.width >= WIDE
    console.print(board.marked(_ladder(rows, wide, full), own))
    if not wide:
        console.print(_grid([(Text(said["name"], "bold"), _reason(said, full)) for said in rows]))
    for mark, names in _marks(rows).items():
        console.print(Text(f"marked: {', '.join(names)}: {mark}", "yellow"))
    console.print(Text(f"stopped: {units.text(run.get('stop') or 'not said', 600)}", style="dim"))
    for note in run.get("notes") or []:
        console.print(Text(f"note: {units.text(note, 600)}", style="yellow"))
    console.print()
    found = demands(run, chosen, metric)
    lines = [(d["state"], Text(f"{d['what']}: {d['reached']}, allowed {d['limit']}")) for d in found]
    final = part(run, "final")
    judged = [(Text(state, COLOURS[state]), said) for state, said in lines] + [_final(run, metric)]
    judged += [(Text("nearest"), Text(said)) for said in near(run, metric)]
    judged += [] if full else worst(final, str(final.get("metric") or metric))
    console.print(board.marked(_grid(judged), own))
    if full:
        told = [*accounts.errors(final), *accounts.review(final)]
        for name, found_cost in (costs or {}).items():
            told += [(f"{units.text(name, NAME_LIMIT)}: {title}", said) for title, said in accounts.cost(found_cost)]
        console.print(_grid([(Text(title), Text(said)) for title, said in told]))
        _tables(final, str(final.get("metric") or metric), console, own)
    bundle, at = part(run, "bundle").get("file"), "" if run_dir is None else f"{run_dir}/"
    console.print()
    if took := timing.line(run):
        console.print(Text(f"time    {took}"), soft_wrap=True)
    console.print(Text(f"report  {at}report.html"), soft_wrap=True)
    if said := board.mark(own):
        console.print(Text(f"marked  what both hold was measured {said}", "yellow"), soft_wrap=True)
    console.print(Text("bundle  " + (f"{at}{units.text(bundle)}" if bundle else "none was made")), soft_wrap=True)


def _headline(run: dict[str, Any]) -> Text:
    verdict = str(run.get("verdict") if run.get("verdict") in STATES else "undecided")
    return Text.assemble(
        (f" {verdict.upper()} ", f"bold reverse {COLOURS[verdict]}"),
        (" " + units.text(run.get("sentence") or "No verdict was written.", 600), "bold"),
    )


def render_plan(
    plan: dict[str, Any], address: str, console: Console, sizes: dict[str, int], foreseen: Sequence[str]
) -> None:
    """What is fixed before work starts, on one screen. plan: `Plan.to_json`; sizes and foreseen: of data.preview."""
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
        "model": str(part(run_file, "model").get("torch") or part(run_file, "model").get("onnx")),
        "data": f"{_source(task)}, inputs {', '.join(task['inputs'])}, scored by {metric}",
        "splits": "; ".join(splits),
        **({"samples": ", ".join(f"{name} {units.count(n)}" for name, n in sizes.items())} if sizes else {}),
        "profile": f"{profile['id']} ({profile['name']}), "
        + ("or a stand-in that is marked" if plan.get("stand_in") else "and nothing else"),
        "board": f"what is at {address}",
        "budgets": "; ".join(budgets) or "none",
        "improves": units.label(plan["objective"]),
        "floor": f"a drop of at most {units.drop(plan['floor_drop'], metric)} below the source model",
        "rungs": f"{', '.join(plan['rungs'])} on {plan['runtime']}, {_threads(plan['threads'])}",
        "stops": f"when every budget is met and a rung promises less than {units.share(ladder['min_gain'])}",
        "measures": f"mode {plan['mode']}, seed {plan['seed']}{_energy_words(plan)}",
    }
    console.print(_grid([(Text(name, "bold"), Text(units.text(line, 600))) for name, line in lines.items()]))
    for words in foreseen:
        console.print(Text(f"note: {units.text(words, 600)}", "yellow"))
    looked = ", and the data's labels, groups and files" if sizes else ""
    rest = "neither model nor board" if sizes else "neither data, model nor board"
    console.print(Text(f"Nothing has been checked but the run file and the profile{looked}: {rest}."))


def _energy_words(plan: dict[str, Any]) -> str:
    energy = part(plan, "energy")
    if not energy:
        return ""
    sensor = ":".join(word for word in (energy["kind"], energy["rail"]) if word) or "the board's power sensor"
    return f"; energy by {sensor}, {energy['windows']} windows an artifact"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _source(task: dict[str, Any]) -> str:
    given = next(task[key] for key in ("arrays", "object", "images", "audio", "text") if task.get(key))
    return ", ".join(f"{part}: {path}" for part, path in given.items()) if isinstance(given, dict) else str(given)


def _split_words(section: dict[str, Any]) -> str:
    values = f"values {', '.join(map(str, section['values']))}" if section.get("values") else ""
    groups = f"groups {', '.join(map(str, section['groups']))}" if section["groups"] else ""
    count = f"at most {units.count(section['count'])} samples" if section["count"] else ""
    return ", ".join(filter(None, (values, groups, count)))


def chosen_trial(run: dict[str, Any]) -> dict[str, Any] | None:
    """The trial that the run chose, or None."""
    named = (trial for trial in run.get("trials") or [] if trial and trial.get("name") == run.get("chosen"))
    return next(named, None) if run.get("chosen") is not None else None


def row(trial: dict[str, Any], chosen: bool, metric: str) -> dict[str, Any]:
    """One rung of the ladder in words."""
    score, ratios, energy = part(trial, "score"), part(trial, "ratios"), part(trial, "energy")
    metric = str(score.get("metric") or metric)
    return {
        "name": units.text(trial.get("name") or "?", NAME_LIMIT),
        "verdict": units.text(trial.get("verdict") or "?", 20),
        "chosen": chosen,
        "steps": [units.step(step) for step in trial.get("steps") or []],
        "latency": units.figure(part(trial, "latency").get("p50_s"), "s"),
        "beside": units.figure(trial.get("baseline_latency"), "s") if trial.get("baseline_latency") else "",
        "latency_ratio": units.ratio(ratios.get("latency_p50_s")),
        "size": units.quantity(part(trial, "artifact").get("size_bytes"), "bytes"),
        "size_ratio": units.ratio(ratios.get("size_bytes")),
        "memory": units.quantity(part(trial, "memory").get("above_runtime_bytes"), "bytes"),
        "memory_ratio": units.ratio(ratios.get("peak_memory_bytes")),
        "energy": units.figure(energy.get("gross_j"), "j"),
        "energy_ratio": units.ratio(ratios.get("energy_j")),
        "energy_net": units.figure(energy.get("net_j"), "j"),
        "power": units.figure(energy.get("work_w"), "w"),
        "score": units.score(score.get("value"), metric, score.get("interval")),
        "drop": units.drop(score.get("drop"), metric, of=score.get("reference")),
        "agreement": units.share(score.get("agreement")),
        "n": units.count(score.get("n")),
        "reason": units.text(trial.get("reason") or "no reason was written", 600),
        "marks": [units.text(mark) for mark in all_marks(trial)],
        "detail": breakdown.detail_words(trial),
    }


def all_marks(trial: dict[str, Any]) -> list[str]:
    """What must be known beside its figures: of the latencies' job, and of the energy's where that was another."""
    own = [str(mark) for mark in part(trial, "conditions").get("marks") or []]
    energy = [f"energy: {mark}" for mark in part(trial, "energy").get("marks") or []]
    return own + energy


def has_energy(trials: Sequence[dict[str, Any]]) -> bool:
    return any(part(trial, "energy") for trial in trials)


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
        got = units.drop(final.get("drop"), metric, final.get("drop_interval"), final.get("reference"))
        state = STATES.get(str(final.get("verdict")), "not measured")
        limit = units.drop(plan["floor_drop"], metric)
        what = f"drop in {units.text(metric, NAME_LIMIT)} on final data"
        found.append({"what": what, "limit": limit, "reached": got, "state": state})
    return found


def near(run: dict[str, Any], metric: str) -> list[str]:
    """Where nothing fits: which candidate is nearest, and how far it is from each demand that it misses."""
    found = part(run, "nearest")
    if not found:
        return []
    said = []
    for miss in found.get("misses") or []:
        what = "drop" if miss.get("what") == "floor_drop" else units.label(miss.get("what"))
        got, allowed = (units.demand(str(miss.get("what")), miss.get(key), metric) for key in ("value", "allowed"))
        over = miss.get("over")
        times = f", {units.number(over, 2)} times as much" if units.known(over) and miss.get("allowed") else ""
        said.append(f"{what} {got} where {allowed} is allowed{times}")
    name = units.text(found.get("name"), NAME_LIMIT)
    lines = [f"{name}: {'; '.join(said) or 'it misses nothing that was measured'}"]
    if final := part(found, "final"):
        got = units.drop(final.get("drop"), metric, final.get("drop_interval"), final.get("reference"))
        lines.append(f"{name} on final data: drop {got}, n={units.count(final.get('n'))}")
    return lines


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


def _ladder(rows: list[dict[str, Any]], wide: bool, full: bool) -> Rows:
    table = Rows()
    table.add_column("artifact", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    metered = any(said["power"] != units.NOT_MEASURED for said in rows)
    has_beside = any(said["beside"] for said in rows)  # two jobs measure fp32 twice: both figures are of one
    keys = (
        "latency",
        *(("beside",) if has_beside else ()),
        "latency_ratio",
        *(("energy", "power") if metered else ()),
        "size",
        "drop",
    )
    for key in keys:
        table.add_column(COLUMNS[key], justify="right")
    if wide:
        table.add_column("reason")
    for said in rows:
        titled = Text(("▸ " if said["chosen"] else "  ") + said["name"], style="bold" if said["chosen"] else "")
        cells = [_short(said[key]) for key in keys]
        judged = Text(said["verdict"], style=COLOURS.get(said["verdict"], ""))
        table.add_row(titled, judged, *map(Text, cells), *([_reason(said, full)] if wide else []))
    return table


def _marks(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Each mark once, with the artifacts whose figures bear it."""
    found: dict[str, list[str]] = {}
    for said in rows:
        for mark in said["marks"]:
            found.setdefault(mark, []).append(said["name"])
    return found


def _reason(said: dict[str, Any], full: bool) -> Text:
    return Text(said["reason"]).append(f"\n{said['detail']}" if full and said["detail"] else "", "dim")


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


def worst(final: dict[str, Any], metric: str, reference: str = "source model") -> list[tuple[Text, Text]]:
    """The worst classes and groups and the most frequent confusions, a line each; reference: what it is called."""
    lines = []
    for given in breakdown.tables(final, metric):
        scored = [said for said in given["rows"] if not said["invalid"]][:SHOWN]
        said = [
            f"{units.text(row['label'], SHORT)}: {row['score']} ({reference} {row['reference']}, n={row['n']})"
            for row in scored
        ]
        few = f"{given['few']} with fewer than 20 samples" if given["few"] else ""
        few = few if scored else f"none: each of {given['few']} has fewer than 20 samples"
        lines.append((Text(f"{given['unit']}, worst"), Text("; ".join(filter(None, (*said, few))))))
    wrong = breakdown.confusions(final)[:SHOWN]
    said = [
        f"{units.text(one['label'], SHORT)} for {units.text(one['decided'], SHORT)}: {one['n']} "
        f"({reference} {one['reference']})"
        for one in wrong
    ]
    return lines + ([(Text("mistaken"), Text("; ".join(said)))] if said else [])


def _tables(final: dict[str, Any], metric: str, console: Console, own: dict[str, Any]) -> None:
    """The score by class and by group, and the confusions."""
    for given in breakdown.tables(final, metric):
        rows = given["rows"][:SHOWN_IN_FULL] if given["scored"] else []
        cells = [(row["label"], row["n"], row["score"], row["reference"], row["drop"]) for row in rows]
        _print_table(
            console, (f"{given['unit']}, worst first", "n", "on the board", "source model", "drop"), cells, own
        )
        if not rows:
            console.print(Text(f"\nby {given['unit']}: each of {given['few']} has fewer than 20 samples"))
        elif hidden := given["scored"] + given["few"] - len(rows):
            few = f", {given['few']} with fewer than 20 samples" if given["few"] else ""
            console.print(Text(f"  {hidden} more in the page or in run.json{few}"))
    wrong = [(one["label"], one["decided"], one["n"], one["reference"]) for one in breakdown.confusions(final)]
    _print_table(console, ("class", "taken for", "on the board", "by the source model"), wrong, own)


def _print_table(
    console: Console, titles: tuple[str, ...], cells: Sequence[tuple[str, ...]], own: dict[str, Any]
) -> None:
    if not cells:
        return
    table = Rows()
    for number, name in enumerate(titles):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(board.marked(table, own))


def _grid(lines: list[tuple[Text, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column()
    for line in lines:
        grid.add_row(*line)
    return grid
