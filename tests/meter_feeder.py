"""A power meter for tests: python meter_feeder.py ROOT csv FILE | serial FD.

It measures the board of edgeopt's folder ROOT, which draws WORK_W while its job says that it measures energy, else
IDLE_W; each line tells the mean of the interval before it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

IDLE_W, WORK_W, VOLTS = 2.0, 6.0, 5.0
PERIOD_S, LOOK_S = 0.08, 0.004


def watts(root: Path) -> float:
    """The board's power now, by the last event of its job."""
    with contextlib.suppress(OSError, IndexError):
        for events in root.glob("jobs/energy-*/events.jsonl"):
            return WORK_W if "measuring energy" in events.read_text().splitlines()[-1] else IDLE_W
    return IDLE_W


def main(root: Path, kind: str, where: str) -> None:
    with contextlib.suppress(OSError):
        os.nice(-15)  # late lines are refused, and these machines are busy
    out = open(where, "w", buffering=1) if kind == "csv" else os.fdopen(int(where), "w", buffering=1)  # noqa: SIM115
    if kind == "csv":
        out.write("No;t [ms];U;I (mA)\n")
    number, before, joules = 0, time.monotonic(), 0.0
    began, due = before, before + PERIOD_S
    while True:
        time.sleep(LOOK_S)
        now = time.monotonic()
        joules, before = joules + watts(root) * (now - before), now
        if now < due:
            continue
        milliamperes = joules / (now - began) / VOLTS * 1e3
        joules, began = 0.0, now
        while due <= now:  # this program may be late, the meter that it stands for is not
            number += 1
            own_ms = 123456.0 + due * 1e3  # since it was switched on
            if kind == "csv":
                out.write(f"{number};{own_ms:.1f};{VOLTS:.3f};{milliamperes:.1f}\n".replace(".", ","))
            else:
                out.write(f"{VOLTS:.3f} V  {milliamperes:.1f} mA\r\n")
            due += PERIOD_S


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
