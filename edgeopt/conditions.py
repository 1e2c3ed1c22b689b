"""What the board was like while it was measured: from the agent's readings (edgeopt_agent.watch) to marks that a reader
must see. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BACKGROUND_CORES = 0.25  # used by other programs between two looks: from here on it is told
LOUD_CORES, NAMED = 0.1, 8  # who is named
CAP_TOLERANCE = 0.02
Reading = Mapping[str, Any]


def summary(series: Sequence[Reading]) -> dict[str, Any]:
    """Ranges [least, greatest] over the readings (load: [before, after]), and the readings themselves."""
    return {
        "load_1min": [round(reading["load_1min"], 2) for reading in (series[0], series[-1])],
        "memory_available_bytes": _range(reading["memory_available_bytes"] for reading in series),
        "temperature_c": _range(reading["temperature_c"] for reading in series),
        "frequency_hz": _range(clock for reading in series for clock in reading["frequency_hz"] or ()),
        "others_cores": _range(reading["others"]["cores"] for reading in series if reading["others"]),
        "governor": series[0]["power_mode"]["governor"],
        "power_mode": series[0]["power_mode"],
        "throttled": True if slowed(series) else False if _tells(series[0]) else None,
        "series": list(series),
    }


def slowed(series: Sequence[Reading]) -> list[str]:
    """Why the board was slower than it can be: throttled, too little voltage, capped. In words, each once."""
    found: list[str] = []
    words = {
        "undervoltage": "the board had too little voltage",
        "frequency_capped": "the firmware capped the frequency",
        "throttled": "the board throttled",
        "soft_limit": "the board throttled (soft temperature limit)",
    }
    for reading in series:
        found += [words[name] for name, there in (reading["throttle"] or {}).items() if there and name in words]
        found += [f"the board throttled (cooling device {device})" for device in reading["cooling"] or ()]
    first, last = series[0], series[-1]
    if not found and (last["throttle"] or {}).get("happened") and not (first["throttle"] or {}).get("happened"):
        found.append("the board throttled or had too little voltage between two readings")
    if (more := (last["throttle_count"] or 0) - (first["throttle_count"] or 0)) > 0:
        found.append(f"the board throttled ({more} times by the processor's own count)")
    caps = [mode for reading in series if (mode := reading["power_mode"]["frequency_max_hz"])]
    for own in set(zip(*caps, strict=False)):  # each CPU's, over time
        if min(own) < max(own) * (1 - CAP_TOLERANCE):
            found.append(f"the frequency cap changed between {max(own) / 1e6:.0f} and {min(own) / 1e6:.0f} MHz")
    return list(dict.fromkeys(found))


def background(series: Sequence[Reading]) -> list[str]:
    """Which other programs used the board, in words; empty: none did. Cores are those of the busiest stretch between
    two readings, of all and of each."""
    busy = [reading["others"] for reading in series if reading["others"]]
    cores = max((others["cores"] for others in busy), default=0.0)
    if cores < BACKGROUND_CORES:
        return []
    each: dict[tuple[str, int], float] = {}
    for one in (one for others in busy for one in others["busiest"] if one["cores"] >= LOUD_CORES):
        key = one["name"], one["pid"]
        each[key] = max(each.get(key, 0.0), one["cores"])
    loudest = sorted(each, key=lambda key: -each[key])[:NAMED]
    named = ", ".join(f"{name} (process {pid}, {each[name, pid]:.2f})" for name, pid in loudest)
    return [f"other programs used up to {cores:.2f} cores meanwhile: {named or 'many small ones'}"]


def changed(series: Sequence[Reading]) -> list[str]:
    """Settings of the board that somebody changed during the run, other than the frequency cap."""
    names = [name for name, value in series[0]["power_mode"].items() if isinstance(value, str | None)]
    return _gone(series) + [
        f"{name.replace('_', ' ')} changed during the run: {', '.join(values)}"
        for name in names
        if len(values := list(dict.fromkeys(str(reading["power_mode"].get(name)) for reading in series))) > 1
    ]


def _gone(series: Sequence[Reading]) -> list[str]:
    """Processors that the run lost, in words."""
    seen: set[int] = set()
    lost: set[int] = set()
    for reading in series:
        now = set(reading.get("cpus") or seen)
        lost |= seen - now
        seen |= now
    if not lost:
        return []
    return [f"processor {', '.join(map(str, sorted(lost)))} went away during the run (switched off, or taken from it)"]


def _tells(reading: Reading) -> bool:
    """Whether this board tells of throttling at all."""
    told = reading["throttle"], reading["throttle_count"], reading["cooling"]
    return any(one is not None for one in told)


def _range(values: Iterable[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None
