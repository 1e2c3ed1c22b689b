"""A file of timestamped lines that another program writes, as those of bench supplies and USB meters do.

It may be there before the measurement or come with its end. Lines count from where the file ended at the start; whole
ones only, as the last may be half written.
"""

from __future__ import annotations

import os
import time
from collections import Counter

from ..errors import ConfigError
from ..meter_lines import HEADER_LINES, Columns, Lines, Row
from . import Trace, trace, usual_step

LOOK_S = 0.25
CLOCK_SET_S = 0.1  # what time servers may correct in a measurement; more is a jump
AFTER_S = 0.5
LONGEST_LINE = 65536  # bytes; more without an end is no log
HOPELESS = 3  # lines that cannot be read, and none that can


class CsvMeter:
    watts: float | None = None  # such files are written in lumps
    interval_s: float | None = None

    def __init__(self, path: str, columns: Columns) -> None:
        self._path, self._columns = path, columns
        self._was: tuple[int, int] | None = None
        if "time" not in columns.of:
            raise ConfigError(f"--meter csv:{path}: --meter-columns needs a time, as 'time=Timestamp:unix'")
        self._require_file()
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise ConfigError(f"--meter csv:{path}: there is no folder {os.path.dirname(path)}")

    def _require_file(self) -> None:
        """To open a FIFO or a device may wait for ever; raises ConfigError where one is, or comes, in its place."""
        if os.path.exists(self._path) and not os.path.isfile(self._path):
            what = "a folder" if os.path.isdir(self._path) else "no file: serial:PORT is for ports"
            raise ConfigError(f"--meter csv:{self._path}: that is {what}")

    def start(self) -> None:
        failures = Counter[str]()  # wrong headers and units are told before the board works
        rows, _ = self._rows(0, failures, head=True)
        if not rows and failures.total() >= HOPELESS:
            raise ConfigError(f"--meter csv:{self._path}: no line can be read: {failures.most_common(1)[0][0]}")
        self.interval_s = usual_step([row.time_s for row in rows if row.time_s is not None])
        self._was, self._clocks = self._state(), _clocks()

    def finish(self, until_s: float, patience_s: float) -> Trace:
        deadline = time.monotonic() + patience_s
        seen: tuple[int, int] | None = None
        while True:
            now = self._state()
            if now != seen or time.monotonic() > deadline:
                seen, failures = now, Counter[str]()
                rows, lines = self._rows(self._start_byte(now), failures)
                over = time.monotonic() > deadline
                if over and not lines.has_header:
                    raise lines.no_header()
                if over or self._reach(rows, until_s):
                    return self._trace(rows, lines.decimals, failures)
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Nothing is held open."""

    def _state(self) -> tuple[int, int] | None:
        """(inode, size)."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size

    def _start_byte(self, now: tuple[int, int] | None) -> int:
        """Where it ended at the start; 0 when it is another file now."""
        same = self._was is not None and now is not None and now[0] == self._was[0] and now[1] >= self._was[1]
        return self._was[1] if same and self._was else 0

    def _rows(self, start: int, failures: Counter[str], head: bool = False) -> tuple[list[Row], Lines]:
        """Rows from byte `start` on; head: those of the first lines. Raises ConfigError."""
        lines, rows = Lines(self._columns, f"--meter csv:{self._path}"), list[Row]()
        self._require_file()
        try:
            with open(self._path, "rb") as file:
                at = 0
                for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b"")):
                    at += len(raw)
                    if len(raw) > LONGEST_LINE:
                        raise ConfigError(f"--meter csv:{self._path}: a line of more than {LONGEST_LINE} bytes")
                    if not raw.endswith(b"\n"):
                        break
                    if head and number > HEADER_LINES:
                        break
                    if lines.has_header and at <= start:
                        continue
                    try:
                        row = lines.take(raw.decode("utf-8", "replace"))
                    except ValueError as error:
                        failures[str(error)] += 1
                        continue
                    rows += [row] if row is not None and at > start else []
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigError(f"--meter csv:{self._path}: it cannot be read: {error.strerror}") from error
        return rows, lines

    def _reach(self, rows: list[Row], until_s: float) -> bool:
        times = [row.time_s for row in rows if row.time_s is not None]
        if not times:
            return False
        if self._columns.own_clock:
            return times[-1] - times[0] >= until_s - self._clocks[0] + AFTER_S
        return self._monotonic(times[-1]) >= until_s

    def _monotonic(self, unix_s: float) -> float:
        monotonic_s, realtime_s = self._clocks
        return unix_s - realtime_s + monotonic_s

    def _trace(self, rows: list[Row], decimals: int, failures: Counter[str]) -> Trace:
        if self._columns.own_clock:
            return trace([(row.time_s or 0.0, row) for row in rows], True, 0.0, failures)
        now = _clocks()
        set_by = (now[1] - now[0]) - (self._clocks[1] - self._clocks[0])
        problem = f"this machine's clock was set by {set_by:.3g} s meanwhile" if abs(set_by) > CLOCK_SET_S else None
        stamped = [(self._monotonic(row.time_s or 0.0), row) for row in rows]
        return trace(stamped, False, abs(set_by) + 10.0**-decimals / 2, failures, problem)


def meter(path: str, columns: Columns) -> CsvMeter:
    return CsvMeter(path, columns)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()
