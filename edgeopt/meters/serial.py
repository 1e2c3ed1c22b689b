"""Lines from a serial port, as USB meters and bench supplies send them: serial:/dev/ttyUSB0, at 9600 baud or @SPEED.

Each line is stamped with this machine's clock as its end comes in, unless it brings a time of the meter's own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from ..errors import ConfigError, MissingDependency
from ..meter_lines import Columns, Lines, Row
from . import Trace, trace, usual_step

SPEED = 9600
ARRIVAL_S = 0.05  # an adapter holds bytes for up to 16 ms, and a line of 40 characters takes 42 ms at 9600 baud
FIRST_LINE_S = 10.0
FIRST_LINES = 8  # tell how often they come
LONGEST_LINE = 500  # bytes; more without an end is noise
PAUSE_S = 0.05
SOONER_S = 1e-4  # of lines that come in one piece, so that their order stays


class SerialMeter:
    """Reads in a thread of its own."""

    interval_s: float | None = None

    def __init__(self, place: str, columns: Columns) -> None:
        self._place, self._columns = place, columns
        if "time" in columns.of and not columns.own_clock:
            raise ConfigError(
                f"--meter serial:{place}: lines are stamped here; a time of the meter's own is in s, ms or us"
            )
        self._port = _port(place)
        self._lines = Lines(columns, f"--meter serial:{place}")
        self._rows: list[tuple[float, Row]] = []
        self._failures: Counter[str] = Counter()
        self._watts: float | None = None
        self._problem: ConfigError | None = None
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def watts(self) -> float | None:
        with self._lock:
            return self._watts

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + FIRST_LINE_S
        while len(self._rows) < FIRST_LINES and time.monotonic() < deadline:
            if self._problem is not None:
                raise self._problem
            time.sleep(PAUSE_S)
        with self._lock:
            if not self._rows:
                raise ConfigError(f"--meter serial:{self._place}: {self._nothing()}")
            self.interval_s = usual_step([came for came, _ in self._rows])
            self._rows.clear()
            self._failures.clear()

    def finish(self, until_s: float, patience_s: float) -> Trace:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not (self._came() or 0.0) >= until_s:
            time.sleep(PAUSE_S)
        with self._lock:
            own, rows = self._columns.own_clock, list(self._rows)
            if own:
                rows = [(row.time_s or 0.0, row) for _, row in rows]
            return trace(
                rows, own, 0.0 if own else ARRIVAL_S, self._failures, str(self._problem) if self._problem else None
            )

    def close(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self._port.close()

    def _came(self) -> float | None:
        with self._lock:
            return self._rows[-1][0] if self._rows else None

    def _nothing(self) -> str:
        said = self._failures.most_common(1)
        words = f"no line can be read: {said[0][0]}" if said else f"no whole line came in {FIRST_LINE_S:g} s"
        return f"{words}; is the speed right (PLACE@SPEED, it is {self._port.baudrate}), and is it sending?"

    def _run(self) -> None:
        buffer, whole = b"", False  # what comes before the first line's end may be half a line
        while not self._end.is_set():
            try:
                buffer += self._port.read(self._port.in_waiting or 1)
            except OSError as error:  # pulled out; serial's own errors are of this kind
                self._note(f"the port is gone: {error.strerror or error}")
                return
            came = time.monotonic()
            *lines, buffer = buffer.replace(b"\r", b"\n").split(b"\n")
            ended = bool(lines)
            lines = lines if whole else lines[1:]
            for later, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
                self._take(line, came - later * SOONER_S)
            whole = whole or ended
            if len(buffer) > LONGEST_LINE:
                self._note("bytes without an end of line")
                buffer, whole = b"", False

    def _take(self, line: bytes, came: float) -> None:
        try:
            row = self._lines.take(line.decode("ascii", "replace"))
        except ValueError as error:
            self._note(str(error))
        except ConfigError as error:
            self._problem = error
        else:
            if row is not None:
                with self._lock:
                    self._rows.append((came, row))
                    self._watts = row.watts

    def _note(self, words: str) -> None:
        with self._lock:
            self._failures[words] += 1


def meter(place: str, columns: Columns) -> SerialMeter:
    return SerialMeter(place, columns)


def _port(place: str) -> Any:
    path, _, speed = place.partition("@")
    if speed and not speed.isdigit():
        raise ConfigError(f"--meter serial:{place}: the speed after @ is a number of baud, as 115200")
    try:
        import serial
    except ImportError as error:
        raise MissingDependency("--meter serial: needs the extra 'meter': pip install 'edgeopt[meter]'") from error
    try:
        return serial.Serial(path, int(speed or SPEED), timeout=0.1, exclusive=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--meter serial:{place}: it cannot be opened: {error}") from error
