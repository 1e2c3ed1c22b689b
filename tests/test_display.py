"""Progress on stderr: what can be counted shows the time left; what cannot, the time that it took before."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import EDGEOPT

from edgeopt.cli import display
from edgeopt.cli.display import Display

Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets what the display's clock shows from now on; its first reading is 0."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def convert(cache: Path, clock: Clock, seconds: float, subject: str = "model") -> None:
    with Display(subject, cache) as shown:
        shown.event({"event": "stage", "what": "converting"})
        clock(seconds)
        shown.event({"event": "stage", "what": "comparing"})
        clock(0.1)


def test_a_step_says_how_long_it_took_the_last_time(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(tmp_path, clock, 7.4)
    assert capsys.readouterr().err == "converting\ncomparing\n"
    convert(tmp_path, clock, 1.0)
    assert capsys.readouterr().err == "converting, about 7 s\ncomparing\n"
    convert(tmp_path, clock, 1.0)  # quick now: nothing worth saying
    assert capsys.readouterr().err == "converting\ncomparing\n"
    convert(tmp_path, clock, 7.4)
    convert(tmp_path, clock, 7.4, "another model")
    assert "about" not in capsys.readouterr().err


def test_a_step_that_failed_says_nothing_of_its_time(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        with Display("model", tmp_path) as shown:
            shown.event({"event": "stage", "what": "converting"})
            clock(60.0)
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="broke"):
        broken()
    convert(tmp_path, clock, 1.0)
    assert "about" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', "\udcff"])
def test_a_damaged_file_of_durations_costs_the_estimates_only(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "durations.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    convert(tmp_path, clock, 7.4)
    assert capsys.readouterr().err == "converting\ncomparing\n"
    assert json.loads((tmp_path / "durations.json").read_text()) == {"model: converting": 7.4}


def test_what_is_counted_shows_the_time_left(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Display("model", tmp_path) as shown:
        for done in range(0, 40, 10):
            shown.event({"event": "progress", "what": f"training (loss {done})", "done": done, "of": 40})
            clock(10.0)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "training (loss 10): 10/40, about 30 s left",
        "training (loss 20): 20/40, about 20 s left",
        "training (loss 30): 30/40, about 10 s left",
    ]


def test_a_terminal_shows_a_bar_and_a_running_clock(tmp_path: Path) -> None:
    """A real terminal: bench on this machine, of random tensors, with its bar and the time left."""
    from boards import dense_tflite

    (tmp_path / "model.tflite").write_bytes(dense_tflite())
    leader, follower = pty.openpty()
    command = [str(EDGEOPT), "bench", str(tmp_path / "model.tflite"), "--random", "--no-repeat"]
    command += ["--root", str(tmp_path / "board")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stderr=follower, stdout=subprocess.DEVNULL, env=environment)
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 4096):
            shown += data
    except OSError:  # the terminal ends with its last writer
        pass
    os.close(leader)
    assert process.wait(60) == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"measuring latency .*\d+/12 0:00:0\d", text), text[-500:]
