"""External meters: every file of edgeopt/meters keeps its contract; lines as such meters give them, with faults."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import tty
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from boards import beside

from edgeopt import meters
from edgeopt.errors import ConfigError
from edgeopt.meter_lines import Columns, Lines

WATTS, PERIOD_S = 4.2, 0.02
Write = Callable[[str], None]


def feeding(write: Write, line: Callable[[float, int], str]) -> contextlib.AbstractContextManager[None]:
    """Another program, which writes line(seconds since it began, number) until the end."""

    def feed(end: threading.Event) -> None:
        began, number = time.monotonic(), 0
        while not end.wait(PERIOD_S):
            write(line(time.monotonic() - began, number))
            number += 1

    return beside(feed)


@contextlib.contextmanager
def serial_port() -> Iterator[tuple[str, Write]]:
    """(path, write) of a real terminal pair; what is written comes in at the path."""
    master, slave = os.openpty()
    tty.setraw(slave)
    try:
        yield os.ttyname(slave), lambda text: void(os.write(master, text.encode("latin-1")))
    finally:
        os.close(master)
        os.close(slave)


def void(_: object) -> None:
    """So that a lambda returns nothing."""


def appending(path: Path) -> Write:
    def write(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    return write


@contextlib.contextmanager
def csv_stage(folder: Path) -> Iterator[tuple[str, str]]:
    path = folder / "log.csv"
    path.write_text("Time,U (V),I (mA)\n1.0,5.0,1\n")
    with feeding(appending(path), lambda _, __: f"{time.time():.3f},5.000,{WATTS / 5 * 1e3:.1f}\n"):
        yield str(path), "time=Time:unix,volts=U (V):V,amperes=I (mA):mA"


@contextlib.contextmanager
def serial_stage(_: Path) -> Iterator[tuple[str, str]]:
    with serial_port() as (path, write), feeding(write, lambda _, __: f"{WATTS * 1e3:.0f} mW\r\n"):
        yield f"{path}@115200", "watts=1:mW"


STAGES = {"csv": csv_stage, "serial": serial_stage}


@pytest.mark.parametrize("kind", meters.kinds())
def test_a_meter_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    """Every file has a stage here; what is fed comes back as watts by this machine's clock."""
    with STAGES[kind](tmp_path) as (place, columns):
        with contextlib.closing(meters.connect(f"{kind}:{place}", Columns.parse(columns))) as meter:
            began = time.monotonic()
            meter.start()
            time.sleep(0.5)
            until = time.monotonic()
            trace = meter.finish(until, 5.0)
        assert not trace.own_clock
        assert trace.problem is None
        assert trace.failures == {}
        assert trace.watts == pytest.approx(np.full(len(trace.watts), WATTS), rel=1e-6)
        assert len(trace.watts) > 5
        assert (np.diff(trace.times_s) > 0).all()
        assert 0 <= trace.stamp_error_s < 0.1
        assert began - 0.1 < trace.times_s[0] < began + 0.3
        assert until <= trace.times_s[-1] + trace.stamp_error_s < until + 1
    with pytest.raises(ConfigError):
        meters.connect(f"{kind}:/no/such/place", Columns.parse(columns)).start()


def test_what_is_no_meter_is_told() -> None:
    for text in ("csv", "csv:", "bluetooth:x", ""):
        with pytest.raises(ConfigError, match="allowed is KIND:PLACE with one of csv, serial"):
            meters.split(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "say which column is what, in which unit"),
        ("watts=P", "allowed is QUANTITY=HEADER:UNIT"),
        ("power=P:W", "each of time, watts, volts, amperes once"),
        ("watts=P:W,watts=Q:W", "each of time, watts, volts, amperes once"),
        ("watts=P:V", "the unit of watts is one of W, mW, uW"),
        ("time=T:unix,volts=U:V", "needs watts, or both volts and amperes"),
        ("time=T:min,watts=P:W", "the unit of time is one of unix, iso, s, ms, us"),
        ("volts=1:V,amperes=I:A", "all columns by their headers, or all by their numbers"),
    ],
)
def test_columns_are_never_guessed(text: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Columns.parse(text)


@pytest.mark.parametrize(
    ("columns", "lines", "watts"),
    [
        ("watts=1:W", ["4.2"], 4.2),
        ("watts=2:mW", ["17;4200,0"], 4.2),
        ("watts=1:uW", ["4.2e6"], 4.2),
        ("watts=1:µW", ["4200000 µW"], 4.2),
        ("volts=1:V,amperes=2:mA", ["5.000V 840mA"], 4.2),
        ("volts=1:V,amperes=2:mA", ["5.000 V  840 mA"], 4.2),
        ("volts=1:mV,amperes=2:A", ["5000\t0,84"], 4.2),
        ("volts=U:V,amperes=I/mA:mA", ["# log of 2026", "Supply;;", "U;I/mA;note", '5,0;"840";x'], 4.2),
        ("watts=P [W]:W", ["\ufeffTime,P [W]", "0,4.2"], 4.2),
    ],
)
def test_lines_as_meters_write_them(columns: str, lines: list[str], watts: float) -> None:
    parser = Lines(Columns.parse(columns), "log.csv")
    rows = [row for row in map(parser.take, lines) if row is not None]
    assert [row.watts for row in rows] == [pytest.approx(watts)]


@pytest.mark.parametrize(
    ("columns", "lines", "said"),
    [
        ("volts=U:V,amperes=Current (mA):A", ["U,Current (mA)"], "'Current \\(mA\\)' says mA, but .* amperes for A"),
        ("watts=P_mW:W", ["P_mW"], "'P_mW' says mW"),
        ("watts=1:W", ["4200 mW"], "'4200mW' says mW, but --meter-columns takes watts for W"),
        (
            "watts=P:W",
            ["time,power"] * 50,
            "no line has the headers 'P' of --meter-columns; it begins with 'time, power'",
        ),
    ],
)
def test_units_and_headers_that_contradict_are_refused(columns: str, lines: list[str], said: str) -> None:
    parser = Lines(Columns.parse(columns), "log.csv")
    with pytest.raises(ConfigError, match=said):
        list(map(parser.take, lines))


@pytest.mark.parametrize(
    "line", ["5.0", "5.0,0.84,1,7", "5.0,,1", "5.0,0..84,1", "5.0,nan,1", "5.0,\ufffd84,1", "5.0,0.84 V,1", "U,I,t"]
)
def test_garbled_lines_tell_nothing(line: str) -> None:
    parser = Lines(Columns.parse("volts=1:V,amperes=2:A"), "log.csv")
    assert parser.take("5.0,0.84,1") is not None
    with pytest.raises(ValueError, match="column"):
        parser.take(line)


@pytest.mark.parametrize("line", ["nan,4.2", "inf,4.2", "-inf,4.2", "1,\r4.2"])
def test_times_that_are_none_tell_nothing(line: str) -> None:
    parser = Lines(Columns.parse("time=1:s,watts=2:W"), "log.csv")
    with pytest.raises(ValueError, match=r"a time that is no number|a line that is no CSV"):
        parser.take(line)


def test_a_serial_port_with_noise() -> None:
    """It begins in the middle of a line, as ports do; every tenth line is garbled, every eleventh comes in halves."""

    def line(_: float, number: int) -> str:
        return "\xff\x805.0;;\n" if number % 10 == 5 else "5.000;0.840\n"

    with serial_port() as (path, write):
        write("000;9.000\n")
        halves = threading.Lock()

        def in_halves(text: str) -> None:
            with halves:
                write(text[:7])
                time.sleep(0.005)
                write(text[7:])

        with (
            feeding(in_halves, line),
            contextlib.closing(meters.connect(f"serial:{path}", Columns.parse("volts=1:V,amperes=2:A"))) as meter,
        ):
            meter.start()
            assert meter.watts == pytest.approx(4.2)
            time.sleep(1.0)
            trace = meter.finish(time.monotonic(), 2.0)
    assert set(trace.watts.round(6)) == {4.2}, "the first half line, 9 A, is none"
    assert trace.failures
    assert len(trace.watts) > 5
    assert trace.products[0] == pytest.approx((4.2, 5.0, 0.84))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no end of line ", "no line can be read: bytes without an end of line; is the speed right"),
        ("OL\n", "no line can be read: a column 'watts' that is no number; is the speed right"),
        ("4200 mW\n", "'4200mW' says mW, but --meter-columns takes watts for W"),
    ],
)
def test_a_serial_port_that_says_nothing_useful(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the board works."""
    from edgeopt.meters import serial

    monkeypatch.setattr(serial, "FIRST_LINE_S", 1.0)
    with (
        serial_port() as (path, write),
        feeding(write, lambda _, __: text * 5),
        contextlib.closing(meters.connect(f"serial:{path}", Columns.parse("watts=1:W"))) as meter,
        pytest.raises(ConfigError) as raised,
    ):
        meter.start()
    assert said in str(raised.value)


def test_a_serial_port_that_is_pulled_out() -> None:
    with serial_port() as (path, write):
        meter = meters.connect(f"serial:{path}", Columns.parse("watts=1:W"))
        with feeding(write, lambda _, __: "4.2\n"):
            meter.start()
    trace = meter.finish(time.monotonic() + 5.0, 0.5)
    meter.close()
    assert any("the port is gone" in why for why in trace.failures)


def log(path: Path, times: list[float], form: str = "{:.3f}", head: str = "t,P\n") -> None:
    path.write_text(head + "".join(f"{form.format(at)},4.2\n" for at in times))


def read_csv(path: Path, columns: str, before: Callable[[], None], patience_s: float = 0.5) -> meters.Trace:
    with contextlib.closing(meters.connect(f"csv:{path}", Columns.parse(columns))) as meter:
        meter.start()
        before()
        return meter.finish(time.monotonic(), patience_s)


def test_a_file_that_comes_with_the_end(tmp_path: Path) -> None:
    """Exported by hand after the measurement; times of the meter's own."""
    path = tmp_path / "log.csv"
    trace = read_csv(path, "time=t:ms,watts=P:W", lambda: log(path, [k * 20.0 for k in range(200)]), 3.0)
    assert trace.own_clock
    assert np.diff(trace.times_s) == pytest.approx(np.full(199, 0.02))


def test_only_lines_from_the_start_on_count_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log(path, [0.0, 0.1, 0.2])
    trace = read_csv(path, "time=t:s,watts=P:W", lambda: appending(path)("0.3,4.2\n0.4,bad\n0.5,4.2\n0.6,4."))
    assert list(trace.times_s) == [0.3, 0.5]
    assert trace.failures == {"a column 'watts' that is no number": 1}


@pytest.mark.parametrize(("unit", "decimals"), [("unix", 3), ("iso", 6)])
def test_times_by_this_machines_clock(tmp_path: Path, unit: str, decimals: int) -> None:
    path, now, at = tmp_path / "log.csv", time.monotonic(), time.time()
    stamp = f"{at:.3f}" if unit == "unix" else datetime.fromtimestamp(at).isoformat(timespec="microseconds")
    trace = read_csv(path, f"time=t:{unit},watts=P:W", lambda: void(path.write_text(f"t,P\n{stamp},4.2\n")))
    assert trace.times_s[0] == pytest.approx(now, abs=0.01)
    assert 10.0**-decimals / 2 <= trace.stamp_error_s < 0.01


def test_times_in_whole_seconds_are_as_unsure(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    trace = read_csv(path, "time=t:unix,watts=P:W", lambda: log(path, [time.time()], "{:.0f}"))
    assert trace.stamp_error_s >= 0.5


def test_this_machines_clock_may_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.meters import csv

    path, clocks = tmp_path / "log.csv", iter([(10.0, 1000.0), (20.0, 1013.0)])
    monkeypatch.setattr(csv, "_clocks", lambda: next(clocks))
    trace = read_csv(path, "time=t:unix,watts=P:W", lambda: log(path, [1005.0]))
    assert trace.problem == "this machine's clock was set by 3 s meanwhile"


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        ("t,P\n", "watts=P:W", "--meter-columns needs a time"),
        ("t,power\n1,2\n" * 30, "time=t:s,watts=P:W", "no line has the headers 't', 'P'"),
        (
            "t,P\n" + "2026-11-22T10:00:00,4.2\n" * 5,
            "time=t:unix,watts=P:W",
            "no line can be read: a time that is no number",
        ),
        ("t,P\n" + "17,4.2\n" * 5, "time=t:iso,watts=P:W", "no line can be read: a time that is no ISO 8601"),
        ("t,P (mW)\n1,2\n", "time=t:s,watts=P (mW):W", "'P (mW)' says mW"),
    ],
)
def test_a_file_that_cannot_serve_is_told_before_the_board_works(
    tmp_path: Path, content: str, columns: str, said: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        meters.connect(f"csv:{path}", Columns.parse(columns)).start()
    assert said in str(raised.value)


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """To open a FIFO would wait for ever; one may also come in the place of the file that is awaited."""
    path, columns = tmp_path / "log.csv", Columns.parse("time=t:s,watts=P:W")
    with pytest.raises(ConfigError, match="serial:PORT is for ports"):
        read_csv(path, "time=t:s,watts=P:W", lambda: os.mkfifo(path))
    for place in (path, "/dev/zero"):
        with pytest.raises(ConfigError, match="serial:PORT is for ports"):
            meters.connect(f"csv:{place}", columns)
    endless = tmp_path / "endless.csv"
    endless.write_bytes(b"t,P\n" + b"0" * 100_000)
    with pytest.raises(ConfigError, match="a line of more than 65536 bytes"):
        meters.connect(f"csv:{endless}", columns).start()


def test_a_file_without_the_headers_is_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with pytest.raises(ConfigError, match="no line has the headers 't', 'P'"):
        read_csv(path, "time=t:s,watts=P:W", lambda: void(path.write_text("a,b\n1,2\n")))
