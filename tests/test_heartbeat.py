"""Without a terminal, whatever takes long says so at least every ten seconds; each test takes twenty."""

from __future__ import annotations

import fcntl
import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from boards import dense_bundle
from conftest import EDGEOPT, run_cli

LONGEST_S = 10.0
TAKES_S = 20.0


def quiet_s(process: subprocess.Popen[str], began: float) -> tuple[list[float], list[str]]:
    """(how long it was quiet before each line of stderr, and before its end; the lines)."""
    assert process.stderr is not None
    times, lines = [began], []
    for line in process.stderr:
        times.append(time.monotonic())
        lines.append(line)
    times.append(time.monotonic())
    return [later - earlier for earlier, later in itertools.pairwise(times)], lines


def test_a_library_that_holds_pythons_lock_does_not_silence_a_stage() -> None:
    """As the converters of models do: everything between two events is one call of C."""
    code = f"""
import ctypes, sys
from edgeopt.cli import heartbeat
from edgeopt.cli.display import Display
with heartbeat.beating("edgeopt quantize"), Display("a model") as display:
    display.event({{"event": "stage", "what": "converting"}})
    ctypes.PyDLL(None).sleep({TAKES_S:.0f})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    quiet, lines = quiet_s(process, time.monotonic())
    assert process.wait() == 0
    assert max(quiet[1:]) < LONGEST_S, lines  # the first is Python's own start
    assert any(re.match(r"converting: \d+ s so far", line) for line in lines)


def test_a_command_that_waits_for_the_board_says_so(tmp_path: Path) -> None:
    dense_bundle(tmp_path / "dense.edgeopt", 4, 3)
    root = tmp_path / "root"
    assert run_cli("status", "--root", root).returncode == 0
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [EDGEOPT, "flash", tmp_path / "dense.edgeopt", "--root", root]
        process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        free = threading.Timer(TAKES_S, fcntl.flock, [lock, fcntl.LOCK_UN])
        free.start()
        quiet, lines = quiet_s(process, time.monotonic())
        free.join()
    assert process.wait() == 0
    assert max(quiet) < LONGEST_S, lines
    assert any(re.match(r"another job is running on this board: \d+ s so far", line) for line in lines)


def test_a_short_command_says_nothing_of_the_kind(tmp_path: Path) -> None:
    done = run_cli("status", "--root", tmp_path / "root")
    assert (done.returncode, "so far" in done.stderr) == (0, False)
