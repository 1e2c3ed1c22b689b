"""RAPL: the processor's own energy counters, by the kernel's powercap class (Documentation/power/powercap).

energy_uj counts microjoules and begins again after max_energy_range_uj. Domains overlap (a package holds its core and
its memory controller, psys holds packages), so each is a sensor of its own and none are ever added. Since Linux 5.10
the files are root's alone. The counter changes about every millisecond (Intel's manual, volume 3B, 15.10.1).
"""

from __future__ import annotations

import os
from typing import List

from . import Sensor, folders, number_of, optional, readable

STEP_J = 61e-6  # 2^-14 J, the counter's usual unit; the driver shows microjoules
INTERVAL_S = 0.001


def find() -> List[Sensor]:
    """Raises PermissionError where there are counters and this user may read none."""
    found, denied = [], None
    for zone in folders("class", "powercap"):
        counter = os.path.join(zone, "energy_uj")
        name = optional(os.path.join(zone, "name"))
        if not os.path.basename(zone).startswith("intel-rapl:") or name is None:
            continue
        if not readable(counter):
            denied = counter if os.path.exists(counter) and not os.access(counter, os.R_OK) else denied
            continue
        wraps = os.path.join(zone, "max_energy_range_uj")
        range_j = number_of(wraps) / 1e6 if readable(wraps) else None
        parent = optional(os.path.join(os.path.dirname(os.path.realpath(zone)), "name")) if _inner(zone) else None
        rail = f"{parent}/{name}" if parent else name
        found.append(Sensor("rapl", rail, counter, _reader(counter), "energy_j", INTERVAL_S, STEP_J, range_j))
    if denied and not found:
        raise PermissionError(f"{denied} is root's alone: log in as root, or let root give this user the right to read")
    return found


def _inner(zone: str) -> bool:
    """intel-rapl:0:1 lies within intel-rapl:0."""
    return os.path.basename(zone).count(":") > 1


def _reader(path: str):  # type: ignore[no-untyped-def]
    return lambda: number_of(path) / 1e6
