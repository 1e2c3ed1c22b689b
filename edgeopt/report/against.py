"""Two runs side by side: what differs, and never which is better, since each measured against a baseline of its own."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from . import board, units
from .rows import Rows
from .terminal import COLOURS, NAME_LIMIT, chosen_trial, part, row

CAUTION = (
    "No verdict compares these two runs: each measured its own baseline, at another time and perhaps on another board. "
    "Ratios are to the run's own fp32. To know which artifact is faster, measure both in one job: edgeopt compare"
)
OTHER_DATA = ". The two had {}: their scores are of different things"
OTHER_SOURCE = (
    ". The source model itself scored otherwise in the two, so it or the data were others: their scores are of "
    "different things"
)
# What makes figures differ before any artifact does.
OF_THE_BOARD = (
    *("model", "serial", "machine_id", "machine", "userland", "cpu_model", "cores", "cores_allowed", "memory_bytes"),
    *("system", "kernel", "governor", "python", "address"),
)
OF_THE_JUDGE = ("confidence_threshold", "floor_drop")  # of [task]: what no score depends on
FIGURES = ("verdict", "latency_p50_s", "size_bytes", "peak_memory_bytes", "score", "drop", "ratios", "file_sha256")


def differences(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """What differs between two run.json documents, in plain values; `names` tells where they were found.

    {"runs": [two heads], "plan", "board": [{key, first, second}], "candidates": [{name, first, second}], "final",
    "per_class", "per_group": as `slices` gives them, "caution"}. A candidate that one run lacks is None there.
    """
    return {
        "runs": [_head(run, name) for run, name in zip((first, second), names, strict=True)],
        "plan": _changed(_plan(first), _plan(second)),
        "board": _changed(_board(first), _board(second)),
        "candidates": _candidates(first, second),
        "final": {key: [part(run, "final").get(key) for run in (first, second)] for key in _FINAL},
        **{key: slices(first, second, key) for key in ("per_class", "per_group")},
        "caution": CAUTION + _other_scores(first, second),
    }


_FINAL = ("metric", "value", "interval", "reference", "drop", "drop_interval", "n", "verdict")


def slices(first: dict[str, Any], second: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """What both final scores have of "per_class" or "per_group": {label, first, second, difference}.

    The greatest difference first. first, second: the runs' own rows; difference: the second's score less the first's,
    None where either has too few samples. Nothing where the two were scored by different metrics.
    """
    finals = [part(run, "final") for run in (first, second)]
    if len({final.get("metric") for final in finals}) > 1:
        return []
    own, other = ({row["label"]: row for row in final.get(key) or [] if isinstance(row, dict)} for final in finals)
    found = []
    for label in (label for label in own if label in other):
        value, others = own[label].get("value"), other[label].get("value")
        difference = others - value if units.known(value) and units.known(others) else None
        found.append({"label": label, "first": own[label], "second": other[label], "difference": difference})
    return sorted(found, key=lambda line: -1.0 if line["difference"] is None else abs(line["difference"]), reverse=True)


def _head(run: dict[str, Any], name: str) -> dict[str, Any]:
    kept = ("name", "created", "edgeopt", "verdict", "chosen")
    return {"run": name, **{key: run.get(key) for key in kept}, "runtime": part(run, "plan").get("runtime")}


def _board(run: dict[str, Any]) -> dict[str, Any]:
    told = part(run, "board")
    runtimes = {f"runtimes.{name}": found for name, found in part(told, "runtimes").items() if found}
    return {key: told.get(key) for key in OF_THE_BOARD} | {"measured": board.mark(told)} | runtimes


def _plan(run: dict[str, Any]) -> dict[str, Any]:
    """The plan by dotted key, without what its run file says a second time."""
    plan = part(run, "plan")
    twice = ("name", "description", *plan)
    found = _flat(plan)
    return {key: value for key, value in found.items() if "." not in key or key.rsplit(".", 1)[-1] not in twice}


def _other_scores(first: dict[str, Any], second: dict[str, Any]) -> str:
    own, its = _given(first), _given(second)
    graphs = [part(part(run, "manifest"), "lineage").get("source_graph") for run in (first, second)]
    if all(graphs):  # the model itself, whatever it is called
        own["another model"], its["another model"] = graphs
    others = [what for what in own if own[what] != its[what]]
    if others:
        return OTHER_DATA.format(" and ".join(others))
    # Data may change under an unchanged name; what the source model made of them tells.
    pairs = zip(_references(first), _references(second), strict=True)
    return OTHER_SOURCE if any(None not in pair and pair[0] != pair[1] for pair in pairs) else ""


def _references(run: dict[str, Any]) -> list[Any]:
    """The source model's own score on the selection and on the final data."""
    scores = (part(trial, "score").get("reference") for trial in run.get("trials") or [] if trial)
    return [next(filter(units.known, scores), None), part(run, "final").get("reference")]


def _given(run: dict[str, Any]) -> dict[str, Any]:
    """What decides which scores a run can have, by what is said where it differs."""
    run_file = part(part(run, "plan"), "run_file")
    data = {key: value for key, value in part(run_file, "task").items() if key not in OF_THE_JUDGE}
    return {"another model": run_file.get("model"), "other data": data, "other splits": part(run, "plan").get("splits")}


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


def trials_by_name(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[dict[str, Any] | None]]:
    """Name of a candidate -> its trial in either run, None where it was not tried."""
    own, other = ({t["name"]: t for t in run.get("trials") or [] if t and t.get("name")} for run in (first, second))
    return {name: [own.get(name), other.get(name)] for name in {**own, **other}}


def _candidates(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, trials in trials_by_name(first, second).items():
        sides = [_figures(trial) if trial else None for trial in trials]
        found.append({"name": name, "first": sides[0], "second": sides[1]})
    return found


def _figures(trial: dict[str, Any]) -> dict[str, Any]:
    score, artifact = part(trial, "score"), part(trial, "artifact")
    ratios = {key: _valid(part(part(trial, "ratios"), key)) for key in part(trial, "ratios")}
    found = (
        trial.get("verdict"),
        _valid(part(part(trial, "latency"), "p50_s")),
        artifact.get("size_bytes"),
        part(trial, "memory").get("above_runtime_bytes"),
        score.get("value"),
        score.get("drop"),
        ratios,
        artifact.get("sha256"),
    )
    return dict(zip(FIGURES, found, strict=True))


def _valid(figure: dict[str, Any]) -> Any:
    return None if figure.get("invalid") else figure.get("value")


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
    marks = stand_ins(first, second)
    for said in marks:
        console.print(Text(f"marked: measured {said}", "yellow"))
    console.print(_candidate_table(first, second))
    for line in _marks(first, second):
        console.print(Text(line, "yellow"))
    console.print(_final_table(first, second))
    for said in marks:
        console.print(Text(f"marked: measured {said}", "yellow"))


def stand_ins(*runs: dict[str, Any]) -> list[str]:
    """ "on a stand-in (…) for …: run 1", of each run that was measured on another board than its profile's."""
    marks = [board.mark(part(run, "board")) for run in runs]
    return [f"{said}: run {number}" for number, said in enumerate(marks, start=1) if said]


def _print_changed(title: str, changed: list[dict[str, Any]], console: Console) -> None:
    if not changed:
        console.print(Text(f"\nthe {title} is the same"))
        return
    table = Rows()
    for head in (f"other in the {title}", "run 1", "run 2"):
        table.add_column(head)
    for line in changed:
        table.add_row(*map(Text, changed_words(line)))
    console.print(table)


def changed_words(line: dict[str, Any]) -> tuple[str, str, str]:
    """A line of `differences`' board or plan: key, run 1, run 2; long lists are cut."""
    key = line["key"].rsplit(".", 1)[-1]
    first, second = (
        "absent" if line[side] is None else units.text(units.by_key(key, line[side])) for side in ("first", "second")
    )
    return units.text(line["key"], 60), first, second


def _candidate_table(first: dict[str, Any], second: dict[str, Any]) -> Rows:
    table = Rows()
    table.add_column("candidate", no_wrap=True)
    table.add_column("run")
    table.add_column("verdict", no_wrap=True)
    for name in ("× own fp32", "size", "score", "drop"):
        table.add_column(name, justify="right")
    table.add_column("artifact")
    for name, trials in trials_by_name(first, second).items():
        same = same_words(trials)
        for number, (trial, run) in enumerate(zip(trials, (first, second), strict=True), start=1):
            title = units.text(name, NAME_LIMIT) if number == 1 else ""
            table.add_row(*_cells(title, number, trial, run, same if number == 2 else ""))
    return table


def same_words(trials: list[dict[str, Any] | None]) -> str:
    """Whether a candidate's artifact is the same file in both runs; empty where that is not known."""
    hashes = {part(trial or {}, "artifact").get("sha256") for trial in trials}
    return "" if None in hashes else "the same bytes" if len(hashes) == 1 else "other bytes"


def _marks(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    found = []
    for number, run in enumerate((first, second), start=1):
        for trial in filter(None, run.get("trials") or []):
            said = "; ".join(row(trial, False, "")["marks"])
            found += [f"marked: run {number} {units.text(trial.get('name'), NAME_LIMIT)}: {said}"] if said else []
    return found


def _cells(title: str, number: int, trial: dict[str, Any] | None, run: dict[str, Any], same: str) -> list[Text]:
    if trial is None:
        return [Text(cell) for cell in (title, str(number), "not tried", "", "", "", "", "")]
    said = row(trial, False, str(part(run, "plan").get("metric") or "score"))
    chosen = " (chosen)" if trial is chosen_trial(run) else ""
    figures = [said[key].partition(" (")[0] for key in ("latency_ratio", "size", "score", "drop")]
    verdict = Text(said["verdict"] + chosen, COLOURS.get(said["verdict"], ""))
    return [Text(title), Text(str(number)), verdict, *map(Text, figures), Text(same)]


def _final_table(first: dict[str, Any], second: dict[str, Any]) -> Rows:
    table = Rows()
    for head in ("final", "score on the board", "source model", "drop", "n", "verdict"):
        table.add_column(head)
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
