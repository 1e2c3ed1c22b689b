"""What page and terminal say of the final score by class and by group, of confusions, and of how an artifact ran."""

from __future__ import annotations

from typing import Any

from . import placement, units

NAME_LIMIT = 40
MOST_ROWS = 60
SHOWN_WIDTHS = 6
MOST_CONFUSIONS = 10
WIDEST_MATRIX = 20


def tables(final: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """By class and by group, as far as the run has them: {title, unit, rows, more, few, scored}.

    rows: the worst first, then those with too few samples to say anything; `more` of them were left out. few, scored:
    how many have too few samples, and how many have enough.
    """
    found = []
    for key, unit in (("per_class", "class"), ("per_group", "group")):
        given = [row for row in final.get(key) or [] if isinstance(row, dict)]
        if given:
            found.append(_table(given, unit, metric))
    return found


def _table(given: list[dict[str, Any]], unit: str, metric: str) -> dict[str, Any]:
    scored = sorted((row for row in given if units.known(row.get("value"))), key=lambda row: float(row["value"]))
    few = sorted((row for row in given if not units.known(row.get("value"))), key=lambda row: -int(row.get("n") or 0))
    rows = [_row(row, metric) for row in (scored + few)[:MOST_ROWS]]
    lowest = scored[0]["value"] if len(scored) > 1 else None
    for said, row in zip(rows, scored, strict=False):
        said["worst"] = row["value"] == lowest and row["value"] < scored[-1]["value"]
    more = max(0, len(given) - MOST_ROWS)
    title = f"By {unit}"
    return {"title": title, "unit": unit, "rows": rows, "more": more, "few": len(few), "scored": len(scored)}


def _row(row: dict[str, Any], metric: str) -> dict[str, Any]:
    invalid = row.get("invalid")
    return {
        "label": units.text(row.get("label"), NAME_LIMIT),
        "n": units.count(row.get("n")),
        "score": units.score(row.get("value"), metric) if not invalid else "",
        "reference": units.score(row.get("reference"), metric) if not invalid else "",
        "drop": units.drop(row.get("drop"), metric) if not invalid else "",
        "invalid": units.text(invalid) if invalid else None,
        "worst": False,
    }


def confusions(final: dict[str, Any]) -> list[dict[str, str]]:
    """The most frequent wrong decisions, each made more than once: {label, decided, n: "12 of 199", reference}."""
    pairs = _pairs(final)
    totals: dict[Any, int] = {}
    for pair in pairs:
        totals[pair["label"]] = totals.get(pair["label"], 0) + int(pair["n"])
    complete = not (final.get("confusion") or {}).get("left_out")
    wrong = [pair for pair in pairs if pair["label"] != pair["decided"] and pair["n"] > 1]
    return [
        {
            "label": units.text(pair["label"], NAME_LIMIT),
            "decided": units.text(pair["decided"], NAME_LIMIT),
            "n": units.count(pair["n"]) + (f" of {units.count(totals[pair['label']])}" if complete else ""),
            "reference": units.count(pair["reference"]),
        }
        for pair in sorted(wrong, key=lambda pair: -pair["n"])[:MOST_CONFUSIONS]
    ]


def matrix(final: dict[str, Any]) -> dict[str, Any] | None:
    """Counts by true class (rows) and decided class (columns): {labels, rows: [{label, cells: [{n, share, own}]}]}.

    share: of the row's samples, 0 to 10, for shading. None without decisions, and with more than 20 classes.
    """
    pairs = _pairs(final)
    labels = list(dict.fromkeys(_in_order(final, pairs)))
    if not 2 <= len(labels) <= WIDEST_MATRIX or (final.get("confusion") or {}).get("left_out"):
        return None
    counts = {(pair["label"], pair["decided"]): int(pair["n"]) for pair in pairs}
    rows = []
    for label in labels:
        total = sum(counts.get((label, decided), 0) for decided in labels)
        cells = [
            {"n": n, "share": round(10 * n / total) if total else 0, "own": label == decided}
            for decided in labels
            for n in [counts.get((label, decided), 0)]
        ]
        rows.append({"label": units.text(label, NAME_LIMIT), "cells": cells})
    return {"labels": [units.text(label, NAME_LIMIT) for label in labels], "rows": rows}


def _pairs(final: dict[str, Any]) -> list[dict[str, Any]]:
    given = final.get("confusion")
    return [pair for pair in (given or {}).get("pairs") or [] if isinstance(pair, dict)]


def _in_order(final: dict[str, Any], pairs: list[dict[str, Any]]) -> list[Any]:
    """The classes as `per_class` lists them, then those that were only decided."""
    listed = [row["label"] for row in final.get("per_class") or []]
    others = {pair["decided"] for pair in pairs} | {pair["label"] for pair in pairs}
    return listed + sorted(others - set(listed), key=str)


def detail(trial: dict[str, Any]) -> dict[str, Any]:
    """How a trial's artifact was made and run: threads, precision, macs, and parity, a line for each stage."""
    executed, artifact = trial.get("executed") or {}, trial.get("artifact") or {}
    notes = trial.get("notes") or {}
    threads = executed.get("threads") or artifact.get("threads")
    parity, cap = notes.get("parity"), artifact.get("frequency_max_hz")
    return {
        "name": units.text(trial.get("name") or "?", NAME_LIMIT),
        "threads": units.count(threads) if threads else "not told",
        "clock": f", clock at most {units.quantity(cap, 'hz')}" if cap else "",
        "precision": _precision(executed, artifact.get("options") or {}),
        "cut": cut_words(notes.get("compress")),
        "macs": _macs(executed.get("macs"), notes.get("int8_mac_share")),
        "parity": [_stage(stage) for stage in parity or [] if isinstance(stage, dict)],
        "places": placement.places(executed),
        "npu": placement.npu_words(notes.get("npu")),
        "extra": _counts(notes.get("transposes_and_pads")),
        "files": ", ".join(units.text(name, NAME_LIMIT) for name in artifact.get("files") or {}) or "not told",
    }


def detail_words(trial: dict[str, Any]) -> str:
    """The same in one line for the terminal; empty where nothing is known."""
    if not trial.get("executed"):
        return ""
    said = detail(trial)
    threads = f"{said['threads']} thread{'' if said['threads'] == '1' else 's'}{said['clock']}"
    precision = f"float parts in {said['precision']}" if said["precision"] != "not told" else ""
    macs = f"MACs {said['macs']}" if said["macs"] != "not told" else ""
    parity = "; ".join(f"{stage['stage']} {stage['short']}" for stage in said["parity"])
    places = f"on {said['places']}" if said["places"] != "not told" else ""
    ran = ", ".join(filter(None, (threads, precision, macs, places)))
    return "; ".join(filter(None, (said["cut"], ran, said["npu"], f"against the source: {parity}" if parity else "")))


def cut_words(compress: Any) -> str:
    """What pruning removed: "1,234,000 of 4,650,000 parameters and 120 of 390 million MACs left; conv1 32 → 16, …"."""
    if not isinstance(compress, dict):
        return ""
    said = []
    for key, what in (("parameters", "parameters"), ("macs", "MACs of the source")):
        pair = compress.get(key)
        if isinstance(pair, list) and len(pair) == 2 and all(map(units.known, pair)) and pair[0]:
            said.append(
                f"{units.count(pair[1])} of {units.count(pair[0])} {what} left ({units.share(pair[1] / pair[0])})"
            )
    widths = compress.get("widths")
    pairs = [
        f"{units.text(name, NAME_LIMIT)} {before} → {after}"
        for name, (before, after) in (widths if isinstance(widths, dict) else {}).items()
        if before != after
    ]
    more = f" and {len(pairs) - SHOWN_WIDTHS} more layers" if len(pairs) > SHOWN_WIDTHS else ""
    return "; ".join(filter(None, (", ".join(said), ", ".join(pairs[:SHOWN_WIDTHS]) + more)))


def _precision(executed: dict[str, Any], options: dict[str, Any]) -> str:
    found, asked = executed.get("precision"), options.get("precision")
    if found is None:
        return f"not told, {units.text(asked, 20)} asked for" if asked else "not told"
    return units.text(found, 20) + (
        f", though {units.text(asked, 20)} was asked for" if asked not in (None, found) else ""
    )


def _macs(executed: Any, in_file: Any) -> str:
    """Shares by type, the greatest first, as counted in the graph that the runtime executed."""
    if isinstance(executed, dict) and (total := sum(executed.values())):
        ordered = sorted(executed.items(), key=lambda item: -item[1])
        return ", ".join(f"{units.share(count / total)} {units.text(kind, 20)}" for kind, count in ordered)
    if units.known(in_file):
        return f"{units.share(in_file)} int8 in the file; what ran was not told"
    return "not told"


def _stage(stage: dict[str, Any]) -> dict[str, str]:
    error, decibels, share = stage.get("max_abs_error"), stage.get("sqnr_db"), stage.get("equal_share")
    largest = f"largest error {error:.2g}" if units.known(error) else "error not measured"
    ratio = f"{units.number(decibels, 1)} dB" if units.known(decibels) else "equal" if error == 0 else "no ratio"
    if units.known(share) and share < 1:
        ratio = f"{units.share(share)} of whole numbers equal" + (f", {ratio}" if units.known(decibels) else "")
    samples = f"n={units.count(stage['samples'])}" if isinstance(stage.get("samples"), int) else ""
    return {
        "stage": units.text(stage.get("stage") or "?", 60),
        "short": ratio,
        "said": ", ".join(filter(None, (ratio, largest, samples))),
    }


def _counts(given: Any) -> str:
    found = given.items() if isinstance(given, dict) else ()
    return ", ".join(f"{units.text(name, 30)} {units.text(count, 20)}" for name, count in found)
