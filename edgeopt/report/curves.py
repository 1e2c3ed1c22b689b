"""How a sustained run went: latency, temperature and clock as lines of bars."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from . import units

BARS = "▁▂▃▄▅▆▇█"
TITLE_WIDTH, RANGE_WIDTH = 14, 26
SHOWN = (("p50_s", "latency p50", "s"), ("temperature_c", "temperature", "c"), ("frequency_hz", "clock", "hz"))


def render(result: dict[str, Any], console: Console) -> None:
    """Each curve over the whole run, with its least and greatest value; what the board does not tell is said."""
    found = result["sustained"]
    minutes = found["curve"]["seconds"][-1] / 60 if found["curve"]["seconds"] else 0.0
    start, end = (units.figure(found[part]["p50_s"], "s") for part in ("start", "end"))
    name = units.text(result["name"], 40)
    console.print(Text(f"{name} over {minutes:.1f} min: p50 {start} at the start, {end} at the end"))
    width = max(10, console.width - TITLE_WIDTH - RANGE_WIDTH)
    for key, title, unit in SHOWN:
        values = found["curve"][key]
        known = [value for value in values if value is not None]
        told = f"{units.quantity(min(known), unit)} to {units.quantity(max(known), unit)}" if known else "not told here"
        console.print(Text(f"  {title:<{TITLE_WIDTH - 2}}{line(values, width)} {told}"), no_wrap=True)


def line(values: list[float | None], width: int) -> str:
    """Bars from the least to the greatest value, at most `width`; a blank where nothing is known."""
    count = min(width, len(values))
    columns = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [_mean([value for value in column if value is not None]) for column in columns]
    known = [value for value in means if value is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if mean is None else BARS[round((mean - low) / span * (len(BARS) - 1))] for mean in means)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
