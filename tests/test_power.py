"""`edgeopt power` on boards whose sensors are sysfs trees, laid out as the kernel's documents say.

The tree is put over /sys/class in a mount namespace of its own, so agent and command read it where they always do.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from boards import dense_tflite
from conftest import EDGEOPT
from edgeopt_agent import power
from edgeopt_agent.power import pmic
from rich.console import Console

from edgeopt import sensing
from edgeopt.report import conform, joules, schema

WITH_TREE = 'mount --bind "$1" /sys/class && shift && exec "$@"'


def write(tree: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return tree


def on_board(tree: Path, *arguments: object, code: int = 0) -> Any:
    """The installed command on a board with that tree; its JSON."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a command another /sys/class (a mount namespace)")
    root = tree.with_name(f"{tree.name}-root")
    command = ["unshare", "--mount", "sh", "-c", WITH_TREE, "sh", str(tree), str(EDGEOPT), *map(str, arguments)]
    done = subprocess.run([*command, "--root", str(root), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


# Documentation/hwmon/ina3221: in[123]_label, in[123]_enable, in[123]_input in mV, curr[123]_input in mA,
# update_interval in ms; a Jetson has VDD_IN, VDD_CPU_GPU_CV and VDD_SOC.
INA3221 = {
    "hwmon/hwmon3/name": "ina3221",
    "hwmon/hwmon3/update_interval": 200,
    "hwmon/hwmon3/in1_label": "VDD_IN",
    "hwmon/hwmon3/in1_input": 5072,
    "hwmon/hwmon3/curr1_input": 1200,
    "hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "hwmon/hwmon3/in2_input": 5064,
    "hwmon/hwmon3/curr2_input": 400,
    "hwmon/hwmon3/in3_label": "VDD_SOC",
    "hwmon/hwmon3/in3_enable": 0,
    "hwmon/hwmon3/in3_input": 5064,
    "hwmon/hwmon3/curr3_input": 500,
}
# Documentation/hwmon/ina2xx: in0 the shunt's and in1 the bus voltage in mV, curr1 in mA, power1 in µW.
INA226 = {
    "hwmon/hwmon0/name": "ina226",
    "hwmon/hwmon0/in0_input": 12,
    "hwmon/hwmon0/in1_input": 11968,
    "hwmon/hwmon0/curr1_input": 350,
    "hwmon/hwmon0/power1_input": 4_175_000,
}
# Documentation/ABI/testing/sysfs-class-power: µA, µV; current is negative while the battery gives power.
BATTERY = {
    "power_supply/BAT0/type": "Battery",
    "power_supply/BAT0/status": "Discharging",
    "power_supply/BAT0/current_now": -500_000,
    "power_supply/BAT0/voltage_now": 7_600_000,
    "power_supply/AC/type": "Mains",
    "power_supply/AC/online": 0,
    "power_supply/mouse/type": "Battery",
    "power_supply/mouse/scope": "Device",
    "power_supply/mouse/power_now": 1000,
}
# Documentation/power/powercap/powercap.rst; energy in µJ.
RAPL = {
    "powercap/intel-rapl/enabled": 1,
    "powercap/intel-rapl:0/name": "package-0",
    "powercap/intel-rapl:0/energy_uj": 1000,
    "powercap/intel-rapl:0/max_energy_range_uj": 262143328850,
    "powercap/intel-rapl:1/name": "psys",
    "powercap/intel-rapl:1/energy_uj": 5000,
    "powercap/intel-rapl:1/max_energy_range_uj": 262143328850,
}


def test_sensors_are_found_where_the_kernel_shows_them(tmp_path: Path) -> None:
    tree = write(tmp_path / "class", {**INA3221, **INA226, **BATTERY, **RAPL, "hwmon/hwmon1/name": "coretemp"})
    found = on_board(tree, "power", "--list")["sensors"]
    assert [(told["kind"], told["rail"], told["quantity"]) for told in found] == [
        ("hwmon", "ina226", "power_w"),
        ("hwmon", "VDD_IN", "power_w"),
        ("hwmon", "VDD_CPU_GPU_CV", "power_w"),  # VDD_SOC is switched off
        ("power_supply", "BAT0", "power_w"),
        ("rapl", "package-0", "energy_j"),
        ("rapl", "psys", "energy_j"),
    ]
    assert found[1]["interval_s"] == 0.2
    assert found[4]["range_j"] == 262143.32885


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense_tflite())
    return path


def valid(tree: Path, *arguments: object) -> Any:
    """`on_board`, again where the machine's neighbours made readings late, which spoils windows."""
    for _ in range(5):
        found = on_board(tree, *arguments)
        figures = [found["results"][0][name] for name in ("idle_w", "gross_j", "net_j")]
        if all(figure["invalid"] is None for figure in figures):
            return found
    pytest.skip("this machine reads the sensor too late, five times over")


@contextlib.contextmanager
def alive(file: Path, figures: Sequence[int]) -> Iterator[threading.Event]:
    """A sensor's file whose last digit moves, as a living sensor's does; it stands still while the event is set."""
    end, frozen, new = threading.Event(), threading.Event(), file.with_name(f"{file.name}.new")

    def feed() -> None:
        for figure in itertools.cycle(figures):
            if end.wait(0.013):
                break
            if not frozen.is_set():
                new.write_text(f"{figure}\n")
                new.replace(file)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield frozen
    finally:
        end.set()
        thread.join()


@pytest.mark.alone
def test_joules_are_watts_by_time(tmp_path: Path, model: Path) -> None:
    """Units as the kernel has them: a slip of a thousand would be seen."""
    tree, watts = write(tmp_path / "class", {**INA3221, "hwmon/hwmon3/update_interval": 100}), 5.072 * 1.2
    with alive(tree / "hwmon/hwmon3/curr1_input", (1199, 1200, 1201)):
        found = valid(tree, "power", model, "--random", "--no-repeat", "--sensor", "hwmon:VDD_IN")
    (result,) = found["results"]
    assert result["idle_w"]["value"] == pytest.approx(watts, rel=1e-3)
    for window in result["windows"]:
        assert window["gross_j"] == pytest.approx(watts * window["seconds"] / window["n"], rel=1e-3)
    assert result["gross_j"]["value"] > 0
    assert result["net_j"]["value"] == pytest.approx(0, abs=result["gross_j"]["value"] * 1e-3)
    assert found["sampler_overhead"]["value"] > 0
    assert found["sensor"]["failures"] == {}
    told = schema("power")
    assert list(conform.problems(found, told, told, "power")) == []


@pytest.mark.parametrize(
    ("tree", "watts"),
    [(INA226, 4.175), (BATTERY, 3.8), ({**BATTERY, "power_supply/BAT0/power_now": 3_900_000}, 3.9)],
    ids=["ina226", "battery", "battery with a power of its own"],
)
def test_figures_are_watts(
    tmp_path: Path, tree: dict[str, object], watts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "SYS", str(tmp_path))
    write(tmp_path / "class", tree)
    (sensor,) = (sensor for kind in power.kinds() for sensor in power.of_kind(kind))
    assert sensor.read() == pytest.approx(watts)
    if "power" in os.path.basename(sensor.where):
        volts, amperes = sensor.product()
        assert (volts, amperes) in [(11.968, 0.35), (7.6, 0.5)]
    else:
        assert sensor.product is None


def test_a_battery_that_is_charged_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SYS", str(tmp_path))
    write(tmp_path / "class", {**BATTERY, "power_supply/BAT0/status": "Charging"})
    (sensor,) = (sensor for kind in power.kinds() for sensor in power.of_kind(kind))
    with pytest.raises(
        ValueError, match="is 'Charging': a battery tells what the board draws only while it discharges"
    ):
        sensor.read()


PMIC = """\
     3V7_WL_SW_A current(0)=0.00390372A
       DDR_VDD2_A current(2)=0.02000000A
       VDD_CORE_A current(7)=1.50000000A
     3V7_WL_SW_V volt(8)=3.70000000V
       DDR_VDD2_V volt(10)=1.10000000V
       VDD_CORE_V volt(15)=0.80000000V
        EXT5V_V volt(24)=5.10000000V
"""


def test_the_rails_of_a_raspberry_pi_5_are_added() -> None:
    assert pmic.power_of(PMIC) == pytest.approx(0.00390372 * 3.7 + 0.02 * 1.1 + 1.5 * 0.8)
    with pytest.raises(ValueError, match="told no rail with current and voltage"):
        pmic.power_of("error=1 error_msg=Command not registered")


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[tuple[Path, float]]:
    """A tree whose package counts 12 W and begins again every 100 J; (tree, watts)."""
    tree = write(tmp_path / "class", {**RAPL, "powercap/intel-rapl:0/max_energy_range_uj": 100_000_000})
    shutil.rmtree(tree / "powercap" / "intel-rapl:1")
    counter, new, end, watts = tree / "powercap/intel-rapl:0/energy_uj", tmp_path / "new", threading.Event(), 12.0

    def count() -> None:
        began = time.monotonic()
        while not end.wait(0.002):
            new.write_text(str(int(watts * (time.monotonic() - began) * 1e6) % 100_000_000))
            new.replace(counter)

    thread = threading.Thread(target=count)
    thread.start()
    yield tree, watts
    end.set()
    thread.join()


@pytest.mark.alone
def test_a_counter_that_begins_again_gives_its_joules(counting: tuple[Path, float], model: Path) -> None:
    tree, watts = counting
    for _ in range(3):  # the thread that counts may be held up, too
        found = valid(tree, "power", model, "--random", "--no-repeat")
        (result,) = found["results"]
        told = [window["gross_j"] * window["n"] / window["seconds"] for window in result["windows"]]
        told.append(result["idle_w"]["value"])
        if told == pytest.approx([watts] * len(told), rel=0.01):
            break
    assert found["sensor"]["range_j"] == 100.0
    assert told == pytest.approx([watts] * len(told), rel=0.01)


def test_a_sensor_that_freezes_passes_no_budget(tmp_path: Path, model: Path) -> None:
    """It read 4 W until the first window was over, and from then on the same 4 W, whatever the board drew."""
    tree = write(tmp_path / "class", {**INA226, "hwmon/hwmon0/update_interval": 50})
    asked = ["power", model, "--random", "--no-repeat", "--budget-w", "6", "--whole-board", "--sensor", "hwmon:ina226"]
    with alive(tree / "hwmon/hwmon0/power1_input", (4_170_000, 4_175_000, 4_180_000)) as frozen:
        timer = threading.Timer(20.0, frozen.set)
        timer.start()
        found = on_board(tree, *asked, code=11)
        timer.cancel()
    (result,) = found["results"]
    assert result["work_w"]["value"] is None
    assert "in a row" in result["work_w"]["invalid"]
    assert found["verdict"] == "undecided"


def test_sums_and_shunts_of_a_chip_are_no_rail(tmp_path: Path) -> None:
    """Documentation/hwmon/ina3221: in4 to in6 are microvolts at the shunts, in7 and curr4 sums over the channels. Of a
    chip that nobody described, a voltage and a current are a rail only where both bear its label."""
    other = {
        "hwmon/hwmon4/name": "unheard-of",
        **{"hwmon/hwmon4/in1_input": 5000, "hwmon/hwmon4/curr1_input": 100},
        **{"hwmon/hwmon4/in2_input": 5000, "hwmon/hwmon4/curr2_input": 100},
        **{"hwmon/hwmon4/in2_label": "5V0", "hwmon/hwmon4/curr2_label": "5V0"},
        **{"hwmon/hwmon4/in3_input": 5000, "hwmon/hwmon4/curr3_input": 100},
        **{"hwmon/hwmon4/in3_label": "5V0", "hwmon/hwmon4/curr3_label": "3V3"},
    }
    sums = {"in4_input": 6000, "in5_input": 2000, "in6_input": 4080, "in7_input": 12080, "curr4_input": 2416}
    own = {f"hwmon/hwmon3/{name}": value for name, value in sums.items()}
    tree = write(tmp_path / "class", {**INA3221, **own, **other})
    found = on_board(tree, "power", "--list")["sensors"]
    assert [told["rail"] for told in found] == ["VDD_IN", "VDD_CPU_GPU_CV", "5V0"]


def test_equal_chips_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After their place on the bus, which stays; the kernel's number, which may change, where none is told."""
    monkeypatch.setattr(power, "SYS", str(tmp_path))
    files: dict[str, object] = {}
    for number, watts in ((5, 4), (6, 3), (7, 2)):
        files |= {f"hwmon/hwmon{number}/name": "ina226", f"hwmon/hwmon{number}/power1_input": watts * 1_000_000}
    write(tmp_path / "class", {**files, "hwmon/hwmon8/name": "ina226", "hwmon/hwmon8/power1_input": 9_000_000})
    (tmp_path / "class/hwmon/hwmon8/label").write_text("main supply\n")
    for number, place in ((5, "1-0040"), (6, "1-0041")):
        (tmp_path / "bus" / place).mkdir(parents=True)
        (tmp_path / f"class/hwmon/hwmon{number}/device").symlink_to(tmp_path / "bus" / place)
    found, problems = power.described()
    assert problems == []
    assert [told["rail"] for told in found] == ["ina226@1-0040", "ina226@1-0041", "ina226@hwmon7", "main supply"]
    assert power.choose("hwmon", "ina226@1-0041").read() == 3.0


def test_a_read_that_never_returns_stops_nothing_else(tmp_path: Path, model: Path) -> None:
    """A FIFO stands for a bus that hangs."""
    tree = write(tmp_path / "class", {**BATTERY, "hwmon/hwmon0/name": "ina226"})
    hangs = tree / "hwmon/hwmon0/power1_input"
    os.mkfifo(hangs)
    (tree / "thermal/thermal_zone0").mkdir(parents=True)
    os.mkfifo(tree / "thermal/thermal_zone0/temp")
    listed = on_board(tree, "power", "--list")
    assert [told["rail"] for told in listed["sensors"]] == ["BAT0"]
    (problem,) = listed["problems"]
    assert "hwmon0/power1_input did not return" in problem
    refused = on_board(tree, "power", model, "--random", "--sensor", "hwmon:ina226", code=4)["error"]["message"]
    assert "hwmon0/power1_input did not return" in refused
    done = on_board(tree, "bench", model, "--random", "--mode", "rapid", "--no-repeat")
    assert done["results"][0]["latency"]["p50_s"]["value"] > 0


def test_a_program_that_fails_is_named_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SYS", str(tmp_path))
    program = tmp_path / "bin/vcgencmd"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    for says, code, told in (("Can't open /dev/vcio", 1, "Can't open /dev/vcio"), ("Command not registered", 255, "")):
        program.write_text(f'#!/bin/sh\necho "{says}"\nexit {code}\n')
        program.chmod(0o755)
        found, problems = power.described()
        assert found == []
        assert len(problems) == bool(told)
        assert all(told in problem and problem.startswith("pmic:") for problem in problems)
        said = sensing.no_sensor({"sensors": found, "sensor_problems": problems}, "ssh://pi")
        assert "RAPL" not in said
        assert told in said


def test_a_board_without_a_sensor_says_so(tmp_path: Path, model: Path) -> None:
    tree = write(tmp_path / "class", {"hwmon/hwmon0/name": "coretemp"})
    assert on_board(tree, "power", "--list")["sensors"] == []
    refused = on_board(tree, "power", model, "--random", code=4)
    assert "no such power sensor for 'any'; this board has: none that this user may read" in refused["error"]["message"]


def test_a_misspelt_sensor_is_no_estimate(tmp_path: Path, model: Path) -> None:
    tree = write(tmp_path / "class", INA3221)
    asked = ["power", model, "--random", "--estimate", "--profile", "raspberry-pi-5", "--stand-in"]
    asked += ["--sensor", "hwmon:VDD_INN"]
    refused = on_board(tree, *asked, code=4)["error"]["message"]
    assert "no such power sensor for 'hwmon VDD_INN'; this board has" in refused
    assert "hwmon VDD_IN" in refused


def test_of_several_sensors_one_must_be_named(tmp_path: Path, model: Path) -> None:
    tree = write(tmp_path / "class", {**INA3221, **INA226})
    refused = on_board(tree, "power", model, "--random", code=4)["error"]["message"]
    assert "more than one power sensor fits" in refused
    assert "'hwmon VDD_IN'" in refused
    assert "--sensor KIND:RAIL" in refused


def test_the_screen_shows_watts_and_windows() -> None:
    none = {"value": None, "interval": None, "n": 0, "how": "measured", "invalid": "n=0, needs 3"}
    figure = {**none, "value": 0.0042, "interval": [0.004, 0.0044], "n": 3, "invalid": None}
    idle = {**figure, "value": 4.175, "interval": [4.1, 4.2]}
    marks = [(None, 100.0, 110.0), (0, 110.0, 120.0)]
    document = {
        "device": "local",
        "board": {"model": "A board", "hostname": "b", "cpu_model": "cpu"},
        "sensor": {
            "kind": "hwmon",
            "rail": "VDD_IN",
            "period_s": 0.04,
            "failures": {"no [bold]answer": 2},
            "how": "measured",
        },
        "alignment": None,
        "results": [
            {
                **{"name": "net", "gross_j": figure, "net_j": none, "idle_w": idle, "work_w": idle},
                **{"windows": [{"invalid": None}, {"invalid": "too [bold]late"}, {"invalid": None}]},
                **{"verdict": {"verdict": "fail", "reason": "too [bold]much"}},
            }
        ],
        "sampler_overhead": {**figure, "value": 1.002, "interval": [0.99, 1.01]},
        "watts": {"first_s": 100.0, "seconds": [0.0, 5.0, 10.0, 15.0, 20.0], "power_w": [2.0, 2.0, None, 6.0, 6.0]},
        "marks": [{"artifact": who, "began_s": began, "ended_s": ended} for who, began, ended in marks],
        "disturbances": ["the board [bold]throttled"],
        "repeated": "drift: [bold]slower",
        "random_inputs": True,
    }
    shown = io.StringIO()
    joules.render(document, Console(file=shown, width=80))
    for words in (
        "4.20 mJ",
        "n=0, needs 3",
        "net  fail: too [bold]much",
        "sensor hwmon:VDD_IN",
        "2 readings failed: no [bold]answer",
        "6.00 W",
        "2 of 3",
        "net  a window is left out: too [bold]late",
        "..11",
        "marked: the board [bold]throttled",
        "measured again because: drift: [bold]slower",
    ):
        assert words in shown.getvalue(), shown.getvalue()
