"""One self-contained page from a run: opens offline, makes no request, and shows hostile text as text."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from edgeopt import disk
from edgeopt.cost import Prices, per_1000_runs
from edgeopt.report import accounts, board, breakdown, latency, timing, units
from edgeopt.report.terminal import (
    NAME_LIMIT,
    STATES,
    budgeted,
    budgeted_value,
    chosen_trial,
    demands,
    has_energy,
    near,
    part,
    row,
)


def write(run: dict[str, Any], run_dir: Path) -> Path:
    """Make `run_dir/report.html` from run.json's content and the samples that lie in `run_dir`; gives its path."""
    return disk.write(run_dir / "report.html", render(run, run_dir))


def render(run: dict[str, Any], run_dir: Path) -> str:
    """The page as text. Fields of the run may be null or absent; missing samples leave a curve out and say so."""
    return page("page.html.j2", view(run, run_dir))


def page(template: str, shown: dict[str, Any]) -> str:
    """A page on base.html.j2, as text. shown: what the template names, and `charts`, the data of its plots."""
    here = resources.files("edgeopt.report")
    chart = (here / "vendor" / "chart.umd.min.js").read_text(encoding="utf-8").partition("//# sourceMappingURL")[0]
    style = (here / "page.css").read_text(encoding="utf-8")
    found: str = _templates().get_template(template).render(shown, chart=chart, style=style)
    return found


@functools.cache
def _templates() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeopt.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=True)
    return environment


def view(run: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """What the template shows: text and numbers ready to print, nothing left to decide."""
    plan, trials = part(run, "plan"), [trial for trial in run.get("trials") or [] if trial]
    metric = str(plan.get("metric") or "score")
    chosen = chosen_trial(run)
    pareto = _pareto(trials, plan, metric, chosen)
    curves = latency.curves(trials, plan, run_dir, chosen)
    rows, percentiles = latency.table(trials)
    apart = [*latency.BESIDE.values(), *latency.ENERGY]
    beside = [name for name in apart if any(line["beside"][name] != units.NOT_MEASURED for line in rows)]
    return {
        "name": units.text(run.get("name") or "run", 80),
        "created": units.when(run.get("created") or "at an unknown time"),
        "version": units.text(run.get("edgeopt") or "?", 20),
        "verdict": run.get("verdict") if run.get("verdict") in STATES else "undecided",
        "sentence": units.text(run.get("sentence") or "No verdict was written.", 600),
        "board_name": board.described(part(run, "board")),
        "stand_in": board.mark(part(run, "board")),
        "metered": has_energy(trials),
        "tiles": tiles(run, chosen, metric),
        "demands": demands(run, chosen, metric),
        "notes": [units.text(note, 600) for note in run.get("notes") or []],
        "stop": units.text(run.get("stop") or "not said", 600),
        "rows": [row(trial, trial is chosen, metric) for trial in trials],
        "details": [breakdown.detail(trial) for trial in trials if trial.get("artifact")],
        "metric": units.text(metric, 40),
        "pareto": pareto,
        "curves": curves,
        "charts": {"pareto": pareto, "curves": curves},
        "latency": rows,
        "beside": beside,
        "unmeasured": [name for name in (*latency.BESIDE.values(), "energy") if name not in beside],
        "percentiles": percentiles,
        "timing": timing.rows(run),
        "took": timing.line(run),
        "near": near(run, metric),
        "final": _final(run, metric),
        "board": _pairs(board.pairs(part(run, "board"))),
        "conditions": [_conditions(trial) for trial in trials],
        "plan": _plan(plan, metric),
        "profile": _pairs(part(plan, "profile")),
        "bundle": _pairs(part(run, "bundle")),
        "manifest": run.get("manifest"),
    }


def tiles(run: dict[str, Any], chosen: dict[str, Any] | None, metric: str) -> list[dict[str, str]]:
    """The figures that matter of the chosen artifact, the energy where it was measured: label, value, note."""
    if chosen is None:
        return []
    ratios, final = part(chosen, "ratios"), part(run, "final")

    def tile(key: str, label: str, better: str, worse: str) -> dict[str, str]:
        entry = part(ratios, key)
        against = units.text(entry.get("against") or "fp32", NAME_LIMIT)
        said = units.gain(entry, better, worse)
        note = f"{said} than {against}" if better in said or worse in said else f"ratio to {against}: {said}"
        return {"label": label, "value": budgeted(chosen, key, interval=False), "note": note}

    floor = units.drop(part(run, "plan").get("floor_drop"), metric)
    return [
        tile("latency_p50_s", "Median latency", "faster", "slower"),
        tile("size_bytes", "File size", "smaller", "larger"),
        tile("peak_memory_bytes", "Peak memory", "less", "more"),
        *([tile("energy_j", "Energy of one inference", "less", "more")] if chosen.get("energy") else []),
        {
            "label": "Drop on final data",
            "value": units.drop(final.get("drop"), metric),
            "note": f"{units.drop_interval(final.get('drop_interval'), metric)}, allowed: {floor}",
        },
    ]


def _pareto(
    trials: list[dict[str, Any]], plan: dict[str, Any], metric: str, chosen: dict[str, Any] | None
) -> dict[str, Any]:
    """Points (x: latency ratio to the baseline, y: selection score), lines and edges of the plot."""
    factor, unit = units.score_axis(metric)
    points, left_out = [], []
    for trial in trials:
        score, said = part(trial, "score"), row(trial, trial is chosen, metric)
        found = point(trial, said, score.get("value"), factor)
        if found is None:
            left_out.append(said["name"])
            continue
        tip = [f"latency {said['latency_ratio']}", f"{metric} {said['score']}", said["size"], said["verdict"]]
        points.append(found | {"y_interval": _ends(score.get("interval"), factor), "tip": tip})
    lines = list(_budget_lines(trials, plan))
    floor = _floor(trials, plan)
    return {
        "points": points,
        "left_out": left_out,
        "lines": lines,
        "floor": None if floor is None else {"y": floor * factor, "label": f"floor {units.score(floor, metric)}"},
        "paths": [_front(points)],
        "x_title": "Median latency relative to fp32",
        "x_ticks": None,
        "y_title": f"{units.text(metric, 40)} on selection data{unit}",
        **_edges(points, lines, None if floor is None else floor * factor),
    }


def point(trial: dict[str, Any], said: dict[str, Any], y: Any, factor: float) -> dict[str, Any] | None:
    """A mark at (latency ratio to the baseline, y times factor), or None where either is invalid or not measured.

    said: `terminal.row` of the trial.
    """
    ratio = part(part(trial, "ratios"), "latency_p50_s")
    if not ratio and trial.get("verdict") == "baseline":
        ratio = {"value": 1.0}
    if ratio.get("invalid") or not units.known(ratio.get("value")) or not units.known(y):
        return None
    return {
        "name": said["name"],
        "x": ratio["value"],
        "y": y * factor,
        "x_interval": _ends(ratio.get("interval"), 1.0),
        "y_interval": None,
        "size": budgeted_value(trial, "size_bytes"),
        "look": said["verdict"],
        "chosen": said["chosen"],
    }


def _budget_lines(trials: list[dict[str, Any]], plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    baseline = next((trial for trial in trials if trial.get("verdict") == "baseline"), {})
    for key in ("latency_p50_s", "latency_p95_s"):
        limit, own = part(plan, "budgets").get(key), budgeted_value(baseline, key)
        if units.known(limit) and own:
            yield {"x": limit / own, "label": f"{units.label(key)} ≤ {units.by_key(key, limit)}"}


def _floor(trials: list[dict[str, Any]], plan: dict[str, Any]) -> float | None:
    reference = next((t["score"]["reference"] for t in trials if units.known(part(t, "score").get("reference"))), None)
    allowed = plan.get("floor_drop")
    return reference - allowed if units.known(reference) and units.known(allowed) else None


def _front(points: list[dict[str, Any]]) -> list[list[float]]:
    """Points that no other beats on both axes, from the fastest on."""
    front: list[list[float]] = []
    for point in sorted(points, key=lambda p: (p["x"], -p["y"])):
        if not front or point["y"] > front[-1][1]:
            front.append([point["x"], point["y"]])
    return front


def _edges(points: list[dict[str, Any]], lines: list[dict[str, Any]], floor: float | None) -> dict[str, Any]:
    xs = [x for p in points for x in (p["x"], *(p["x_interval"] or ()))]
    right = max([1.0, *xs])
    # A budget far beyond every point would squeeze them all into one corner.
    right = max([right, *(line["x"] for line in lines if line["x"] < 1.6 * right)])
    ys = [p["y"] for p in points] + ([] if floor is None else [floor])
    reach = max(ys, default=0.0) - min(ys, default=0.0)  # a whisker of few groups may leave the plot, not flatten it
    ends = [end for p in points for end in p["y_interval"] or () if abs(end - p["y"]) <= max(reach, 1e-9)]
    ys += ends
    return {"x_axis": {"min": 0, "max": math.ceil(right * 11.5) / 10}, "y_axis": padded(ys)}


def padded(values: list[float]) -> dict[str, float]:
    """The ends of an axis that leaves some room around all of these."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.08 * (high - low or 1.0)
    return {"min": low - pad, "max": high + pad}


def _final(run: dict[str, Any], metric: str) -> dict[str, Any] | None:
    final = part(run, "final")
    if not final:
        return None
    metric = str(final.get("metric") or metric)
    groups = final.get("groups")
    return {
        "verdict": final.get("verdict") if final.get("verdict") in STATES else "undecided",
        "reason": units.text(final.get("reason") or "no reason was written", 600),
        "bar": _drop_bar(final, part(run, "plan").get("floor_drop"), metric),
        "pairs": [
            ("score", units.score(final.get("value"), metric, final.get("interval"))),
            ("reference score", units.score(final.get("reference"), metric)),
            ("drop", units.drop(final.get("drop"), metric, final.get("drop_interval"))),
            ("samples", units.count(final.get("n")) + (f" in {groups} groups" if groups else "")),
            ("test", units.text(final.get("test") or units.NOT_MEASURED)),
            ("agreement with the reference", units.share(final.get("agreement"))),
            ("worst class", accounts.worst(part(final, "worst_class"), metric)),
            *(
                [("worst group", accounts.worst(part(final, "worst_group"), metric))]
                if final.get("worst_group")
                else []
            ),
            *accounts.errors(final),
            *accounts.review(final),
            *_cost(run),
        ],
        "tables": breakdown.tables(final, metric),
        "confusions": breakdown.confusions(final),
        "matrix": breakdown.matrix(final),
    }


def _cost(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Of the chosen artifact, by the profile's prices, if it has any."""
    prices, chosen = Prices.of(part(part(part(run, "plan"), "profile"), "cost")), chosen_trial(run)
    if not prices.known() or chosen is None:
        return []
    return accounts.cost(per_1000_runs(part(chosen, "latency"), part(chosen, "energy"), prices))


def _drop_bar(final: dict[str, Any], floor: Any, metric: str) -> dict[str, Any] | None:
    """Positions in percent of a line on which the drop, its interval, zero and the floor lie."""
    drop, ends = final.get("drop"), _ends(final.get("drop_interval"), 1.0)
    if not units.known(drop) or not units.known(floor):
        return None
    reach = [0.0, floor, drop, *(ends or ())]
    low, high = min(reach), max(reach)
    pad = 0.12 * (high - low or 1.0)
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        return round(float(100 * (value - low) / (high - low)), 2)

    return {
        "zero": at(0.0),
        "floor": at(floor),
        "floor_label": f"floor: {units.drop(floor, metric)}",
        "drop": at(drop),
        "ends": None if ends is None else [at(ends[0]), at(ends[1])],
        "said": f"Drop {units.drop(drop, metric, ends)}; at most {units.drop(floor, metric)} are allowed.",
    }


APART = ("marks", "series", "power_mode", "shared_cpus")  # of the conditions: shown elsewhere, or only in run.json


def _conditions(trial: dict[str, Any]) -> dict[str, Any]:
    executed, conditions = part(trial, "executed"), part(trial, "conditions")
    operators = part(executed, "ops")
    rest = {key: value for key, value in conditions.items() if key not in APART and value is not None}
    return {
        "name": units.text(trial.get("name") or "?", NAME_LIMIT),
        "threads": units.count(executed.get("threads")),
        "delegates": units.count(executed.get("delegate_nodes")),
        "operators": ", ".join(f"{units.text(k, 40)} {units.text(v, 20)}" for k, v in operators.items()) or "not told",
        "marks": [units.text(mark) for mark in conditions.get("marks") or []],
        "unmarked": "none" if conditions else units.NOT_MEASURED,
        "rest": "; ".join(f"{name} {value}" for name, value in _pairs(rest)) or units.NOT_MEASURED,
    }


# Shown elsewhere, or too long for a page: run.json has it.
HIDDEN = ("profile", "run_file", "floor_drop", "min_gain", "objective")


def _plan(plan: dict[str, Any], metric: str) -> list[tuple[str, str]]:
    shown = {key: value for key, value in plan.items() if key not in HIDDEN}
    objective = plan.get("objective")
    first = [("objective", units.label(objective))] if objective else []
    if units.known(plan.get("floor_drop")):
        first.append((units.label("floor_drop"), units.drop(plan["floor_drop"], metric)))
    if units.known(plan.get("min_gain")):
        first.append((units.label("min_gain"), units.share(plan["min_gain"])))
    return first + _pairs(shown)


def _pairs(given: dict[str, Any]) -> list[tuple[str, str]]:
    return [(units.label(key), units.by_key(str(key), value)) for key, value in given.items()]


def _ends(interval: Any, factor: float) -> list[float] | None:
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(units.known, interval)):
        return None
    return [end * factor for end in interval]


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
