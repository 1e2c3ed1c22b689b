"""Where the time of a run went, and what would shorten it."""

from __future__ import annotations

from typing import Any

from edgeopt.report import units

SHOWN = 3
WORTH_SAYING = 0.1  # share of the whole
# By how a stage's name begins.
SHORTER = {
    "pruned": "fewer [prune] epochs or ratios",
    "measured": "[ladder] mode quick or rapid, fewer rungs",
    "energy": "fewer [energy] windows",
    "lowered": "fewer [splits] ranges",
    "reference": "smaller splits",
    "final outputs": "a smaller final split",
    "selection outputs": "a smaller selection split",
    "decoded": "fewer samples in the splits",
}


def line(run: dict[str, Any]) -> str:
    """As "12 min in all; longest: pruned 8 min (shorter with fewer [prune] epochs or ratios)", each mend once; empty
    where nothing is told."""
    found = _seconds(run)
    total = found.get("total")
    if not units.known(total):
        return ""
    stages = {str(name): seconds for name, seconds in found["stages"].items() if units.known(seconds)}
    longest = sorted(stages.items(), key=lambda item: -item[1])[:SHOWN]
    told = [(name, seconds) for name, seconds in longest if seconds >= WORTH_SAYING * total]
    said = [
        _stage(name, seconds, _shorter(name) not in map(_shorter, dict(told[n + 1 :])))
        for n, (name, seconds) in enumerate(told)
    ]
    stored = len(found.get("stored") or [])
    kept = f"; {units.count(stored)} steps were there from earlier runs" if stored else ""
    return f"{units.duration(total)} in all{'; longest: ' if said else ''}{', '.join(said)}{kept}"


def rows(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(stage, how long it took, what would shorten it), the longest first."""
    known = [(str(name), seconds) for name, seconds in _seconds(run)["stages"].items() if units.known(seconds)]
    return [
        (units.text(name, 60), units.duration(seconds), _shorter(name))
        for name, seconds in sorted(known, key=lambda one: -one[1])
    ]


def _seconds(run: dict[str, Any]) -> dict[str, Any]:
    found = run.get("seconds")
    found = found if isinstance(found, dict) else {}
    stages = found.get("stages")
    return {**found, "stages": stages if isinstance(stages, dict) else {}}


def _stage(name: str, seconds: float, mended: bool) -> str:
    shorter = _shorter(name) if mended else ""
    return f"{units.text(name, 60)} {units.duration(seconds)}" + (f" (shorter with {shorter})" if shorter else "")


def _shorter(name: str) -> str:
    return next((mend for begins, mend in SHORTER.items() if name.startswith(begins)), "")
