"""Disks that fail, fill up, or have no name for another file left: what is told is true, and there is a way back."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import dense_bundle
from edgeopt_agent import jobs, room, store
from edgeopt_agent.wire import RemoteError
from fake_releases import activate, current, release

from edgeopt import bundle as bundles
from edgeopt import flash as flashing
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session
from edgeopt.errors import AgentFailure

ONE, TWO, THREE = release(1), release(2), release(3)


def session(root: Path, **how: object) -> Session:
    return Session(LocalTransport(), Placement(str(root), sys.executable), patience_s=5.0, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("interposer") / "failing.so"
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


Fail = Callable[..., Path]


@pytest.fixture
def fail(interposer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """From now on that call fails on the board for such paths; the flag that it does so."""

    def begin(call: str, path: str, error: int, once: bool = True) -> Path:
        flag = tmp_path / "fails"
        flag.touch()
        told = {"FLAG": flag, "CALL": call, "PATH": path, "ERRNO": error, **({"ONCE": 1} if once else {})}
        for name, value in told.items():
            monkeypatch.setenv(f"FAIL_{name}", str(value))
        monkeypatch.setenv("LD_PRELOAD", str(interposer))
        return flag

    return begin


def flash(root: Path, folder: Path) -> str:
    path = folder / "dense.edgeopt"
    dense_bundle(path, 4, 3)
    opened = bundles.read(path)
    with session(root) as board:
        flashing.flash(board, opened, sys.executable)
    return opened.release


@pytest.mark.parametrize(("call", "path"), [("fsync", ".part"), ("fsync", "/store"), ("write", ".part")])
def test_bytes_that_the_disk_did_not_take_are_sent_again(tmp_path: Path, fail: Fail, call: str, path: str) -> None:
    """They can be read from memory, and the next fsync succeeds; only writing them again makes them durable."""
    root = tmp_path / "board"
    activate(root, ONE)
    known = set(os.listdir(root / "store"))
    flag = fail(call, path, errno.EIO, once=call == "fsync")
    with pytest.raises(AgentFailure, match="cannot be written") as caught:
        flash(root, tmp_path)
    assert f"({ONE.id[:12]}) is current there" in str(caught.value)
    assert set(os.listdir(root / "store")) == known
    flag.unlink(missing_ok=True)
    made = flash(root, tmp_path)
    assert current(root) == (made, ONE.id)


def test_an_event_that_is_cut_spoils_no_other(tmp_path: Path, fail: Fail) -> None:
    root = tmp_path / "board"
    activate(root, ONE)
    fail("write", "events.jsonl", errno.ENOSPC, once=False)
    made = flash(root, tmp_path)
    assert current(root) == (made, ONE.id)
    job = next(path for path in (root / "jobs").iterdir() if path.name.startswith("activate-"))
    assert (job / "events.jsonl").read_bytes() == b""
    assert "an event could not be written" in (job / "log").read_text()
    (job / "events.jsonl").write_bytes(
        b'{"event": "sta{"event": "stage", "what": "x"}\n7\n{"event": "stage", "what": "y"}\n'
    )
    told = jobs.poll(str(root), job.name, 0, 0.0)
    assert [event["what"] for event in told["events"]] == ["y"]


@pytest.mark.parametrize("once", [True, False])
def test_an_outcome_that_cannot_be_written_is_told_as_that(tmp_path: Path, fail: Fail, once: bool) -> None:
    root = tmp_path / "board"
    activate(root, ONE)
    fail("rename", "result.json", errno.ENOSPC, once=once)
    if once:
        made = flash(root, tmp_path)
        assert current(root) == (made, ONE.id)
        return
    with pytest.raises(AgentFailure, match="did not take its outcome") as caught:
        flash(root, tmp_path)
    assert "killed" not in str(caught.value)
    assert "dense" in str(caught.value).rpartition(";")[2]  # the new release is current, and that is said
    assert current(root)[1] == ONE.id


def test_a_disk_that_takes_nothing_more_in_the_middle_of_a_change(tmp_path: Path, fail: Fail) -> None:
    """The job's log neither."""
    root = tmp_path / "board"
    activate(root, ONE)
    flag = fail("write", f"{root}/", errno.ENOSPC, once=False)
    flag.unlink()
    (root / "hooks").mkdir()
    (root / "hooks" / "pause").write_text(f"#!/bin/sh\ntouch {flag}\n")
    (root / "hooks" / "pause").chmod(0o755)
    with pytest.raises(AgentFailure, match="did not take its outcome") as caught:
        flash(root, tmp_path)
    assert f"({ONE.id[:12]}) is current there" in str(caught.value)
    assert current(root) == (ONE.id, None)
    flag.unlink()
    (root / "hooks" / "pause").unlink()
    made = flash(root, tmp_path)
    assert current(root) == (made, ONE.id)


def test_a_rollback_that_fails_says_what_is_current(tmp_path: Path) -> None:
    root = tmp_path / "board"
    activate(root, ONE)
    with session(root) as board, pytest.raises(AgentFailure, match="no earlier release") as caught:
        flashing.rollback(board)
    assert f"({ONE.id[:12]}) is current there" in str(caught.value)
    assert caught.value.kind == "no-release"


# No room.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A board on a disk of 8 MiB with 1,000 names."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=1000,mode=755", "tmpfs", str(mounted)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield mounted / "board"
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(root: Path, what: str) -> None:
    with session(root):
        pass  # the agent is there by now
    disk = os.statvfs(root)
    if what == "names":
        for number in range(disk.f_favail):
            (root.parent / str(number)).touch()
    else:
        (root.parent / "full").write_bytes(bytes(disk.f_bavail * disk.f_frsize))


def loose(root: Path, size: int) -> Path:
    """A blob that no release uses, just used."""
    data = os.urandom(size)
    path = root / "store" / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("what", ["bytes", "names"])
def test_there_is_a_way_back_on_a_full_disk(small_disk: Path, what: str) -> None:
    root = small_disk
    for made in (ONE, TWO, THREE):
        activate(root, made)
        room.tidy(str(root))
    fill(root, what)
    with session(root) as board:
        board.status()
        done = flashing.rollback(board)
    assert done["activation"]["release"] == TWO.id
    assert current(root) == (TWO.id, ONE.id)


def test_what_nothing_uses_goes_before_the_reserve(small_disk: Path) -> None:
    root = small_disk
    for made in (ONE, TWO):
        activate(root, made)
        room.tidy(str(root))
    unused = loose(root, 1 << 20)
    fill(root, "bytes")
    with session(root) as board:
        flashing.rollback(board)
    assert not unused.exists()
    assert (root / "reserve" / "space").exists()
    assert current(root) == (ONE.id, None)


@pytest.mark.parametrize("age_s", [7200.0, -3e7], ids=["two hours old", "a year ahead"])
def test_a_flash_takes_the_room_of_what_nothing_uses(small_disk: Path, tmp_path: Path, age_s: float) -> None:
    """A clock that went back makes nothing young for ever."""
    root = small_disk
    activate(root, ONE)
    unused = [loose(root, 1 << 20) for _ in range(3)]
    for path in unused:
        os.utime(path, (time.time() - age_s,) * 2)
    fill(root, "bytes")
    made = flash(root, tmp_path)
    assert current(root) == (made, ONE.id)
    assert not all(path.exists() for path in unused)


def test_without_room_a_job_is_refused_and_the_release_stays(small_disk: Path, tmp_path: Path) -> None:
    root = small_disk
    activate(root, ONE)
    fill(root, "names")
    with pytest.raises(AgentFailure) as caught:
        flash(root, tmp_path)
    assert caught.value.kind == "no-space"
    assert current(root) == (ONE.id, None)
    (root.parent / "0").unlink()
    with pytest.raises(RemoteError, match="names for files free"):
        jobs.start(str(root), "x", {"kind": "bench"})


def test_blobs_of_the_future_are_the_first_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate(tmp_path / "board", ONE)
    root = tmp_path / "board"
    monkeypatch.setattr(store, "QUOTA_BYTES", 2500)
    ahead, old, young = (loose(root, 1000) for _ in range(3))
    for path, age_s in ((ahead, -3e7), (old, 2e5), (young, -60.0)):
        os.utime(path, (time.time() - age_s,) * 2)
    room.tidy(str(root))
    assert [path.exists() for path in (ahead, old, young)] == [False, True, True]
