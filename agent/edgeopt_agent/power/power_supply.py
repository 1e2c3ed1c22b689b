"""Batteries, by the kernel's power_supply class (Documentation/ABI/testing/sysfs-class-power).

power_now is microwatts, current_now microamperes, voltage_now microvolts. The ABI has current negative while a battery
gives power, but drivers disagree, so only one that says it discharges tells what the board draws: any other reading is
an error, as the charger feeds the board then.
"""

from __future__ import annotations

import os
from typing import Callable, List

from . import Sensor, both, folders, number_of, optional, readable, text_of

INTERVAL_S = 1.0  # fuel gauges average over about a second; no file tells it
STEP_W = 1e-6


def find() -> List[Sensor]:
    found = []
    for supply in folders("class", "power_supply"):
        if optional(os.path.join(supply, "type")) != "Battery" or optional(os.path.join(supply, "scope")) == "Device":
            continue
        power, current, voltage = (os.path.join(supply, f"{what}_now") for what in ("power", "current", "voltage"))
        rail = os.path.basename(supply)
        if readable(power):
            read = _power(supply, power)
            found.append(Sensor("power_supply", rail, power, read, interval_s=INTERVAL_S, resolution=STEP_W))
            found[-1].product = both(voltage, current, 1e6)
        elif readable(current) and readable(voltage):
            read = _product(supply, current, voltage)
            found.append(Sensor("power_supply", rail, current, read, interval_s=INTERVAL_S, resolution=STEP_W))
    return found


def _require_discharging(supply: str) -> None:
    status = text_of(os.path.join(supply, "status"))
    if status != "Discharging":
        raise ValueError(f"{supply} is '{status}': a battery tells what the board draws only while it discharges")


def _power(supply: str, path: str) -> Callable[[], float]:
    def read() -> float:
        _require_discharging(supply)
        return abs(number_of(path)) / 1e6

    return read


def _product(supply: str, current: str, voltage: str) -> Callable[[], float]:
    def read() -> float:
        _require_discharging(supply)
        return abs(number_of(current)) / 1e6 * (number_of(voltage) / 1e6)

    return read
