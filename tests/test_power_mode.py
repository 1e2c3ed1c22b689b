"""The governor and the frequency cap for one measurement; they return however it ends. The board's files are a tree
laid out as Documentation/admin-guide/pm/cpufreq.rst says, put over /sys/devices/system/cpu in a mount namespace."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import dense_tflite
from conftest import EDGEOPT
from edgeopt_agent import watch

WITH_TREE = 'mount --bind "$1" /sys/devices/system/cpu && shift && exec "$@"'
POLICIES = {
    "policy0": {"cpuinfo_min_freq": 600000, "cpuinfo_max_freq": 1500000, "scaling_max_freq": 1500000},
    "policy2": {"cpuinfo_min_freq": 600000, "cpuinfo_max_freq": 2200000, "scaling_max_freq": 2000000},
}
GOVERNORS = "ondemand powersave performance"


class Board:
    def __init__(self, folder: Path) -> None:
        self.tree, self.root, self.model = folder / "cpu", folder / "root", folder / "model.tflite"
        self.model.write_bytes(dense_tflite())
        for policy, numbers in POLICIES.items():
            place = self.tree / "cpufreq" / policy
            place.mkdir(parents=True)
            files = {**numbers, "scaling_governor": "ondemand", "scaling_available_governors": GOVERNORS}
            for name, value in files.items():
                (place / name).write_text(f"{value}\n")
            cpu = self.tree / f"cpu{policy[-1]}"
            cpu.mkdir()
            (cpu / "cpufreq").symlink_to(f"../cpufreq/{policy}")
        (self.tree / "cpu0" / "online").write_text("1\n")

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [str(EDGEOPT), *options, "--root", str(self.root), "--json"]
        in_tree = ["unshare", "--mount", "sh", "-c", WITH_TREE, "sh", str(self.tree), *command]
        return subprocess.Popen(in_tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def bench(self, *options: str) -> tuple[int, str, str]:
        with self.start("bench", str(self.model), "--random", *options) as bench:
            out, errors = bench.communicate(timeout=300)
            return bench.returncode, out, errors

    def now(self) -> list[tuple[str, str]]:
        """(governor, cap in kHz) of each policy."""
        places = [self.tree / "cpufreq" / policy for policy in POLICIES]
        files = ("scaling_governor", "scaling_max_freq")
        return [tuple((place / name).read_text().strip() for name in files) for place in places]  # type: ignore[misc]

    def wait_for(self, wanted: list[tuple[str, str]]) -> None:
        deadline = time.monotonic() + 60
        while self.now() != wanted:
            assert time.monotonic() < deadline, self.now()
            time.sleep(0.02)


BEFORE = [("ondemand", "1500000"), ("ondemand", "2000000")]
HELD = [("performance", "1200000"), ("performance", "1200000")]
WANTED = ("--governor", "performance", "--frequency-cap", "1.2e9")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a command another /sys (a mount namespace)")
    made = Board(tmp_path)
    yield made
    for file in (made.root / "jobs").glob("*/process.json"):
        kill_session(json.loads(file.read_text())["pid"])


def kill_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def test_it_is_held_recorded_and_given_back(board: Board) -> None:
    code, out, errors = board.bench(*WANTED)
    assert code == 0, errors
    mode = json.loads(out)["power_mode"]
    assert (mode["governor"], mode["frequency_max_hz"]) == ("performance", [1.2e9, 1.2e9])
    assert board.now() == BEFORE
    assert not (board.root / "power-mode.json").exists()


def test_it_is_recorded_and_left_alone_when_nobody_asks(board: Board) -> None:
    code, out, errors = board.bench()
    assert code == 0, errors
    mode = json.loads(out)["power_mode"]
    assert (mode["governor"], mode["frequency_max_hz"]) == ("ondemand", [1.5e9, 2e9])
    assert board.now() == BEFORE


def test_a_killed_job_gives_it_back(board: Board) -> None:
    with board.start("bench", str(board.model), "--random", "--mode", "normal", *WANTED) as bench:
        board.wait_for(HELD)
        (process,) = (board.root / "jobs").glob("*/process.json")
        kill_session(json.loads(process.read_text())["pid"])
        board.wait_for(BEFORE)
        _, errors = bench.communicate(timeout=60)
    assert bench.returncode == 4, errors


def test_when_the_guardian_is_killed_too_the_next_status_gives_it_back(board: Board) -> None:
    with board.start("bench", str(board.model), "--random", "--mode", "normal", *WANTED) as bench:
        board.wait_for(HELD)
        (process,) = (board.root / "jobs").glob("*/process.json")
        for pid in guardians(board.root):
            os.kill(pid, signal.SIGKILL)
        kill_session(json.loads(process.read_text())["pid"])
        bench.communicate(timeout=60)
    assert board.now() == HELD
    with board.start("status") as status:
        _, errors = status.communicate(timeout=60)
    assert board.now() == BEFORE, errors


def test_a_processor_that_goes_away_leaves_no_other_one_capped(board: Board) -> None:
    """Its policy goes with it; when it is back, what was its own is given back as well."""
    gone, away = board.tree / "cpufreq" / "policy2", board.tree / "away"
    with board.start("bench", str(board.model), "--random", "--no-repeat", *WANTED) as bench:
        board.wait_for(HELD)
        gone.rename(away)
        _, errors = bench.communicate(timeout=60)
    assert bench.returncode == 0, errors
    away.rename(gone)
    assert board.now() == [BEFORE[0], HELD[1]]
    with board.start("status") as status:
        status.communicate(timeout=60)
    assert board.now() == BEFORE
    assert not (board.root / "power-mode.json").exists()


def guardians(root: Path) -> list[int]:
    record = str(root / "power-mode.json").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if record in words:
                found.append(int(entry.name))
    assert found
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--governor", "fast"), ["'fast'", "policy0", "ondemand, powersave, performance"]),
        (("--frequency-cap", "1e8"), ["100 MHz", "policy0", "600 to 1500 MHz"]),
    ],
)
def test_what_the_board_cannot_do_is_refused_before_anything_is_set(
    board: Board, options: tuple[str, ...], words: list[str]
) -> None:
    code, _, errors = board.bench(*options)
    assert code == 4
    assert not [word for word in words if word not in errors], errors
    assert board.now() == BEFORE


def test_a_cap_above_the_small_cores_is_their_highest(board: Board) -> None:
    code, out, errors = board.bench("--frequency-cap", "1.8e9")
    assert code == 0, errors
    assert json.loads(out)["power_mode"]["frequency_max_hz"] == [1.5e9, 1.8e9]
    assert board.now() == BEFORE


def test_a_board_without_frequency_control_says_so(board: Board) -> None:
    for policy in POLICIES:
        (board.tree / "cpufreq" / policy).rename(board.tree / policy)
    code, _, errors = board.bench("--governor", "performance")
    assert code == 4
    assert "no frequency control" in errors


def test_the_speed_of_a_userspace_governor_is_given_back_with_it(board: Board) -> None:
    policy = board.tree / "cpufreq" / "policy0"
    (policy / "scaling_governor").write_text("userspace\n")
    (policy / "scaling_setspeed").write_text("900000\n")
    with board.start("bench", str(board.model), "--random", *WANTED) as bench:
        board.wait_for(HELD)
        (policy / "scaling_setspeed").write_text("<unsupported>\n")  # as the kernel says under any other governor
        _, errors = bench.communicate(timeout=300)
    assert bench.returncode == 0, errors
    assert board.now() == [("userspace", "1500000"), BEFORE[1]]
    assert (policy / "scaling_setspeed").read_text().strip() == "900000"


def test_a_second_folder_on_the_board_does_not_take_what_the_first_set_for_its_own(board: Board) -> None:
    with board.start("bench", str(board.model), "--random", "--mode", "normal", *WANTED) as bench:
        board.wait_for(HELD)
        second = copy.copy(board)
        second.root = board.root.with_name("second")
        code, _, errors = second.bench("--frequency-cap", "1e9")
        assert code == 4, errors
        assert "another edgeopt folder on this board holds its power mode" in errors
        assert board.now() == HELD
        (process,) = (board.root / "jobs").glob("*/process.json")
        kill_session(json.loads(process.read_text())["pid"])
        board.wait_for(BEFORE)
        bench.communicate(timeout=60)
    code, _, errors = second.bench("--frequency-cap", "1e9")
    assert code == 0, errors
    assert board.now() == BEFORE


def test_the_governors_of_all_cpus_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Board(tmp_path)
    monkeypatch.setattr(watch, "CPU", str(made.tree))
    assert watch.power_mode()["governor"] == "ondemand"
    (made.tree / "cpufreq" / "policy2" / "scaling_governor").write_text("powersave\n")
    assert watch.power_mode()["governor"] == "ondemand, powersave"
