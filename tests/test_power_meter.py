"""`edgeopt power` with a meter at this machine, with budgets, estimates and a page, through the installed command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import meter_feeder
import numpy as np
import pytest
from boards import dense_tflite
from conftest import run_cli
from edgeopt_agent import power as sensors
from report_browser import NETWORK, PAINTED, WIDTHS, Addresses, Browser, browsing, own_text
from test_watch import QUIET, series

from edgeopt import measure, power
from edgeopt.profile import load
from edgeopt.report import conform, power_page, schema, units

HERE = Path(__file__).parent


EXECUTED = {"threads": 1, "ops": {}, "delegate_nodes": 0, "precision": None}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense_tflite())
    return path


@contextlib.contextmanager
def fed(root: Path, kind: str, folder: Path) -> Iterator[list[str]]:
    """A meter that measures the board of `root`; the options that name it."""
    with contextlib.ExitStack() as stack:
        where, fds = str(folder / "log.csv"), ()
        columns = "time=t [ms]:ms,volts=U:V,amperes=I (mA):mA"
        place = where
        if kind == "serial":
            master, slave = os.openpty()
            tty.setraw(slave)
            stack.callback(os.close, master)
            stack.callback(os.close, slave)
            where, fds, columns, place = str(master), (master,), "volts=1:V,amperes=2:mA", os.ttyname(slave)  # type: ignore[assignment]
        feeder = subprocess.Popen([sys.executable, HERE / "meter_feeder.py", root, kind, where], pass_fds=fds)
        try:
            yield ["--meter", f"{kind}:{place}", "--meter-columns", columns]
        finally:
            feeder.terminate()
            feeder.wait()


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["csv", "serial"])
def test_joules_by_a_meter(kind: str, tmp_path: Path, model: Path) -> None:
    """A file with a clock of its own and decimal commas; a serial port without times. Both: volts and milliamperes."""
    page = tmp_path / "page.html"
    budget = ["--budget-w", "7", "--budget-j", "1e-9", "--out", page]
    for attempt in range(3):  # on a busy machine lines come late, and that is refused
        root = tmp_path / f"root-{attempt}"
        with fed(root, kind, tmp_path) as options:
            done = run_cli("power", model, "--random", "--root", root, *options, *budget, "--json")
        found = json.loads(done.stdout)
        if found["results"][0]["gross_j"]["invalid"] is None and found["results"][0]["idle_w"]["invalid"] is None:
            break
    else:
        pytest.skip("this machine reads the meter too late, three times over")
    assert done.returncode == 10, (found["results"][0]["verdict"], found["alignment"])
    (result,) = found["results"]
    aligned = found["alignment"]
    assert aligned["problem"] is None
    assert aligned["by"] == ("steps" if kind == "csv" else "round trips")
    assert 0 < aligned["error_s"] < 0.3
    assert aligned["steps_say_s"] == pytest.approx(aligned["offset_s"], abs=0.3)
    for window in result["windows"]:
        true = meter_feeder.WORK_W * window["seconds"] / window["n"]
        assert window["gross_j"] == pytest.approx(true, rel=0.015)
    assert result["idle_w"]["value"] == pytest.approx(meter_feeder.IDLE_W, rel=0.02)
    assert result["work_w"]["value"] == pytest.approx(meter_feeder.WORK_W, rel=0.015)
    net = 1 - meter_feeder.IDLE_W / meter_feeder.WORK_W
    assert result["net_j"]["value"] == pytest.approx(result["gross_j"]["value"] * net, rel=0.03)
    assert result["verdict"]["verdict"] == found["verdict"] == "fail"
    assert "power at work is within the budget of 7 W; energy of one inference is over" in result["verdict"]["reason"]
    assert found["sampler_overhead"] is None
    told = schema("power")
    assert list(conform.problems(found, told, told, "power")) == []
    text = page.read_text(encoding="utf-8")
    assert f"meter {kind}:" in text
    assert "Watts over time" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--meter", "csv:log.csv"], "--meter-columns: say which column is what"),
        (["--meter", "gpib:7"], "allowed is KIND:PLACE with one of csv, serial"),
        (["--meter-columns", "watts=P:W"], "name it with --meter"),
        (["--meter-wait", "5"], "--meter-wait: that is a meter's; name it with --meter"),
        (["--estimate", "--windows", "3"], "with --estimate nothing is measured in windows"),
        (["--estimate", "--seconds", "12"], "with --estimate nothing is measured in windows"),
        (["--whole-board"], "name it with --sensor hwmon:RAIL"),
        (["--whole-board", "--sensor", "rapl:package-0"], "name it with --sensor hwmon:RAIL"),
        (
            ["--meter", "csv:log.csv", "--meter-columns", "time=t:s,watts=P:W", "--sensor", "rapl"],
            "--meter and --sensor",
        ),
        (["--meter", "csv:no/log.csv", "--meter-columns", "time=t:s,watts=P:W"], "there is no folder no"),
        (["--meter", "serial:no", "--meter-columns", "watts=1:W"], "it cannot be opened"),
        (["--out", "page.txt"], "a page's file ends in .html"),
    ],
)
def test_what_cannot_be_is_told_at_once(options: list[str], said: str, model: Path) -> None:
    done = run_cli("power", model, "--random", "--root", model.parent / "root", *options, cwd=model.parent)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert not (model.parent / "root").exists()


PROFILE = """
schema = 1
name = "A board"
description = "Of tests."
runtimes = ["tflite"]
[cpu]
architecture = "x86_64"
[power]
idle_w = { value = 1.5, source = "https://example.com" }
typical_w = { value = 6.0, source = "https://example.com" }
budget_w = 5.0
[board]
root = "/var/lib/edgeopt"
python = "python3"
"""


def test_an_estimate_is_marked_wherever_it_appears(tmp_path: Path, model: Path) -> None:
    """No sensor is there; the figures are the profile's watts by the measured latency."""
    if sensors.described()[0]:
        pytest.skip("this machine has a power sensor")
    (tmp_path / "board.toml").write_text(PROFILE)
    asked = ["power", model, "--random", "--no-repeat", "--root", tmp_path / "root"]
    refused = run_cli(*asked, "--profile", tmp_path / "board.toml", "--json")
    assert refused.returncode == 4, refused.stderr
    assert "no such power sensor" in json.loads(refused.stdout)["error"]["message"]
    without = run_cli(*asked, "--estimate", "--json")
    assert without.returncode == 2
    assert "name it with --profile" in json.loads(without.stdout)["error"]["message"]
    page = tmp_path / "page.html"
    done = run_cli(*asked, "--estimate", "--profile", tmp_path / "board.toml", "--json", "--out", page)
    assert done.returncode == 11, done.stderr
    found = json.loads(done.stdout)
    (result,) = found["results"]
    keys = ("gross_j", "net_j", "work_w", "idle_w")
    assert {result[key]["how"] for key in keys} == {found["sensor"]["how"]} == {"estimated"}
    assert [result[key]["value"] for key in keys[2:]] == [6.0, 1.5]
    assert result["net_j"]["value"] == pytest.approx(result["gross_j"]["value"] * 4.5 / 6.0)
    assert 1e-7 < result["gross_j"]["value"] / 6.0 < 1e-2
    assert result["gross_j"]["interval"] is None
    assert "is estimated: that decides nothing" in result["verdict"]["reason"]
    text = page.read_text(encoding="utf-8")
    assert "from the watts of profile board by time, as if all cores worked" in text
    assert "Every figure of energy and power on this page is estimated" in text
    shown = re.sub(r"<[^>]*>", " ", text.partition("<main>")[2].partition("</main>")[0])
    assert len(re.findall(r"[mµ]?[JW]\s+estimated", shown)) == 4
    assert run_cli(*asked, "--estimate", "--profile", tmp_path / "board.toml", "--allow-undecided").returncode == 0
    mode = run_cli(*asked, "--estimate", "--profile", tmp_path / "board.toml", "--governor", "no-such-governor")
    assert mode.returncode == 4, "a power mode is set, or refused by the board, with an estimate as well"


# From raw samples as they are kept


def kept(
    folder: Path, watts: float = 6.0, kind: str = "hwmon", counts: Sequence[int] = (100, 100, 100), **others: Any
) -> power.Run:
    """The run of a board that draws `watts` at work and 2 W when it is idle, as `sample` keeps it. counts: inferences
    of each window."""
    folder.mkdir(exist_ok=True)
    edges = [(None, 2.0, 8.0), (0, 8.0, 19.5), (0, 19.5, 31.0), (0, 31.0, 42.5), (None, 43.5, 49.5)]
    done = (0, *counts, 0)
    marks = [{"artifact": who, "n": n, "began_s": a, "ended_s": b} for (who, a, b), n in zip(edges, done, strict=True)]
    times = np.arange(0.0, 55.0, 0.1)
    drawn = np.where((times > 8.1) & (times < 42.6), watts, 2.0)
    np.stack([times, drawn], axis=1).tofile(folder / "power.f64")
    sensor = {"kind": kind, "rail": "VDD_IN", "where": "x", "quantity": "power_w", "interval_s": 0.1}
    result = {
        "sensor": {**sensor, "resolution": None, "range_j": None, "period_s": 0.1},
        **{"marks": marks, "meter": None, "products": [], "overhead": [], "overhead_samples": None, "failures": {}},
        **{"executed": [EXECUTED], "frequency_max_hz": [None], "clocks": [], "power": None, "conditions": series()},
        **others,
    }
    (folder / "energy.json").write_text(json.dumps(result))
    return power.Run.read(folder)


@pytest.mark.parametrize(
    ("products", "said"),
    [
        ([[6000.0, 5.0, 1.2]] * 5, "hwmon VDD_IN tells 6e+03 W, but its volts by its amperes are 6 W: 1,000 times"),
        ([[0.006, 5.0, 1.2]] * 5, "tells 0.006 W, but its volts by its amperes are 6 W: a thousandth, so a unit is"),
        ([[6.0, 5.0, 1200.0]] * 5, "tells 6 W, but its volts by its amperes are 6e+03 W: a thousandth"),
        ([[6.0, 5.0, 9e5]] * 5, "but its volts by its amperes are 4.5e+06 W"),
        ([[6e-6, 5.0, 1.2]] * 5, "a millionth"),
        ([[6.0, 0.0, 1.2]] * 5, "tells 6 W, but its volts by its amperes are 0 W"),
        ([[7.0, 5.0, 1.2]] * 5, "tells 7 W, but its volts by its amperes are 6 W"),
    ],
)
def test_watts_that_are_not_volts_by_amperes_give_no_joules(
    tmp_path: Path, products: list[list[float]], said: str
) -> None:
    found = kept(tmp_path, products=products).per_inference(0)
    assert found["gross_j"]["value"] is None
    assert said in found["gross_j"]["invalid"]


def test_watts_that_are_volts_by_amperes_do(tmp_path: Path) -> None:
    odd = [[6.0, 5.0, 1.2], [6.3, 5.0, 1.19], [5.7, 5.0, 1.22], [2.0, 5.0, 1.2], [6.0, 5.0, 0.0]]
    found = kept(tmp_path, products=odd).per_inference(0)
    assert found["gross_j"]["value"] == pytest.approx(6.0 * 11.5 / 100, rel=0.01)


def test_a_profile_narrows_what_can_be(tmp_path: Path) -> None:
    """0.5 W told as 500 W is below what any board may draw, and ten times above what this one does."""
    (tmp_path / "board.toml").write_text(PROFILE)
    run = kept(tmp_path / "run", watts=500.0)
    assert run.per_inference(0, power.most_w(None))["gross_j"]["value"] is not None
    lost = run.per_inference(0, power.most_w(load(tmp_path / "board.toml")))["gross_j"]
    assert "a reading of 500 W, at most 60 W can be: is the unit right?" in lost["invalid"]


@pytest.mark.parametrize(
    ("watts", "sensor", "given", "verdict", "said"),
    [
        (4.0, "hwmon:VDD_IN", None, "pass", "power at work is within the budget of 5 W"),
        (6.0, "hwmon:VDD_IN", None, "fail", "power at work is over the budget of 5 W"),
        (5.0, "hwmon:VDD_IN", None, "undecided", "the interval of power at work holds the budget of 5 W"),
        (4.0, "hwmon:VDD_CPU_GPU_CV", None, "undecided", "whether hwmon:VDD_CPU_GPU_CV feeds the whole board is not"),
        (4.0, "hwmon:VDD_CPU_GPU_CV", 5.0, "pass", "is within"),
        (6.0, "hwmon:VDD_CPU_GPU_CV", None, "fail", "is over"),
        (4.0, "hwmon:ina226 --whole-board", None, "pass", "is within"),
        (4.0, "power_supply:BAT0", None, "pass", "is within"),
        (4.0, "rapl:package-0", None, "undecided", "but the sensor sees a part of the board only"),
        (6.0, "rapl:package-0", None, "fail", "is over"),
        (4.0, "rapl:package-0", 5.0, "pass", "is within"),
        (4.0, "hwmon:VDD_IN", 3.0, "fail", "is over the budget of 3 W"),
        (2000.0, "hwmon:VDD_IN", None, "undecided", "power at work is not known"),
    ],
)
def test_a_budget_is_judged_by_the_interval(
    tmp_path: Path, watts: float, sensor: str, given: float | None, verdict: str, said: str
) -> None:
    (tmp_path / "board.toml").write_text(PROFILE)
    demands = power.demands(load(tmp_path / "board.toml"), given, None)
    named, _, whole = sensor.partition(" ")
    kind, _, rail = named.partition(":")
    result = kept(tmp_path / "run", watts, kind).per_inference(0)
    judged = power.judge(result, demands, power.unseen(kind, rail, bool(whole)))
    assert judged is not None
    assert (judged["verdict"], said in judged["reason"]) == (verdict, True), judged
    assert power.judge(result, power.demands(None, None, None)) is None


# What is measured again


class Pauses:
    """Of a session, what `settled` asks for."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)


STEADY: dict[str, Any] = {"executed": [EXECUTED], "conditions": [QUIET, QUIET]}
SLOWER = {**STEADY, "counts": (100, 94, 88)}
HOT = {**STEADY, "conditions": [QUIET, {**QUIET, "cooling": ["cpufreq-cpu0 2"]}]}
LOUD = {**QUIET, "others": {"seconds": 1.0, "cores": 0.9, "busiest": [{"name": "cc1", "pid": 7, "cores": 0.9}]}}
BESIDE = {**STEADY, "conditions": [QUIET, LOUD]}


@pytest.mark.parametrize(
    ("runs", "why", "still"),
    [
        ([STEADY], None, []),
        ([BESIDE], None, ["other programs used up to 0.90 cores"]),  # the next run would meet it, too
        ([SLOWER, STEADY], "drift: an inference of the later windows takes more time, ratio 1.136", []),
        ([HOT, STEADY], "the board throttled", []),
        ([HOT, SLOWER], "the board throttled", ["drift: an inference of the later windows"]),
    ],
)
def test_a_disturbed_run_is_repeated_once_after_a_cool_down(
    runs: list[dict[str, Any]], why: str | None, still: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    taken, session = iter(runs), Pauses()
    folder = tmp_path / "run"

    def take() -> power.Run:
        return kept(folder, **next(taken))

    found = power.settled(session, take, folder, lambda event: said.append(event["what"]))  # type: ignore[arg-type]
    assert next(taken, None) is None
    assert session.waited == [measure.COOL_DOWN_S] * (len(runs) - 1)
    read = power.Run.read(folder)
    assert read.result == found.result
    marks = read.remarks()
    assert len(marks) == len(still)
    assert all(words in mark for words, mark in zip(still, marks, strict=True))
    if why is None:
        assert (read.result.get("repeated"), said) == (None, [])
    else:
        assert why in read.result["repeated"]
        assert said[0] == f"{read.result['repeated']}; measuring again after {measure.COOL_DOWN_S:.0f} s"


@pytest.mark.parametrize("how", ["--no-repeat", "--meter"])
def test_some_runs_are_only_marked(how: str, tmp_path: Path) -> None:
    """A meter's recording ends with the run: nobody may be there to begin another."""
    found = kept(tmp_path / "run", **HOT)
    if how == "--meter":
        found.result["meter"] = {"kind": "csv", "place": "log.csv"}
    session, repeat = Pauses(), how != "--no-repeat"
    same = power.settled(session, lambda: found, tmp_path / "run", pytest.fail, repeat)  # type: ignore[arg-type]
    assert same is found
    assert (session.waited, found.result.get("repeated")) == ([], None)
    assert "the board throttled" in found.remarks()[0]


# The page


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    """What `power --json` prints of such a run."""
    run = kept(folder)
    times, watts = run.watts()
    board = {"model": "A <b>board</b>", "hostname": "b", "cpu_model": "cpu"}
    names = ("net", "<script>window.hacked = 1</script>")
    judged = {"verdict": "pass", "reason": "power at work is within the budget of 7 W"}
    return {
        **{"device": "local", "board": board, "alignment": None, "random_inputs": False, "verdict": "pass"},
        "disturbances": [],
        "sensor": {**run.result["sensor"], "how": "measured", "failures": {"no answer": 2}},
        "results": [{"name": name, **run.per_inference(0), "verdict": judged} for name in names],
        "sampler_overhead": {"value": 1.001, "interval": [0.99, 1.01], "n": 6, "how": "measured", "invalid": None},
        "watts": {"first_s": 0.0, "seconds": times.tolist(), "power_w": watts.tolist()},
        "marks": run.result["marks"],
        **changes,
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path, scheme: str, width: int) -> None:
    shown = document(tmp_path / "run")
    out = power_page.write(shown, tmp_path / "page.html")
    page = out.read_text(encoding="utf-8")
    addresses = Addresses.of(page)
    assert set(addresses.found) <= {"data:,"}
    assert addresses.handlers == []
    assert not re.search(NETWORK, own_text(page))
    browser.open(out, width, scheme)
    (plot,) = browser.run(PAINTED)
    assert browser.log() == []
    assert plot["id"] == "watts"
    assert plot["inked"] > 0.2, "the windows are shaded"
    assert plot["colours"] > 20
    scrolled, client, inner = browser.run(WIDTHS)
    assert inner == width
    assert scrolled <= client <= width
    assert browser.run("return window.hacked") is None
    said = browser.run("return document.querySelector('main').innerText")
    for words in (
        "sensor hwmon:VDD_IN",
        *(units.quantity(shown["results"][0][key]["value"], "j") for key in ("gross_j", "net_j")),
        "2.00 W",
        "2 readings failed: no answer",
        "within the budget",
    ):
        assert words in said, words


def test_shades_lie_where_the_windows_are(tmp_path: Path) -> None:
    plot = power_page.view(document(tmp_path / "run"))["plot"]
    assert [(band["from"], band["to"], band["index"]) for band in plot["bands"]][:2] == [(2.0, 8.0, -1), (8.0, 19.5, 0)]
    assert (plot["y_title"], plot["points"][100]) == ("Power (W)", [pytest.approx(10.0), 6.0])


def test_a_page_takes_the_place_of_its_own_kind_only(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    nothing = {"first_s": 0.0, "seconds": [], "power_w": []}
    power_page.write(document(tmp_path / "run", watts=nothing, marks=[]), out)
    assert "Nothing was measured that could be drawn." in out.read_text(encoding="utf-8")
    power_page.write(document(tmp_path / "run"), out)
    out.write_text("mine")
    with pytest.raises(power_page.against_page.ConfigError, match="or an earlier page of power"):
        power_page.write(document(tmp_path / "run"), out)
    assert out.read_text() == "mine"
