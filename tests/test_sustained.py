"""A board that slows down in the middle of a long run: the end decides."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import beside, dense_tflite
from conftest import EDGEOPT, Run
from hypothesis import given
from hypothesis import strategies as st
from report_browser import PAINTED, Addresses, browsing
from rich.console import Console

from edgeopt import sustained
from edgeopt.measure import Comparison
from edgeopt.report import measured, sustained_page

WITH_TREE = 'mount --bind "$1" /sys/devices/system/cpu && shift && exec "$@"'
Done = subprocess.CompletedProcess[str]
PROFILE = """
schema = 1
name = "a test board"
description = "slows down"
runtimes = ["tflite"]
[cpu]
architecture = "x86_64"
[board]
root = "/tmp/unused"
python = "python3"
[budget]
latency_p50_s = {budget}
"""


def reading(at_s: float, hertz: float) -> dict[str, Any]:
    return {"at_s": at_s, "temperature_c": 40.0 + at_s, "frequency_hz": [hertz, hertz], "others": None}


def made(first: list[float], second: list[float]) -> Comparison:
    """Two artifacts whose rounds take these seconds, a little scattered; 40 samples a block."""
    spread = np.linspace(0.99, 1.01, 40)
    raw, blocks = [], []
    for index, rounds in enumerate((first, second)):
        invoke = np.concatenate([seconds * spread for seconds in rounds for _ in range(2)])
        raw.append(np.stack([np.zeros_like(invoke), invoke], axis=1))
        blocks += [{"artifact": index, "n": 40, "seconds": 1.0} for _ in range(2 * len(rounds))]
    conditions = [reading(float(second), 1e9 / (second + 1)) for second in range(len(first) + 1)]
    return Comparison("sustained", {"artifacts": [{}, {}], "blocks": blocks, "conditions": conditions}, raw)


def test_the_ranking_at_the_end_is_not_the_ranking_at_the_start() -> None:
    found = made([0.01] * 18 + [0.03] * 18, [0.02] * 36)
    start, end = (sustained.ratio(found, 1, 0, part) for part in ("start", "end"))
    assert start.value == pytest.approx(2.0)
    assert end.value == pytest.approx(2 / 3)
    assert end.interval is not None
    assert end.interval[1] < 1


@pytest.mark.parametrize(
    ("budgets", "verdict"),
    [
        ({"latency_p50_s": 0.04}, "pass"),
        ({"latency_p50_s": 0.02}, "fail"),  # met at the start
        ({"latency_p50_s": 0.04, "latency_p95_s": 0.02}, "fail"),
        ({"latency_p50_s": 0.03}, "undecided"),  # within the interval
        ({"size_bytes": 1.0}, None),
    ],
)
def test_the_end_is_judged(budgets: dict[str, float], verdict: str | None) -> None:
    found = sustained.summary(made([0.01] * 18 + [0.03] * 18, [0.02] * 36), 0)
    assert found["slower"] == pytest.approx(3.0)
    judged, reasons = sustained.verdict(found, budgets)
    assert judged == verdict
    assert len(reasons) == len([name for name in budgets if name.startswith("latency")])


@given(st.lists(st.floats(1e-4, 1.0), min_size=12, max_size=60))
def test_a_curve_has_a_point_for_every_round(rounds: list[float]) -> None:
    curve = sustained.curve(made(rounds, rounds), 1)
    assert curve["p50_s"] == pytest.approx(rounds)
    assert curve["seconds"] == [float(number + 1) for number in range(len(rounds))]
    assert curve["frequency_hz"][0] == pytest.approx(1e9 / 2)


def document(**changes: Any) -> dict[str, Any]:
    """What a sustained `compare --json` prints, as far as its page needs it."""
    found = made([0.01] * 18 + [0.03] * 18, [0.02] * 36)
    results = [
        {"name": name, "marks": [], "sustained": sustained.summary(found, index)}
        for index, name in enumerate(("small.tflite", "<b>large</b>.tflite"))
    ]
    ratios = {f"ratio_{part}": sustained.ratio(found, 1, 0, part).to_json() for part in ("start", "end")}
    board = {"model": "a board", "hostname": "b", "cpu_model": "its CPU"}
    return {"device": "local", "board": board, "results": results, **ratios, **changes}


def test_start_and_end_are_told_where_they_lie() -> None:
    parts = sustained.summary(made([0.01] * 36, [0.02] * 36), 0)["parts"]
    assert parts == {"start": [0.0, 6.0], "end": [30.0, 36.0]}
    assert sustained.summary(made([0.01] * 11, [0.02] * 11), 0)["parts"] == {}


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    out = sustained_page.write(document(), tmp_path / "page.html")
    assert set(Addresses.of(out.read_text(encoding="utf-8")).found) <= {"data:,"}
    with browsing(tmp_path) as browser:
        browser.open(out, 1280, "light")
        plots = browser.run(PAINTED)
        assert browser.log() == []
        assert [plot["id"] for plot in plots] == ["latency", "temperature", "clock"]
        assert all(plot["inked"] > 0.02 for plot in plots)
        said = browser.run("return document.querySelector('main').innerText")
    for words in ("At the end: <b>large</b>.tflite takes 0.67×", "3.00×", "10.0 ms", "30.0 ms"):
        assert words in said, words


def test_a_page_without_readings_says_so(tmp_path: Path) -> None:
    shown = document()
    for result in shown["results"]:
        result["sustained"]["curve"]["frequency_hz"] = [None] * 36
    text = sustained_page.write(shown, tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("This board does not tell it.") == 1


def cpufreq(tree: Path, khz: int) -> None:
    """As the kernel's Documentation/admin-guide/pm/cpufreq.rst names the files; two CPUs."""
    for cpu in (0, 1):
        folder = tree / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("scaling_cur_freq", khz), ("scaling_max_freq", khz), ("scaling_governor", "ondemand")):
            (folder / name).write_text(f"{value}\n")


def slowed_half_way(tmp_path: Path, options: list[str], models: int) -> Done:
    """The command on a board whose clock falls after half of the rounds. The first of its models then works a fifth of
    the time, in turns shorter than a query, as where firmware modulates the clock of a hot core."""
    tree, root = tmp_path / "cpu", tmp_path / "root"
    cpufreq(tree, 1_500_000)
    command = [str(EDGEOPT), *options, "--root", str(root), "--json"]
    in_tree = ["unshare", "--mount", "sh", "-c", WITH_TREE, "sh", str(tree), *command]
    with subprocess.Popen(in_tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        wait_for_round(root, 6)
        with modulated(workers(root, models)[0]):
            cpufreq(tree, 600_000)
            out, errors = bench.communicate(timeout=300)
    return Done(command, bench.returncode, out, errors)


def modulated(pid: int, on_s: float = 0.001, off_s: float = 0.004) -> contextlib.AbstractContextManager[None]:
    """A process that is stopped and goes on, again and again, for as long as it lives."""

    def turns(ended: threading.Event) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not ended.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(off_s)
                os.kill(pid, signal.SIGCONT)
                time.sleep(on_s)

    return beside(turns)


@pytest.fixture
def own_tree() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a command another /sys (a mount namespace)")


@pytest.mark.alone
@pytest.mark.usefixtures("own_tree")
def test_a_board_that_slows_down_half_way_fails_at_the_end(cli: Run, tmp_path: Path) -> None:
    model, profile = tmp_path / "model.tflite", tmp_path / "board.toml"
    model.write_bytes(dense_tflite(8192, 8192))  # longer than a turn of the scheduler on any machine
    options = ["bench", str(model), "--random"]
    quick = json.loads(cli(*options, "--json", "--root", tmp_path / "quick").stdout)["results"][0]["latency"]
    profile.write_text(PROFILE.format(budget=2 * quick["p50_s"]["value"]))
    long = ["--mode", "sustained", "--minutes", "0.4", "--profile", str(profile)]
    done = slowed_half_way(tmp_path, [*options, *long], 1)
    assert done.returncode == 10, done.stderr
    document = json.loads(done.stdout)
    (result,) = document["results"]
    assert document["verdict"] == "fail"
    assert result["sustained"]["slower"] > 1.5
    clock = result["sustained"]["curve"]["frequency_hz"]
    assert (clock[0], clock[-1]) == (1.5e9, 0.6e9)
    assert [mark for mark in result["marks"] if "frequency cap changed between 1500 and 600 MHz" in mark]
    assert [mark for mark in result["marks"] if "second half is slower" in mark]


@pytest.mark.alone
@pytest.mark.usefixtures("own_tree")
def test_the_model_that_was_quicker_at_the_start_loses_at_the_end(tmp_path: Path) -> None:
    """The first model has two thirds of the other's work, and loses most of its time half-way. Six rounds an end: one
    of them that comes too late for the change widens the interval, so the medians are asked for."""
    small, large = tmp_path / "small.tflite", tmp_path / "large.tflite"
    small.write_bytes(dense_tflite(4096, 4096))
    large.write_bytes(dense_tflite(4096, 6144))
    options = ["compare", str(small), str(large), "--random", "--mode", "sustained", "--minutes", "0.6"]
    done = slowed_half_way(tmp_path, options, 2)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    start, end = document["ratio_start"], document["ratio_end"]  # the large one's latency over the small one's
    assert start["value"] > 1.1, (start, end)
    assert end["value"] < 0.8, (start, end)
    shown = io.StringIO()
    measured.render_bench(document, Console(file=shown, width=200))
    told = [line.split(":")[0] for line in shown.getvalue().splitlines() if line.startswith("at the ")]
    assert told[-1] == "at the end"  # what is said last
    clocks = [result["sustained"]["curve"]["frequency_hz"] for result in document["results"]]
    assert [(clock[0], clock[-1]) for clock in clocks] == [(1.5e9, 0.6e9)] * 2


def wait_for_round(root: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        said = "".join(file.read_text() for file in (root / "jobs").glob("*/events.jsonl"))
        if f'"done": {number}, "of": 12' in said and "measuring latency" in said:
            return
        time.sleep(0.005)
    pytest.fail("the bench did not come so far")


def workers(root: Path, models: int) -> list[int]:
    """The workers of the job, in the order of its artifacts."""
    jobs = sorted((root / "jobs").glob("*/process.json"), key=lambda file: file.stat().st_mtime)
    session = json.loads(jobs[-1].read_text())["pid"]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.joinpath("stat").exists():
            fields = entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and "edgeopt_agent.runner" in entry.joinpath("cmdline").read_text():
                found.append((int(fields[19]), int(entry.name)))  # when it was started
    assert len(found) == models, found
    return [pid for _, pid in sorted(found)]
