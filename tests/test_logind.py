"""A board whose logind ends the processes of a login: jobs are started outside of it, or the user is warned.

The last tests run a real logind. Before them, loginctl and systemd-run are stand-ins: what loginctl prints was recorded
on Debian 12, and systemd-run keeps its words and runs the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from boards import bench_request, fake_model, long_bench, samples, ssh_address, until
from edgeopt_agent import jobs, logind, store
from servers import ORDINARY, ROOT
from systemd_board import SystemdBoard, systemd_board

from edgeopt.device import open_transport
from edgeopt.device.session import Placement, Session

ME = pwd.getpwuid(os.geteuid()).pw_name
QUIET = "KillUserProcesses=no\nKillExcludeUsers=root\nKillOnlyUsers=\n"


@pytest.mark.parametrize(
    ("text", "user", "killed"),
    [
        (QUIET, "pi", False),
        (QUIET.replace("=no", "=yes"), "pi", True),
        (QUIET.replace("=no", "=yes"), "root", False),
        ("KillUserProcesses=yes\nKillExcludeUsers=root pi\n", "pi", False),
        ("KillUserProcesses=yes\nKillExcludeUsers=root\nKillOnlyUsers=guest\n", "pi", False),
        ("KillUserProcesses=yes\nKillExcludeUsers=\nKillOnlyUsers=guest pi\n", "pi", True),
        ("", "pi", False),
    ],
)
def test_whose_processes_end_with_the_login(text: str, user: str, killed: bool) -> None:
    assert logind.kills(logind.parse_properties(text), user) is killed


class Systemd:
    """Stand-ins for loginctl and systemd-run, the only commands there; `asked` are systemd-run's words so far."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self._log = folder / "asked"
        self.add("true", "exit 0")

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def login(self, kills: str, linger: str, excluded: str = "") -> None:
        manager = f"KillUserProcesses={kills}\nKillExcludeUsers={excluded}\nKillOnlyUsers="
        self.add("loginctl", f'case "$*" in *Linger*) echo Linger={linger};; *) echo "{manager}";; esac')

    def runs(self, code: int = 0) -> None:
        last = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
        refuse = "echo Failed to connect to bus >&2; exit 1" if code else last
        self.add("systemd-run", f'echo "$*" >> {self._log}\n{refuse}')

    @property
    def asked(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd(tmp_path)
    monkeypatch.setattr(logind, "BOOTED", str(tmp_path))
    monkeypatch.setenv("PATH", str(made.bin))
    return made


def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logind.os, "geteuid", lambda: 65534)


def test_nothing_is_asked_of_systemd_where_jobs_live_on(systemd: Systemd) -> None:
    assert logind.escape() == ([], None)
    systemd.login("no", "no")
    systemd.runs()
    assert logind.escape() == ([], None)
    systemd.login("yes", "no", excluded=ME)
    assert logind.escape() == ([], None)
    assert systemd.asked == []


def test_an_ordinary_user_needs_lingering(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch)
    name = pwd.getpwuid(65534).pw_name
    systemd.runs()
    systemd.login("yes", "no")
    prefix, warning = logind.escape()
    assert prefix == []
    assert warning is not None
    assert f"loginctl enable-linger {name}" in warning
    systemd.login("yes", "yes")
    prefix, warning = logind.escape()
    assert prefix[:3] == ["systemd-run", "--user", "--scope"]
    assert warning is None


def test_a_systemd_run_that_fails_or_is_missing_is_a_warning(systemd: Systemd) -> None:
    systemd.login("yes", "yes")
    assert "there is no systemd-run" in str(logind.escape()[1])
    systemd.runs(code=1)
    prefix, warning = logind.escape()
    assert prefix == []
    assert "Failed to connect to bus" in str(warning)


def test_a_job_is_started_outside_the_login_and_ends_as_ever(systemd: Systemd, tmp_path: Path) -> None:
    systemd.login("yes", "yes")
    systemd.runs()
    root = tmp_path / "root"
    for name in ("store", "jobs", "activations", "releases"):
        (root / name).mkdir(parents=True)
    blobs = []
    for data in (fake_model(), samples()):
        sha256 = hashlib.sha256(data).hexdigest()
        store.put(str(root), sha256, len(data), 0, data)
        blobs.append(sha256)
    jobs.start(str(root), "bench-1", bench_request(blobs[:1], blobs[1:]))
    offset, now = 0, {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = jobs.poll(str(root), "bench-1", offset, 1.0)
        offset = now["offset"]
        if now["state"] != "running":
            break
    assert now["state"] == "done", now
    started = [words for words in systemd.asked if "bench-1" in words]
    assert len(started) == 1
    assert "--scope" in started[0]
    assert sys.executable in started[0]
    assert json.loads((root / "jobs" / "bench-1" / "process.json").read_text())["pid"]


# A real logind


def begun(session: Session, job: str) -> None:
    """Start a bench that lasts; it is in its middle."""
    session.request("job.start", job=job, request=long_bench(session, seconds=6.0))
    until(lambda: session.request("job.poll", job=job, offset=0, wait_s=0.5)["events"], "the middle of the job")


def opened(board: SystemdBoard, said: list[dict[str, Any]]) -> Session:
    place = Placement(f"{board.home}/edgeopt", sys.executable)
    return Session(open_transport(ssh_address(board)), place, on_event=said.append)


def state_after_a_logout(board: SystemdBoard, said: list[dict[str, Any]]) -> str:
    """Of a job, after the login that started it is over and another one is there."""
    with opened(board, said) as session:
        begun(session, "bench-1")
    until(lambda: "session-" not in board.run("systemctl", "list-units", "--plain", "--type=scope"), "the login's end")
    with opened(board, said) as session:
        until(lambda: now_of(session)["state"] != "running", "the end of the job")
        return str(now_of(session)["state"])


def now_of(session: Session) -> dict[str, Any]:
    now: dict[str, Any] = session.request("job.poll", job="bench-1", offset=0, wait_s=0.5)
    return now


def warnings(said: list[dict[str, Any]]) -> list[str]:
    return [event["what"] for event in said if event["event"] == "waiting"]


def test_without_lingering_the_user_is_warned_of_what_then_happens() -> None:
    said: list[dict[str, Any]] = []
    with systemd_board(ORDINARY) as board:
        assert state_after_a_logout(board, said) == "lost"
        assert "loginctl enable-linger board" in warnings(said)[0]


def test_with_lingering_a_job_outlives_the_login() -> None:
    said: list[dict[str, Any]] = []
    with systemd_board(ORDINARY) as board:
        board.run("loginctl", "enable-linger", "board")
        assert state_after_a_logout(board, said) == "done"
        assert warnings(said) == []


def test_roots_jobs_outlive_the_login_where_even_roots_are_ended() -> None:
    said: list[dict[str, Any]] = []
    with systemd_board(ROOT) as board:
        assert state_after_a_logout(board, said) == "done"
        assert warnings(said) == []
