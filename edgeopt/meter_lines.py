"""The lines of an external power meter: which column is what, in which unit, and the watts that they tell."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from .errors import ConfigError

UNITS = {
    "time": {"unix": 1.0, "iso": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6},
    "watts": {"W": 1.0, "mW": 1e-3, "uW": 1e-6},
    "volts": {"V": 1.0, "mV": 1e-3, "uV": 1e-6},
    "amperes": {"A": 1.0, "mA": 1e-3, "uA": 1e-6},
}
ALL_UNITS = "|".join(unit for quantity in ("watts", "volts", "amperes") for unit in UNITS[quantity])
OWN_CLOCK = ("s", "ms", "us")  # counted from a moment that only the meter knows
HEADER_LINES = 50
EXAMPLE = "time=Timestamp:unix,volts=V:V,amperes=I:mA"
NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Column:
    """where: the header's name, or the column's number from 1 on."""

    where: str
    unit: str


class Row(NamedTuple):
    """time_s: by the clock that the column's unit names, None where the lines have none; volts, amperes: None without
    a column of theirs."""

    time_s: float | None
    watts: float
    volts: float | None
    amperes: float | None


@dataclass(frozen=True)
class Columns:
    """The columns by quantity: watts, or volts and amperes, or all three; and time."""

    of: dict[str, Column]

    @classmethod
    def parse(cls, text: str | None) -> Columns:
        """--meter-columns QUANTITY=HEADER:UNIT,… Raises ConfigError: nothing of it is guessed."""
        if not text:
            raise ConfigError(f"--meter-columns: say which column is what, in which unit, as '{EXAMPLE}'")
        found: dict[str, Column] = {}
        for part in text.split(","):
            quantity, _, rest = part.strip().partition("=")
            where, _, unit = rest.rpartition(":")
            unit = unit.strip().replace("µ", "u").replace("μ", "u")
            if quantity not in UNITS or not where.strip() or quantity in found:
                allowed = ", ".join(UNITS)
                raise ConfigError(
                    f"--meter-columns '{part}': allowed is QUANTITY=HEADER:UNIT, each of {allowed} once, as '{EXAMPLE}'"
                )
            if unit not in UNITS[quantity]:
                raise ConfigError(
                    f"--meter-columns '{part}': the unit of {quantity} is one of {', '.join(UNITS[quantity])}"
                )
            found[quantity] = Column(where.strip(), unit)
        if "watts" not in found and not {"volts", "amperes"} <= set(found):
            raise ConfigError(f"--meter-columns '{text}': needs watts, or both volts and amperes")
        if len({column.where.isdigit() for column in found.values()}) > 1:
            raise ConfigError(f"--meter-columns '{text}': name all columns by their headers, or all by their numbers")
        return cls(found)

    @property
    def own_clock(self) -> bool:
        return "time" in self.of and self.of["time"].unit in OWN_CLOCK


class Lines:
    """Takes a meter's lines one by one. place: how messages call where they come from."""

    def __init__(self, columns: Columns, place: str) -> None:
        self._columns, self._place = columns, place
        numbered = all(column.where.isdigit() for column in columns.of.values())
        self._index = {name: int(column.where) - 1 for name, column in columns.of.items()} if numbered else None
        self._width: int | None = None
        self._seen: list[str] = []
        self.decimals = 0  # of the times: what they are rounded to

    @property
    def has_header(self) -> bool:
        """Whether it is known which column is where."""
        return self._index is not None

    def take(self, text: str) -> Row | None:
        """What a line tells; None: it is a header, a comment or empty.

        Raises ValueError (this line tells nothing), ConfigError (no line will: the header is missing or contradicts).
        """
        cells = _cells(text)
        if not cells or text.lstrip().startswith("#"):
            return None
        if self._index is None:
            self._find_header(cells)
            return None
        if self._width is not None and len(cells) != self._width:
            raise ValueError(f"a line of {len(cells)} columns, not {self._width}")
        if len(cells) <= max(self._index.values()):
            raise ValueError(f"a line of {len(cells)} columns, needs {max(self._index.values()) + 1}")
        row = self._row({name: cells[at] for name, at in self._index.items()})
        self._width = len(cells)
        return row

    def _find_header(self, cells: list[str]) -> None:
        wanted = {name: column.where for name, column in self._columns.of.items()}
        if not set(wanted.values()) <= set(cells):
            self._seen.append(", ".join(cells))
            if len(self._seen) >= HEADER_LINES:
                raise self.no_header()
            return
        for name, where in wanted.items():
            self._require_unit(name, where, _named_unit(where, name))
        self._index = {name: cells.index(where) for name, where in wanted.items()}
        self._width = len(cells)

    def no_header(self) -> ConfigError:
        names = ", ".join(f"'{column.where}'" for column in self._columns.of.values())
        seen = f"it begins with '{self._seen[0][:100]}'" if self._seen else "it is empty"
        return ConfigError(f"{self._place}: no line has the headers {names} of --meter-columns; {seen}")

    def _row(self, cells: dict[str, str]) -> Row:
        values = {name: self._number(name, cell) for name, cell in cells.items() if name != "time"}
        time_s = self._time(cells["time"]) if "time" in cells else None
        volts, amperes = values.get("volts"), values.get("amperes")
        watts = values["watts"] if "watts" in values else values["volts"] * values["amperes"]
        return Row(time_s, watts, volts, amperes)

    def _number(self, name: str, cell: str) -> float:
        found = NUMBER.fullmatch(cell)
        if found is None:
            raise ValueError(f"a column '{name}' that is no number")
        if found[2] and found[2] not in UNITS[name]:
            raise ValueError(f"a column '{name}' in another unit")
        self._require_unit(name, cell, found[2] or None)
        value = float(found[1]) * UNITS[name][self._columns.of[name].unit]
        if not math.isfinite(value):
            raise ValueError(f"a column '{name}' that is no number")
        return value

    def _time(self, cell: str) -> float:
        unit = self._columns.of["time"].unit
        decimals = re.search(r"[.,](\d+)", cell)
        self.decimals = max(self.decimals, len(decimals[1]) if decimals else 0)
        try:
            if unit == "iso":
                return datetime.fromisoformat(cell).timestamp()  # without an offset: this machine's local time
            if math.isfinite(found := float(cell) * UNITS["time"][unit]):
                return found
        except (ValueError, OverflowError):
            pass
        raise ValueError(f"a time that is no {'ISO 8601' if unit == 'iso' else 'number'}")

    def _require_unit(self, name: str, where: str, told: str | None) -> None:
        unit = self._columns.of[name].unit
        if told is not None and told in UNITS[name] and told != unit:
            raise ConfigError(f"{self._place}: '{where}' says {told}, but --meter-columns takes {name} for {unit}")


def _cells(text: str) -> list[str]:
    """Columns by semicolon, tab or comma, else by blanks; with the first two a comma may mark the decimals."""
    text = text.strip().lstrip("\ufeff").replace("µ", "u").replace("μ", "u")
    mark = next((mark for mark in ";\t," if mark in text), None)
    if mark is None:
        return re.sub(rf"(?<=\d)\s+(?=(?:{ALL_UNITS})(?:\s|$))", "", text).split()  # "5.0 V 840 mA" has two columns
    try:
        cells = [cell.strip() for cell in next(csv.reader([text], delimiter=mark), [])]
    except csv.Error:
        raise ValueError("a line that is no CSV") from None
    return cells if mark == "," else [re.sub(r"(?<=\d),(?=\d+\s*[A-Za-z]*$)", ".", cell) for cell in cells]


def _named_unit(header: str, name: str) -> str | None:
    """The unit that a header names: "Current (mA)", "I/mA", "current_mA"; None where it names none."""
    last = re.split(r"[\s(\[_/]+", header.rstrip(")] "))[-1]
    return last if last in UNITS[name] and last != header else None
