"""What 1,000 runs cost by the user's prices, and how many outputs a person would have to look at. Nothing is built in:
without a price there is no figure, and it says which one is absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import stats
from .stats import Figure

YEAR_S = 365.25 * 86400
JOULES_PER_KWH = 3.6e6
RUNS = 1000


@dataclasses.dataclass(frozen=True)
class Prices:
    """As the profile's [cost] or the user's options say; None: not told. runs_per_day None: the board never pauses."""

    hardware: float | None = None
    life_years: float | None = None
    energy_per_kwh: float | None = None
    runs_per_day: float | None = None
    currency: str | None = None

    @classmethod
    def of(cls, profile: Mapping[str, Any] | None, options: Mapping[str, Any] | None = None) -> Prices:
        """The profile's [cost], where an option does not say otherwise; keys as the fields here."""
        names = [field.name for field in dataclasses.fields(cls)]
        given = {key: value for key, value in (options or {}).items() if value is not None}
        found = dict(profile or {}) | given
        return cls(**{name: found[name] for name in names if found.get(name) is not None})

    def known(self) -> bool:
        return self.hardware is not None or self.energy_per_kwh is not None


def per_1000_runs(
    latency: Mapping[str, Any] | None, energy: Mapping[str, Any] | None, prices: Prices
) -> dict[str, Any]:
    """{"energy", "hardware", "total", "per_throughput": figures as run.json keeps them, "currency", "basis"}.

    latency: LATENCY of run.json; energy: {"gross_j": a figure} or None. energy: gross joules at the price of a kWh.
    hardware: the board's price, spread over the runs of its life: as many as runs_per_day says, else one after the
    other at the mean latency. per_throughput: the board's price for each inference a second. Idle energy between the
    runs is not in it.
    """
    spent, hardware, per_throughput = _energy(energy, prices), _hardware(latency, prices), _throughput(latency, prices)
    figures = {
        "energy": spent,
        "hardware": hardware,
        "total": _total(spent, hardware),
        "per_throughput": per_throughput,
    }
    told = f"{prices.runs_per_day:g} runs a day" if prices.runs_per_day else "runs one after the other, without a pause"
    return {
        **{name: figure.to_json() for name, figure in figures.items()},
        "currency": prices.currency,
        "basis": told,
        "prices": dataclasses.asdict(prices),
    }


def _energy(energy: Mapping[str, Any] | None, prices: Prices) -> Figure:
    if prices.energy_per_kwh is None:
        return _none("no energy price was given")
    gross = (energy or {}).get("gross_j") or {}
    value = gross.get("value")
    if value is None:
        return _none(f"energy: {gross['invalid']}" if gross.get("invalid") else "energy was not measured")
    factor = RUNS * prices.energy_per_kwh / JOULES_PER_KWH
    interval = gross.get("interval")
    ends = (interval[0] * factor, interval[1] * factor) if interval else None
    return Figure(value * factor, ends, gross.get("n", 0), gross.get("how", "measured"))


def _hardware(latency: Mapping[str, Any] | None, prices: Prices) -> Figure:
    if prices.hardware is None or prices.life_years is None:
        absent = "hardware price" if prices.hardware is None else "life of the hardware"
        return _none(f"no {absent} was given")
    if prices.runs_per_day is not None:
        return Figure(RUNS * prices.hardware / (prices.life_years * 365.25 * prices.runs_per_day), None, 0, "estimated")
    mean = _mean(latency)
    if mean is None:
        return _none("latency was not measured")
    return Figure(
        RUNS * prices.hardware * mean / (prices.life_years * YEAR_S), None, int((latency or {}).get("n") or 0)
    )


def _throughput(latency: Mapping[str, Any] | None, prices: Prices) -> Figure:
    mean = _mean(latency)
    if prices.hardware is None or mean is None:
        return _none("no hardware price was given" if prices.hardware is None else "latency was not measured")
    return Figure(prices.hardware * mean, None, int((latency or {}).get("n") or 0))


def _total(energy: Figure, hardware: Figure) -> Figure:
    if energy.value is None or hardware.value is None:
        return _none("; ".join(filter(None, (energy.invalid, hardware.invalid))))
    ends = None if energy.interval is None else tuple(end + hardware.value for end in energy.interval)
    worse = next((figure.how for figure in (energy, hardware) if figure.how != "measured"), "measured")
    return Figure(energy.value + hardware.value, ends, energy.n, worse)  # type: ignore[arg-type]


def _mean(latency: Mapping[str, Any] | None) -> float | None:
    mean: float | None = ((latency or {}).get("mean_s") or {}).get("value")
    return mean


def _none(why: str) -> Figure:
    return Figure(None, None, 0, invalid=why)


def review(
    after: NDArray[Any], before: NDArray[Any], threshold: float, groups: NDArray[Any] | None = None
) -> dict[str, Any]:
    """The share of outputs below `threshold`, which a person looks at: of the source model (before) and of the artifact
    on the board (after), and the paired difference, after - before.

    after, before: confidence (n,), 0…1, of the same inputs; groups: (n,) or None. Shares with their intervals.
    """
    asked = (after < threshold).astype(np.float64), (before < threshold).astype(np.float64)
    shares = [stats.score(flags, groups) for flags in asked]
    paired = stats.paired_drop(*asked, groups)
    ends = paired["drop_interval"]
    return {
        "threshold": threshold,
        "before": shares[1].to_json(),
        "after": shares[0].to_json(),
        "difference": paired["drop"],
        "difference_interval": None if ends is None else list(ends),
        "test": paired["test"],
        "n": paired["n"],
    }
