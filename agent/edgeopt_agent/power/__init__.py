"""Power sensors, one file each; a file's name is the `kind` by which profiles call its sensors. Its contract:

find() -> list of Sensor    every rail or domain that this board shows and this user may read; [] where there is none

A sensor gives its raw figure in SI units. Energy, idle power, gaps and readings that cannot be are the host's to judge.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..wire import RemoteError

SYS = "/sys"


class Sensor:
    """One figure that the board tells about itself.

    quantity: "power_w", or "energy_j", a counter. range_j: where that counter begins again at 0; None: not told.
    resolution: its smallest step, in the quantity's unit; None: not told. interval_s: how often it changes at most.
    read(): the figure; raises OSError or ValueError where this reading gave none. product(): (volts, amperes) of the
    same rail, where it tells them beside its power.
    """

    def __init__(
        self,
        kind: str,
        rail: str,
        where: str,
        read: Callable[[], float],
        quantity: str = "power_w",
        interval_s: float = 0.1,
        resolution: Optional[float] = None,
        range_j: Optional[float] = None,
        product: Optional[Callable[[], Tuple[float, float]]] = None,
    ) -> None:
        self.kind, self.rail, self.where, self.read, self.product = kind, rail, where, read, product
        self.quantity, self.interval_s, self.resolution, self.range_j = quantity, interval_s, resolution, range_j

    def describe(self) -> Dict[str, Any]:
        names = ("kind", "rail", "where", "quantity", "interval_s", "resolution", "range_j")
        return {name: getattr(self, name) for name in names}


def kinds() -> List[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def find() -> List[Sensor]:
    """Every sensor of this board."""
    return [sensor for kind in kinds() for sensor in importlib.import_module(f"{__name__}.{kind}").find()]


def choose(kind: Optional[str], rail: Optional[str]) -> Sensor:
    """The one that is asked for; else the board's only one. Raises RemoteError with the names there are."""
    there = find()
    fitting = [sensor for sensor in there if kind in (None, sensor.kind) and rail in (None, sensor.rail)]
    if len(fitting) == 1:
        return fitting[0]
    asked = " ".join(word for word in (kind, rail) if word) or "any"
    names = ", ".join(f"'{sensor.kind} {sensor.rail}'" for sensor in there) or "none that this user may read"
    what = "no such power sensor" if not fitting else "more than one power sensor fits"
    raise RemoteError("no-sensor", f"{what} for '{asked}'; this board has: {names}. Name one with --sensor KIND:RAIL")


def text_of(path: str) -> str:
    """Raises OSError."""
    with open(path) as file:
        return file.read().strip()


def number_of(path: str) -> float:
    """Raises OSError, ValueError."""
    return float(int(text_of(path)))


def readable(path: str) -> bool:
    """Whether a figure comes from there: that the file exists says little, drivers refuse when they are asked."""
    try:
        number_of(path)
    except (OSError, ValueError):
        return False
    return True


def both(voltage: str, current: str, per_unit: float) -> Optional[Callable[[], Tuple[float, float]]]:
    """A reader of (volts, amperes) from two files, in which `per_unit` make a volt and an ampere; None without them."""
    if not (readable(voltage) and readable(current)):
        return None
    return lambda: (number_of(voltage) / per_unit, abs(number_of(current)) / per_unit)


def optional(path: str) -> Optional[str]:
    try:
        return text_of(path) or None
    except OSError:
        return None


def folders(*parts: str) -> List[str]:
    """The entries of a folder of sysfs, in the order of their numbers."""
    place = os.path.join(SYS, *parts)
    names = os.listdir(place) if os.path.isdir(place) else []
    return [os.path.join(place, name) for name in sorted(names, key=_numbered)]


def _numbered(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
