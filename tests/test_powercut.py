"""The power is cut before the system calls with which a flash changes the board; the board must not care.

Before every fourth call, or with --every-cut (`make boards`) before every single one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_variants import next_version
from conftest import EDGEOPT
from powercut import Event, Point, Run, points, trace, unusable

from edgeopt import bundle as bundles
from edgeopt import flash as flashing
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session

SHARES = 4  # each scenario's cuts are dealt to so many tests, so that workers can share them
FEWEST_CALLS = 50  # fewer events than this: the tracer does not see the board's side
LEFTOVERS = ".new-"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: what fsync costs does not matter here, its place in the order does."""
    memory = Path("/dev/shm")
    if reason := unusable(tmp_path):
        pytest.skip(reason)
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 256 << 20:
        yield tmp_path
        return
    folder = memory / f"edgeopt-powercut-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


class Board:
    """A board's folder that can be put back to where it was."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.root, self._kept = scratch, scratch / "board", scratch / "kept"

    def keep(self) -> None:
        if self.root.exists():
            self.root.rename(self._kept)

    def restore(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if self._kept.exists():
            shutil.copytree(self._kept, self.root, symlinks=True)

    def session(self) -> Session:
        return Session(LocalTransport(), Placement(str(self.root), sys.executable))

    def flash(self, bundle: bundles.Bundle) -> dict[str, Any]:
        with self.session() as session:
            return flashing.flash(session, bundle, sys.executable)

    def status(self) -> dict[str, Any]:
        """From the board's own entry where it exists already, else from a host."""
        entry = self.root / "bin" / "edgeopt-agent"
        if not entry.exists():
            with self.session() as session:
                return session.status()
        done = subprocess.run([str(entry), "status"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def traced(self, arguments: list[str], cut: Point = ("", 0)) -> Run:
        self.restore()
        return trace(arguments, self.root, self.scratch, cut)


def whole_release(root: Path, release: str) -> None:
    """Every byte of a release, hashed here and not by the agent."""
    folder = root / "releases" / release
    text = (folder / "manifest.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == release
    for name, entry in json.loads(text)["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]


def current_of(root: Path) -> dict[str, Any] | None:
    """The record behind `current`, after checking that all that it names is there and agrees; None before the first."""
    link = root / "current"
    if not link.is_symlink():
        assert not link.exists()
        return None
    target = os.readlink(link)
    record: dict[str, Any] = json.loads((link / "record.json").read_text())
    assert target == f"activations/{record['number']}"
    assert os.path.realpath(link / "release") == os.path.realpath(root / "releases" / record["release"])
    whole_release(root, record["release"])
    if record["previous_activation"] is not None:
        before = json.loads((root / f"activations/{record['previous_activation']}/record.json").read_text())
        assert before["number"] == record["previous_activation"] < record["number"]
        whole_release(root, before["release"])
        record["previous_release"] = before["release"]
    return record


def leftovers(root: Path) -> list[str]:
    """Temporary names; a job's folder and the agent's go as a whole, so theirs do no harm."""
    parts = [root, root / "bin", root / "store", *(root / "releases").iterdir(), *(root / "activations").iterdir()]
    return [str(path) for folder in parts for path in folder.iterdir() if path.name.startswith(LEFTOVERS)]


def check_after_cut(board: Board, allowed: list[tuple[str, str | None] | None]) -> None:
    """`current` is one of `allowed` (release, the one a rollback returns to), and the board says the same."""
    record = current_of(board.root)
    found = None if record is None else (record["release"], record.get("previous_release"))
    assert found in allowed
    said = board.status()
    if found is None:
        assert said["current"] is None
        return
    assert (said["current"]["release"], said["current"]["whole"]) == (found[0], True)
    assert (said["previous"] or {}).get("release") == found[1]
    assert said["previous"] is None or said["previous"]["whole"] is True


def check_every_cut(
    board: Board, command: list[str], share: int, allowed: Any, again: Callable[[], None], record_property: Any
) -> None:
    """Cut `command` before every call of this share, check, and let `again` finish the work."""
    counted = sorted(
        points(board.traced(command).events), key=lambda point: may_be_fewer(*point)
    )  # alike for all shares
    assert len(counted) >= FEWEST_CALLS
    said = f"{' '.join(command[:2])}: cut before system calls {share + 1}, {share + 1 + SHARES}, … of {len(counted)}"
    record_property("said", said)
    print(said)
    for k in range(share, len(counted), SHARES):
        label, nth = counted[k]
        cut = board.traced(command, (label, nth))
        at = f"cut before call {k + 1} of {len(counted)}, {label} (number {nth})"
        assert cut.cut or may_be_fewer(label, nth), f"{at}: {cut.output}"
        try:
            check_after_cut(board, allowed)
            again()
            assert leftovers(board.root) == []
        except Exception as error:
            raise AssertionError(f"{at}: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "share" in metafunc.fixturenames:
        own = zlib.crc32(metafunc.function.__name__.encode()) % SHARES
        metafunc.parametrize("share", range(SHARES) if metafunc.config.getoption("--every-cut") else [own])


def may_be_fewer(label: str, nth: int) -> bool:
    """What comes through a pipe is written in as many pieces as it happens to arrive in, and a job is asked for as
    often as its follower comes round."""
    return nth > 1 and (label.startswith("write agent/") or label == "utimensat jobs/activate-*/alive")


def flash_command(board: Board, bundle: Path) -> list[str]:
    return [str(EDGEOPT), "flash", str(bundle), "--root", str(board.root)]


@pytest.fixture
def versions(bundle_file: Path, scratch: Path) -> list[bundles.Bundle]:
    return [next_version(bundle_file, scratch / f"{number}.edgeopt", number) for number in range(4)]


@pytest.fixture
def used_board(scratch: Path, versions: list[bundles.Bundle]) -> Board:
    """Three releases were flashed, so the fourth also makes the board delete one; a forgotten blob goes with it."""
    board = Board(scratch)
    for bundle in versions[:3]:
        board.flash(bundle)
    forgotten = board.root / "store" / hashlib.sha256(b"forgotten").hexdigest()
    forgotten.write_bytes(b"forgotten")
    os.utime(forgotten, (0, 0))
    board.keep()
    return board


def test_a_flash_cut_anywhere_leaves_the_old_or_the_new_release(
    used_board: Board, versions: list[bundles.Bundle], share: int, record_property: Any
) -> None:
    before, old, new = (bundle.release for bundle in versions[1:])

    def flash_again() -> None:
        used_board.flash(versions[3])
        after = current_of(used_board.root)
        assert after is not None
        assert (after["release"], after["previous_release"]) == (new, old)

    command = flash_command(used_board, versions[3].path)
    check_every_cut(used_board, command, share, [(old, before), (new, old)], flash_again, record_property)


def test_a_rollback_on_the_board_cut_anywhere_leaves_one_of_the_two(
    used_board: Board, versions: list[bundles.Bundle], share: int, record_property: Any
) -> None:
    oldest, before, now, new = (bundle.release for bundle in versions)
    command = [str(used_board.root / "bin" / "edgeopt-agent"), "rollback"]

    def flash_next() -> None:
        left = current_of(used_board.root)
        used_board.flash(versions[3])
        after = current_of(used_board.root)
        assert left is not None
        assert after is not None
        assert (after["release"], after["previous_release"]) == (new, left["release"])

    check_every_cut(used_board, command, share, [(now, before), (before, oldest)], flash_next, record_property)


def test_a_first_flash_cut_anywhere_leaves_nothing_or_the_whole(
    scratch: Path, versions: list[bundles.Bundle], share: int, record_property: Any
) -> None:
    board, new = Board(scratch), versions[0].release

    def flash_again() -> None:
        board.flash(versions[0])
        after = current_of(board.root)
        assert after is not None
        assert (after["release"], after["previous_activation"]) == (new, None)

    command = flash_command(board, versions[0].path)
    check_every_cut(board, command, share, [None, (new, None)], flash_again, record_property)


WRITES = ("write", "pwrite64", "writev", "ftruncate", "copy_file_range", "splice", "sendfile")


def undurable(events: list[Event]) -> list[str]:
    """What a lost page cache could undo. A killed process cannot show it, the order of the calls can: a file is fsynced
    before its rename, a folder after each rename in it, and all that matters before `current` moves."""
    found: list[str] = []
    unwritten: set[str] = set()  # files and folders whose content may be in memory only
    renamed: dict[int, str] = {}  # by process: the folder of its last rename, until that is fsynced
    for number, event in enumerate(events, 1):
        at = f"call {number}, {event.label}"
        folder = os.path.dirname(event.path) or "."
        if event.call == "sync":
            unwritten.clear()
        elif event.call in ("fsync", "fdatasync"):
            unwritten.discard(event.path)
            if renamed.get(event.process) == event.path:
                del renamed[event.process]
        elif event.call in WRITES:
            unwritten.add(event.path)
        if not event.call.startswith(("rename", "symlink", "mkdir")):
            continue
        if event.process in renamed:
            found.append(f"{at}: {renamed[event.process]} is not fsynced after the rename before")
        if event.path == "current":
            found += [f"{at}: {path} is not fsynced" for path in sorted(unwritten) if matters(path)]
        if event.call.startswith("rename"):
            if event.source in unwritten:
                found.append(f"{at}: the file is not fsynced")
            renamed[event.process] = folder
        unwritten = {path for path in unwritten if path != event.source}
        if not event.call.startswith("symlink"):
            unwritten.add(folder)
    return found + [f"at the end: {path} is not fsynced" for path in sorted(unwritten) if matters(path)]


def matters(path: str) -> bool:
    """Jobs and the log may be lost with the power; releases and what leads to them may not."""
    return not path.startswith(("jobs", "log.jsonl", ".probe-"))


@pytest.mark.parametrize("first", [True, False], ids=["first flash", "later flash"])
def test_what_a_flash_makes_visible_is_on_disk_before(
    scratch: Path, versions: list[bundles.Bundle], first: bool, record_property: Any
) -> None:
    board = Board(scratch)
    if not first:
        board.flash(versions[0])
        board.keep()
    run = board.traced(flash_command(board, versions[1].path))
    assert run.code == 0, run.output
    calls = [event.call for event in run.events]
    said = f"{'first' if first else 'later'} flash: {len(calls)} system calls change the board's files"
    record_property("said", f"{said}, {calls.count('fsync')} of them fsync, {calls.count('rename')} rename")
    print("\n".join([said, *(event.label for event in run.events)]))
    assert undurable(run.events) == []


def test_the_check_of_the_order_sees_a_missing_fsync(scratch: Path, versions: list[bundles.Bundle]) -> None:
    board = Board(scratch)
    events = board.traced(flash_command(board, versions[0].path)).events
    for folder in ("store", "activations", ".", "bin", "releases"):
        assert undurable([event for event in events if (event.call, event.path) != ("fsync", folder)]) != [], folder
    files = [event for event in events if event.call == "fsync" and os.path.basename(event.path).startswith(".new-")]
    important = [event for event in files if matters(event.path)]
    assert len(important) >= 3  # manifest, record and the entry point
    for missing in important:
        assert undurable([event for event in events if event is not missing]) != [], missing.label
