"""Which power sensor a run reads, whether that sensor can judge a budget, and which clocks a board can be capped at:
from the facts that the board tells. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ConfigError

PARTS = ("rapl", "pmic")  # sensors that see the processor, or the rails behind one chip, never the whole board
INPUT_RAILS = ("VDD_IN",)  # of hwmon, before all others; any other label may be a rail of one block
CAPS = (0.8, 0.65, 0.5)  # of the highest clock: what the rung 'frequency' tries


@dataclasses.dataclass(frozen=True)
class Sensing:
    """How a run measures energy. kind, rail: the sensor's, None: the board's only one; window_s None: as short as the
    sensor allows; whole_board: the user says so of the rail."""

    kind: str | None
    rail: str | None
    windows: int
    window_s: float | None = None
    whole_board: bool = False

    @property
    def wanted(self) -> dict[str, str | None]:
        """As the agent takes it."""
        return {"kind": self.kind, "rail": self.rail}

    def problem(self, facts: Mapping[str, Any], address: str) -> str | None:
        """Why no sensor of a board (its facts) is the one, with the names there are; None: there is one."""
        sensors = facts["sensors"]
        found = fitting(sensors, self.wanted)
        if len(found) == 1:
            return None
        asked = ":".join(word for word in (self.kind, self.rail) if word)
        names = ", ".join(f"{told['kind']}:{told['rail']}" for told in sensors)
        if not sensors:
            return no_sensor(facts, address)
        what = f"no power sensor '{asked}'" if not found else "more than one power sensor that fits"
        return f'{address} has {what}; name one with [energy] sensor = "KIND:RAIL": {names}'

    def on(self, sensors: Sequence[Mapping[str, Any]]) -> Sensing:
        """With the names of the sensor that fits; only where there is no `problem`."""
        (told,) = fitting(sensors, self.wanted)
        return dataclasses.replace(self, kind=told["kind"], rail=told["rail"])

    def named(self) -> str:
        return f"{self.kind}:{self.rail}"

    def unseen(self) -> str:
        return unseen(str(self.kind), str(self.rail), self.whole_board, "[energy] whole_board = true")


def no_sensor(facts: Mapping[str, Any], address: str) -> str:
    """That a board (its facts) shows none, and why, where it says so."""
    why = "; ".join(facts.get("sensor_problems") or ())
    return f"{address} shows no power sensor to this user" + (f": {why}" if why else "")


def unseen(kind: str, rail: str, whole_board: bool, option: str = "--whole-board") -> str:
    """Why a sensor may see less than the board, in words; empty: it sees all. whole_board: the user says so of it, with
    `option`."""
    if kind in PARTS:
        return "the sensor sees a part of the board only"
    if kind == "hwmon" and rail not in INPUT_RAILS and not whole_board:
        return f"whether {kind}:{rail} feeds the whole board is not known; if it does, say so with {option}"
    return ""


def fitting(sensors: Sequence[Mapping[str, Any]], wanted: Mapping[str, str | None]) -> list[Mapping[str, Any]]:
    """Of a board's sensors (its facts) those that `choose` named."""
    return [told for told in sensors if all(wanted[key] in (None, told[key]) for key in ("kind", "rail"))]


def choose(text: str | None) -> dict[str, str | None]:
    """--sensor KIND:RAIL, KIND or nothing, as the agent takes it. Raises ConfigError."""
    kind, _, rail = (text or "").partition(":")
    if text is not None and not kind:
        raise ConfigError(f"--sensor {text}: allowed is KIND:RAIL as `edgeopt power --list` shows them, or KIND")
    return {"kind": kind or None, "rail": rail or None}


def clocks(control: Mapping[str, Any] | None, highest_hz: float | None) -> tuple[tuple[float, ...], str]:
    """(the highest clock, then the frequency caps worth a try, in Hz; or none, and why). control: as the board's facts
    tell it (edgeopt_agent.power_mode.control); highest_hz: what the profile says that the processor can."""
    if control is None:
        return (), "the board has no frequency control"
    if not control["settable"]:
        return (), "only root may set the board's frequency cap; log in as root"
    high, steps = min(control["max_hz"], highest_hz or control["max_hz"]), control["steps_hz"]
    wanted = [share * high for share in CAPS]
    found = [max((s for s in steps if s <= hz), default=0.0) if steps else 1e6 * round(hz / 1e6) for hz in wanted]
    usable = [hz for hz in dict.fromkeys(found) if control["min_hz"] <= hz < high]
    return ((high, *usable), "") if usable else ((), f"its clocks begin at {control['min_hz'] / 1e6:g} MHz")
