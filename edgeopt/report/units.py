"""The only place where numbers become text: units, digits, intervals, and the words for what was not measured.

Takes SI values and the JSON forms of run.json; gives plain text without markup, safe for a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from edgeopt import visible

NOT_MEASURED = "not measured"
DIGITS = 3
ROUNDING = 1e-6  # of a score: what sums in another order change
SHARES = frozenset({"top1", "top5", "accuracy", "balanced_accuracy", "f1", "macro_f1", "iou", "miou"})

# Factor, name, and the least value shown in it: milliseconds reach down so that neighbours share one unit.
_SCALES = {
    "s": ((1.0, "s", 1.0), (1e-3, "ms", 1e-4), (1e-6, "µs", 1e-7), (1e-9, "ns", 0.0)),
    "bytes": ((1e9, "GB", 1e9), (1e6, "MB", 1e6), (1e3, "kB", 1e3), (1.0, "B", 0.0)),
    "j": ((1.0, "J", 1.0), (1e-3, "mJ", 1e-4), (1e-6, "µJ", 0.0)),
    "w": ((1.0, "W", 1.0), (1e-3, "mW", 0.0)),
    "hz": ((1e9, "GHz", 1e9), (1e6, "MHz", 1e6), (1e3, "kHz", 1e3), (1.0, "Hz", 0.0)),
    "c": ((1.0, "°C", 0.0),),
}
_NAMES = {
    "cpu_model": "CPU model",
    "others_cores": "cores used by other programs",
    "repeated": "measured again because",
    "latency_p50_s": "median latency",
    "latency_p95_s": "95th-percentile latency",
    "size_bytes": "file size",
    "peak_memory_bytes": "peak memory above the runtime",
    "energy_j": "energy of one inference",
    "power_w": "power at work",
    "floor_drop": "largest drop allowed",
    "min_gain": "least gain worth a rung",
}


def text(value: object, limit: int = 200) -> str:
    """Foreign text for display: control and bidirectional characters replaced, cut at `limit` characters."""
    shown = visible.line(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def number(value: float, decimals: int | None = None) -> str:
    """Three significant digits, or as many decimals as told, with a true minus sign."""
    if decimals is None:
        decimals = _decimals(value)
    shown = f"{value:,.{decimals}f}"
    if float(shown.replace(",", "")) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    """A whole number with thousands marked."""
    return NOT_MEASURED if value is None else f"{value:,}"


def quantity(value: float | None, unit: str, interval: Any = None) -> str:
    """An SI value in the unit that reads best, with its interval in the same unit: "8.31 ms (8.25 … 8.40)".

    unit: "s", "bytes", "j", "w", "hz" or "c".
    """
    if not known(value):
        return NOT_MEASURED
    factor, name = scale(value, unit)
    scaled = value / factor
    decimals = 0 if name == "B" else _decimals(scaled)
    return f"{number(scaled, decimals)} {name}{_range(interval, 1 / factor, decimals)}"


def scale(value: float, unit: str) -> tuple[float, str]:
    """The factor and name of the unit in which this SI value reads best: 0.0083, "s" gives (1e-3, "ms")."""
    if value == 0:
        return _SCALES[unit][0][:2] if unit == "s" else _SCALES[unit][-1][:2]
    rounded = float(f"{abs(value):.{DIGITS - 1}e}")
    return next((factor, name) for factor, name, least in _SCALES[unit] if rounded >= least * (1 - 1e-9))


def figure(given: Any, unit: str) -> str:
    """A Figure (or its JSON form) in words; never a number where it is invalid."""
    fields = _fields(given)
    if fields is None:
        return NOT_MEASURED
    if fields.get("invalid"):
        return f"invalid ({text(fields['invalid'])})"
    return quantity(fields.get("value"), unit, fields.get("interval")) + mark(fields)


def mark(given: Any) -> str:
    """ " (estimated)" or " (simulated)"; nothing for what was measured."""
    how = (_fields(given) or {}).get("how", "measured")
    return "" if how == "measured" else f" ({text(how)})"


def ratio(given: Any) -> str:
    """A ratio to the baseline: "0.46× (0.45 … 0.48)"."""
    fields = _fields(given)
    if fields is None or not known(fields.get("value")):
        return NOT_MEASURED if not (fields and fields.get("invalid")) else f"invalid ({text(fields['invalid'])})"
    if fields.get("invalid"):
        return f"invalid ({text(fields['invalid'])})"
    return f"{number(fields['value'], 2)}×{_range(fields.get('interval'), 1, 2)}{mark(fields)}"


def gain(given: Any, better: str, worse: str) -> str:
    """A ratio to the baseline as people say it: "2.2× faster", "1.3× larger", "the same"."""
    fields = _fields(given)
    if fields is None or fields.get("invalid") or not known(fields.get("value")) or fields["value"] <= 0:
        return ratio(given)
    value = fields["value"]
    if abs(value - 1) < 0.005:
        return "the same" + mark(fields)
    return f"{number(max(value, 1 / value), 2)}× {better if value < 1 else worse}{mark(fields)}"


def score(value: float | None, metric: str, interval: Any = None) -> str:
    """A score in its metric: shares in percent, others as they are."""
    if not known(value):
        return NOT_MEASURED
    if metric in SHARES:
        return f"{number(100 * value, 1)} %{_range(interval, 100, 1)}"
    decimals = _decimals(value)
    return f"{number(value, decimals)}{_range(interval, 1, decimals)}"


def score_axis(metric: str) -> tuple[float, str]:
    """What to multiply scores by for an axis, and the unit for its title."""
    return (100.0, " (%)") if metric in SHARES else (1.0, "")


def drop_axis(metric: str) -> tuple[float, str]:
    """The same for drops."""
    return (100.0, " (points)") if metric in SHARES else (1.0, "")


def drop(value: float | None, metric: str, interval: Any = None, of: float | None = None) -> str:
    """A loss of score: percentage points for shares, else in the metric's own unit. Below zero it is a gain; none is
    what is lost in the rounding of `of`, the score of the source model."""
    if not known(value):
        return NOT_MEASURED
    if metric in SHARES:
        decimals = 2 if 0 < abs(value) < 0.001 else 1
        return f"{number(100 * value, decimals)} points{_range(interval, 100, decimals)}"
    if known(of) and abs(value) <= ROUNDING * abs(of):
        ends = [abs(end) for end in interval or () if known(end)]
        return f"none{_range(interval, 1, _decimals(max(ends, default=0.0)))}"
    decimals = _decimals(value)
    return f"{number(value, decimals)}{_range(interval, 1, decimals)}"


def demand(key: str, value: float | None, metric: str) -> str:
    """What is asked of a budgeted quantity or of the drop, or was reached of it."""
    return drop(value, metric) if key == "floor_drop" else by_key(key, value)


def drop_interval(interval: Any, metric: str) -> str:
    """The interval of a drop alone: "95 % interval −0.9 … 1.9"."""
    said = _range(interval, 100 if metric in SHARES else 1, 1 if metric in SHARES else DIGITS)
    return f"95 % interval{said.replace('(', '').replace(')', '')}" if said else "no interval"


def duration(seconds: float) -> str:
    """How long something took: "0.4 s", "35 s", "12 min 3 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{number(seconds, 1 if seconds < 10 else 0)} s"


def share(value: float | None) -> str:
    """A fraction of one in percent."""
    return NOT_MEASURED if not known(value) else f"{number(100 * value, 1)} %"


def by_key(key: str, value: Any) -> str:
    """Any plain value by the unit that its key names (latency_p95_s, memory_bytes, frequency_max_hz, floor_drop)."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        unit = key.rsplit("_", 1)[-1]
        if unit in _SCALES and "_" in key:
            return quantity(float(value), unit)
        if key.endswith("cores"):
            return number(float(value), 2)
        return count(value) if isinstance(value, int) else f"{value:g}"
    if isinstance(value, Mapping):
        if "value" in value and "how" in value:
            return figure(value, unit) if (unit := key.rsplit("_", 1)[-1]) in _SCALES else text(value["value"])
        if "value" in value and "source" in value:
            return by_key(key, value["value"])
        nested = any(isinstance(item, Mapping) for item in value.values())
        said = [f"{label(k)}{':' if nested else ''} {by_key(str(k), v)}" for k, v in value.items()]
        return ("; " if nested else ", ").join(said) or "none"
    if isinstance(value, list | tuple):
        if len(value) > 8 and all(map(known, value)):
            return f"{by_key(key, min(value))} to {by_key(key, max(value))} in {count(len(value))} readings"
        return ", ".join(by_key(key, item) for item in value) or "none"
    return text(value)


def label(key: object) -> str:
    """A key in words, without the unit that its value will show: memory_bytes → memory."""
    key = text(key, 60)
    if key in _NAMES:
        return _NAMES[key]
    head, _, unit = key.rpartition("_")
    return (head if head and unit in _SCALES else key).replace("_", " ")


def step(given: Mapping[str, Any]) -> str:
    """One step of a recipe: "prune 30 %", "recover 3 epochs", "tflite int8", "clock at most 1.20 GHz"."""
    kind = given.get("kind")
    if kind == "prune" and known(given.get("ratio")):
        return f"prune {number(100 * given['ratio'], 0)} %"
    if kind == "recover" and isinstance(given.get("epochs"), int):
        return f"recover {given['epochs']} epoch{'' if given['epochs'] == 1 else 's'}"
    if kind == "lower":
        return text(f"{given.get('runtime', '')} {given.get('scheme', '')}", 60).strip()
    if kind == "frequency":
        return f"clock at most {quantity(given.get('frequency_max_hz'), 'hz')}"
    if kind == "npu":
        return text(given.get("configuration", ""), 60)
    return text(kind, 60)


def when(moment: object) -> str:
    """An ISO 8601 time as people read it: "22 November 2026, 10:00 UTC"; other text as it is."""
    try:
        parsed = datetime.fromisoformat(str(moment))
    except ValueError:
        return text(moment, 40)
    parsed = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    return f"{parsed.day} {parsed:%B %Y, %H:%M} UTC"


def known(value: object) -> TypeGuard[float]:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fields(given: Any) -> dict[str, Any] | None:
    if is_dataclass(given) and not isinstance(given, type):
        return dict(vars(given))
    return dict(given) if isinstance(given, Mapping) else None


def _decimals(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = float(f"{abs(value):.{DIGITS - 1}e}")
    return max(0, DIGITS - 1 - math.floor(math.log10(rounded)))


def _range(interval: Any, factor: float, decimals: int) -> str:
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(known, interval)):
        return ""
    low, high = (number(end * factor, decimals) for end in interval)
    return f" ({low} … {high})"
