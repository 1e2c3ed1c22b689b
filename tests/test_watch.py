"""Who else used the board, and what slowed it down: the agent's readings, and the marks made of them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import dense_tflite
from conftest import EDGEOPT
from edgeopt_agent import watch

from edgeopt import conditions

HOG = "import time; end = time.time() + 120\nwhile time.time() < end: pass"
NOT_NOW = dict.fromkeys(("undervoltage", "frequency_capped", "throttled", "soft_limit", "happened"), False)
QUIET: dict[str, Any] = {
    "at_s": 10.0,
    "load_1min": 0.1,
    "memory_available_bytes": 1 << 30,
    "temperature_c": 50.0,
    "frequency_hz": [1_500_000_000] * 4,
    "throttle": {"undervoltage": False, "frequency_capped": False, "throttled": False},
    "throttle_count": 0,
    "cooling": [],
    "power_mode": {"governor": "ondemand", "frequency_max_hz": [1_500_000_000] * 4, "boost": None},
    "others": {"seconds": 1.0, "cores": 0.02, "busiest": [{"name": "sshd", "pid": 7, "cores": 0.02}]},
}


def series(**changes: Any) -> list[dict[str, Any]]:
    """Three readings; the last with `changes`, "power_mode" merged."""
    found = [copy.deepcopy(QUIET) for _ in range(3)]
    mode = changes.pop("power_mode", {})
    found[-1].update(changes)
    found[-1]["power_mode"].update(mode)
    return found


@pytest.fixture
def hog() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOG], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_quiet_board_has_no_marks_and_is_not_throttled() -> None:
    quiet = series()
    assert conditions.slowed(quiet) + conditions.background(quiet) + conditions.changed(quiet) == []
    assert conditions.summary(quiet)["throttled"] is False
    assert conditions.summary(quiet)["others_cores"] == [0.02, 0.02]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"throttle": {"undervoltage": True, "frequency_capped": False, "throttled": False}}, "too little voltage"),
        ({"throttle": {"undervoltage": False, "frequency_capped": True, "throttled": False}}, "firmware capped"),
        ({"throttle": {"undervoltage": False, "frequency_capped": False, "throttled": True}}, "throttled"),
        ({"throttle": {**NOT_NOW, "happened": True}}, "between two readings"),
        ({"cooling": ["cpufreq-cpu0 2"]}, "cooling device cpufreq-cpu0 2"),
        ({"throttle_count": 3}, "3 times by the processor's own count"),
        ({"power_mode": {"frequency_max_hz": [1_000_000_000] * 4}}, "between 1500 and 1000 MHz"),
    ],
)
def test_what_slowed_the_board_is_told(changes: dict[str, Any], words: str) -> None:
    found = series(**changes)
    assert [mark for mark in conditions.slowed(found) if words in mark]
    assert conditions.summary(found)["throttled"] is True


def test_a_board_that_tells_nothing_is_not_called_unthrottled() -> None:
    silent = [dict(reading, throttle=None, throttle_count=None, cooling=None) for reading in series()]
    assert conditions.summary(silent)["throttled"] is None


def test_a_setting_that_somebody_changed_is_told() -> None:
    assert conditions.changed(series(power_mode={"governor": "powersave"})) == [
        "governor changed during the run: ondemand, powersave"
    ]


def test_the_busiest_stretch_is_told_with_its_programs() -> None:
    loud = {
        "seconds": 2.0,
        "cores": 1.4,
        "busiest": [{"name": "make", "pid": 9, "cores": 1.3}, {"name": "x", "pid": 8, "cores": 0.01}],
    }
    assert conditions.background(series(others=loud)) == [
        "other programs used up to 1.40 cores meanwhile: make (process 9, 1.30)"
    ]


@pytest.mark.parametrize("name", ["a b", ") 1 (", "((", "x"])
def test_a_process_name_may_hold_anything(name: str) -> None:
    found = watch.parse_process(f"17 ({name}) S 1 17 16 0 -1 4194304 9 0 0 0 250 50 100 25 20 0 1 0 99 0 0")
    assert found[:2] == (name, 16)
    assert (found.cpu_s, found.children_s) == (3.0, 1.25)  # at 100 ticks a second, as everywhere


def test_steal_is_work_of_others_and_waiting_is_none() -> None:
    assert watch.parse_busy("cpu  100 200 300 9999 888 10 20 70 55 0\ncpu0 1") == (7.0, 0.7)
    assert watch.parse_busy("cpu  100 200 300 9999") == (6.0, 0.0)  # old kernels


@pytest.mark.parametrize(
    ("firmware", "alarm", "found"),
    [
        (None, None, None),
        ("50000", "0", {**NOT_NOW, "happened": True}),
        ("80008", "0", {**NOT_NOW, "soft_limit": True, "happened": True}),
        ("0", "1", {**NOT_NOW, "undervoltage": True}),
        (None, "1", {"undervoltage": True}),
    ],
)
def test_a_raspberry_pi_tells_of_too_little_voltage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    firmware: str | None,
    alarm: str | None,
    found: dict[str, bool] | None,
) -> None:
    monkeypatch.setattr(watch, "FIRMWARE", str(tmp_path / "get_throttled"))
    monkeypatch.setattr(watch, "HWMON", str(tmp_path))
    (tmp_path / "hwmon0").mkdir()
    (tmp_path / "hwmon0" / "name").write_text("cpu_thermal\n")
    if firmware is not None:
        (tmp_path / "get_throttled").write_text(firmware + "\n")
    if alarm is not None:  # drivers/hwmon/raspberrypi-hwmon.c
        (tmp_path / "hwmon1").mkdir()
        (tmp_path / "hwmon1" / "name").write_text("rpi_volt\n")
        (tmp_path / "hwmon1" / "in0_lcrit_alarm").write_text(alarm + "\n")
    assert watch.conditions()["throttle"] == found


BUSY_JOB = """
import json, time
from edgeopt_agent import watch
looks = watch.Watch()
first = [looks.look()["others"], looks.look()["others"]]
began, end = time.process_time(), time.monotonic() + 2.0
while time.monotonic() < end:
    pass
own_s = time.process_time() - began
print(json.dumps({"first": first, "found": looks.look()["others"], "own_s": own_s}))
"""


def test_a_hog_is_counted_and_named_and_this_job_is_not(hog: subprocess.Popen[bytes]) -> None:
    """The job is a session of its own, as on a board; both are as fast as the machine's other users let them be."""
    with subprocess.Popen([sys.executable, "-c", BUSY_JOB], stdout=subprocess.PIPE, start_new_session=True) as job:
        told = json.loads(job.communicate(timeout=120)[0])
    assert told["first"] == [None, None]  # the second: too soon for a kernel that counts in steps of 10 ms
    found, own_s = told["found"], told["own_s"]
    named = {one["pid"]: one["cores"] for one in found["busiest"]}
    assert named[hog.pid] > 0
    assert job.pid not in named
    slack = 0.1
    assert named[hog.pid] - slack < found["cores"] < (os.cpu_count() or 1) - own_s / found["seconds"] + slack


def test_a_program_that_starts_in_the_second_half_is_named_by_bench(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(dense_tflite())
    command = [str(EDGEOPT), "bench", str(model), "--random", "--no-repeat", "--root", str(tmp_path / "root"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        samples = tmp_path / "root" / "jobs"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(
            '"done": 6' in file.read_text() for file in samples.glob("*/events.jsonl")
        ):
            time.sleep(0.05)
        with subprocess.Popen([sys.executable, "-c", HOG]) as hog:
            out, errors = bench.communicate(timeout=120)
            hog.kill()
    assert bench.returncode == 0, errors.decode()
    marks = json.loads(out)["results"][0]["marks"]
    assert [mark for mark in marks if f"process {hog.pid}," in mark]
