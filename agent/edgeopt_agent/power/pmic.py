"""The power chip of a Raspberry Pi 5, by its firmware's `vcgencmd pmic_read_adc`.

It prints current and voltage of each rail behind it: "VDD_CORE_A current(7)=1.2340A", "VDD_CORE_V volt(15)=0.8750V".
Their products are added: that is what the rails take, without the chip's own losses and without what USB devices draw
from the 5 V input, whose current it does not tell.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Dict, List

from . import Sensor

COMMAND = ("vcgencmd", "pmic_read_adc")
TIMEOUT_S = 2.0
INTERVAL_S = 0.25  # each reading is a program that is started
LINE = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)([AV])\s*$", re.MULTILINE)


def find() -> List[Sensor]:
    """Raises OSError where the program is there and fails."""
    if shutil.which(COMMAND[0]) is None:
        return []
    try:
        _read()
    except ValueError:  # a Raspberry Pi without that chip says "Command not registered"
        return []
    return [Sensor("pmic", "all rails", " ".join(COMMAND), _read, interval_s=INTERVAL_S)]


def power_of(text: str) -> float:
    """Watts of all rails that have both a current and a voltage. Raises ValueError where there is none."""
    rails: Dict[str, Dict[str, float]] = {}
    for rail, unit, value, _ in LINE.findall(text):
        rails.setdefault(rail, {})[unit] = float(value)
    whole = [both["A"] * both["V"] for both in rails.values() if len(both) == 2]
    if not whole:
        raise ValueError(f"'{' '.join(COMMAND)}' told no rail with current and voltage: {text[:80]!r}")
    return sum(whole)


def _read() -> float:
    try:
        done = subprocess.run(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
    except subprocess.SubprocessError as error:
        raise OSError(f"'{' '.join(COMMAND)}' failed: {error}") from error
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode and "not registered" not in said:
        raise OSError(
            f"'{' '.join(COMMAND)}' ended with exit code {done.returncode}: {said.strip()[:200] or 'no word'}"
        )
    return power_of(said)
