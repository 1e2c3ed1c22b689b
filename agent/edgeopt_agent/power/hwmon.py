"""Monitors of voltage and current on the board, by the kernel's hwmon class (Documentation/hwmon/sysfs-interface).

power<n>_input and power<n>_average are microwatts, curr<n>_input milliamperes, in<n>_input millivolts, update_interval
milliseconds. A chip with a power of its own is read there (ina219, ina226: Documentation/hwmon/ina2xx). Elsewhere a
voltage and a current make a rail only where a chip's document says that they are of one rail, or both bear its label:
of an ina3221 (Documentation/hwmon/ina3221) in4 to in6 are the shunts' microvolts, in7 and curr4 sums over the channels.
"""

from __future__ import annotations

import os
import re
from typing import Callable, List, Optional

from . import Sensor, both, folders, number_of, optional, readable

POWER_STEP_W = 1e-6
CURRENT_STEP_A = 1e-3
INTERVAL_S = 0.1  # where the chip tells none
RAILS = {"ina3221": (1, 2, 3), "ltc4151": (1,)}  # channels whose in<n> and curr<n> are of one rail


def find() -> List[Sensor]:
    found: List[Sensor] = []
    for chip in folders("class", "hwmon"):
        chip = chip if os.path.exists(os.path.join(chip, "name")) else os.path.join(chip, "device")
        name = optional(os.path.join(chip, "name"))
        if name is None:
            continue
        found += _powers(chip, name) or _products(chip, name)
    for sensor in found:
        if sum(other.rail == sensor.rail for other in found) > 1:
            twins = [other for other in found if other.rail == sensor.rail]
            for twin in twins:
                twin.rail = f"{twin.rail}@{_place(os.path.dirname(twin.where))}"
    return found


def _place(chip: str) -> str:
    """Which of several equal chips it is: its address on its bus, as 1-0041; where none is told, the kernel's number,
    which may be another one after the next start."""
    device = os.path.realpath(os.path.join(chip, "device"))
    return os.path.basename(device if os.path.isdir(device) else chip)


def _powers(chip: str, name: str) -> List[Sensor]:
    found = []
    for number in _channels(chip, r"power(\d+)_(?:input|average)"):
        path = os.path.join(chip, f"power{number}_input")
        path = path if readable(path) else os.path.join(chip, f"power{number}_average")
        if readable(path):
            rail = optional(os.path.join(chip, f"power{number}_label")) or _rail(chip, name, number)
            averaged = optional(os.path.join(chip, f"power{number}_average_interval"))
            interval_s = int(averaged) / 1000.0 if averaged and averaged.isdigit() else _interval_s(chip)
            voltage, current = (os.path.join(chip, f"{what}{number}_input") for what in ("in", "curr"))
            sensor = Sensor("hwmon", rail, path, _microwatts(path), interval_s=interval_s, resolution=POWER_STEP_W)
            sensor.product = both(voltage, current, 1e3)
            found.append(sensor)
    return found


def _products(chip: str, name: str) -> List[Sensor]:
    """Voltage times current, of channels that have both."""
    found = []
    for number in _channels(chip, r"curr(\d+)_input"):
        current, voltage = (os.path.join(chip, f"{what}{number}_input") for what in ("curr", "in"))
        if optional(os.path.join(chip, f"in{number}_enable")) == "0" or not (readable(current) and readable(voltage)):
            continue
        labels = [optional(os.path.join(chip, f"{what}{number}_label")) for what in ("in", "curr")]
        if number not in RAILS.get(name, ()) and (labels[0] is None or labels[0] != labels[1]):
            continue
        rail = labels[0] or labels[1] or _rail(chip, name, number)
        step_w = CURRENT_STEP_A * number_of(voltage) / 1e3
        read = _product(voltage, current)
        found.append(Sensor("hwmon", rail, current, read, interval_s=_interval_s(chip), resolution=step_w))
    return found


def _channels(chip: str, pattern: str) -> List[int]:
    matches = (re.fullmatch(pattern, name) for name in os.listdir(chip))
    return sorted({int(match[1]) for match in matches if match})


def _rail(chip: str, name: str, number: int) -> str:
    """After the label that the device tree gives the chip, else after its kind."""
    name = optional(os.path.join(chip, "label")) or name
    return name if number == 1 else f"{name} channel {number}"


def _interval_s(chip: str) -> float:
    told: Optional[str] = optional(os.path.join(chip, "update_interval"))
    return int(told) / 1000.0 if told and told.isdigit() and int(told) else INTERVAL_S


def _microwatts(path: str) -> Callable[[], float]:
    return lambda: number_of(path) / 1e6


def _product(voltage: str, current: str) -> Callable[[], float]:
    return lambda: number_of(voltage) / 1e3 * (number_of(current) / 1e3)
