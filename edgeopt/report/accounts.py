"""What page and terminal say of costs, human review and output errors, as (title, words)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..floor import FLOOR_DB, LEAST_EQUAL
from . import units

SHOWN_OUTPUTS = 4
COSTS = (("energy", "energy"), ("hardware", "hardware"), ("total", "together"))


def review(final: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The share of outputs that a person looks at, before and after; nothing where the task has no threshold."""
    found = final.get("review")
    if not isinstance(found, Mapping):
        return []
    before, after = (units.share((found.get(key) or {}).get("value")) for key in ("before", "after"))
    change = units.drop(found.get("difference"), "top1", found.get("difference_interval"))
    threshold = units.share(found.get("threshold"))
    return [
        (
            "for human review",
            f"{before} by the source model, {after} on the board, change {change}; n="
            f"{units.count(found.get('n'))}, below {threshold} confidence",
        )
    ]


def worst(found: Mapping[str, Any], metric: str) -> str:
    """Of stats.worst_class: the class or group of lowest score, or that each has too few samples."""
    if not found:
        return units.NOT_MEASURED
    if found.get("invalid"):
        return f"invalid ({units.text(found['invalid'])})"
    label = units.text(found.get("label"), 40)
    return f"{label}: {units.score(found.get('value'), metric)} (n={units.count(found.get('n'))})"


def errors(final: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Greatest and mean error, and signal to noise, of each output; of the first four on a screen."""
    given = [error for error in final.get("output_error") or [] if isinstance(error, Mapping)]
    said = []
    for number, error in enumerate(given[:SHOWN_OUTPUTS], 1):
        said.append(("output error" if len(given) == 1 else f"error of output {number}", _error(error)))
        said += [("", f"{_channels(group)}: {_error(group)}") for group in _list(error.get("groups"), Mapping)]
    more = len(given) - SHOWN_OUTPUTS
    return said + ([("", f"{more} more outputs in the JSON document")] if more > 0 else [])


def _error(error: Mapping[str, Any]) -> str:
    sqnr, share = error.get("sqnr_db"), error.get("equal_share")
    noise = f"signal to noise {units.number(sqnr, 1)} dB" if units.known(sqnr) else "no difference, or no signal"
    noise = f"{units.share(share)} of values equal" if units.known(share) else noise
    noise += ", below the floor of an answer" if _is_lost(error) else ""
    numbers = [
        f"{value:.2g}" if units.known(value) else units.NOT_MEASURED for value in map(error.get, ("max", "mean"))
    ]
    return f"at most {numbers[0]}, mean {numbers[1]}, {noise}"


def _is_lost(error: Mapping[str, Any]) -> bool:
    sqnr, share = error.get("sqnr_db"), error.get("equal_share")
    return (units.known(sqnr) and sqnr < FLOOR_DB) or (units.known(share) and share < LEAST_EQUAL)


def _list(given: Any, kind: type) -> list[Any]:
    """The first few of a list's items of this kind: run.json is anybody's to edit."""
    return [item for item in given if isinstance(item, kind)][:SHOWN_OUTPUTS] if isinstance(given, list) else []


def _channels(group: Mapping[str, Any]) -> str:
    """Of the keys that fidelity.channels tells; what an edited file lacks is left out."""
    rows = [row for row in _list(group.get("channels"), list) if len(row) == 2]
    told = ", ".join(units.text(row[0] if row[0] == row[1] else f"{row[0]}-{row[1]}", 20) for row in rows)
    return f"channels {told or '?'} of axis {units.text(group.get('axis'), 10)}"


def cost(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """found: `cost.per_1000_runs`."""
    currency = f" {units.text(found['currency'], 10)}" if found.get("currency") else ""
    said = "; ".join(f"{words} {_money(found[key], currency)}" for key, words in COSTS)
    throughput = _money(found["per_throughput"], currency)
    return [
        ("cost of 1,000 runs", f"{said} ({units.text(found['basis'])})"),
        ("hardware for one run a second", throughput),
    ]


def _money(figure: Mapping[str, Any], currency: str) -> str:
    value = figure.get("value")
    if not units.known(value):
        return f"none ({units.text(figure.get('invalid'))})"
    return f"{units.number(value)}{currency}{units.mark(figure)}"
