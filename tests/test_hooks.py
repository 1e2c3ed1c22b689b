"""The running application's side of a flash: its pause and resume hooks, and its confirmation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_releases as fakes
import pytest
from board_folder import Board
from bundle_variants import variant
from conftest import EDGEOPT
from edgeopt_agent import activations, hooks, jobs, releases, store
from edgeopt_agent.root import prepare
from edgeopt_agent.wire import RemoteError

from edgeopt import bundle as bundles

NOTE = '#!/bin/sh\necho "${0##*/} $EDGEOPT_RELEASE $(readlink "$EDGEOPT_ROOT/current")" >> "$EDGEOPT_ROOT/noted"\n'


def noted(board: Board) -> list[list[str]]:
    path = board.root / "noted"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.split() for line in lines]


def test_hooks_stand_around_the_change(board: Board, versions: list[bundles.Bundle]) -> None:
    one, two = versions[:2]
    board.hook("pause", NOTE)
    board.hook("resume", NOTE)
    board.flash(one)
    assert noted(board) == [["pause", one.release], ["resume", one.release, "activations/1"]]
    board.flash(two)
    assert noted(board) == [["pause", two.release, "activations/1"], ["resume", two.release, "activations/2"]]
    board.flash(two)
    assert noted(board) == []
    board.run("rollback")
    assert noted(board) == [["pause", one.release, "activations/2"], ["resume", one.release, "activations/3"]]


@pytest.mark.parametrize(
    ("script", "said"), [(NOTE + "exit 3\n", "exit code 3"), ("\x7fnot a program", "cannot be started")]
)
def test_a_pause_that_fails_keeps_the_release_and_resumes(
    board: Board, versions: list[bundles.Bundle], script: str, said: str
) -> None:
    one, two = versions[:2]
    board.flash(one)
    board.hook("pause", script)
    board.hook("resume", NOTE)
    refused = board.flash(two, code=4)
    for word in (str(board.root / "hooks" / "pause"), said, f"({one.release[:12]}) is current there"):
        assert word in refused.stderr
    assert board.current() == (one.release, None)
    assert noted(board)[-1] == ["resume", one.release, "activations/1"]
    (board.root / "hooks" / "pause").unlink()
    board.flash(two)
    assert board.current() == (two.release, one.release)


def test_a_resume_that_fails_tells_that_the_new_release_is_current(
    board: Board, versions: list[bundles.Bundle]
) -> None:
    one, two = versions[:2]
    board.flash(one)
    board.hook("resume", "#!/bin/sh\nexit 1\n")
    failed = board.flash(two, code=4)
    for word in (str(board.root / "hooks" / "resume"), f"({two.release[:12]}) is current there"):
        assert word in failed.stderr
    assert board.current() == (two.release, one.release)


def test_a_hook_that_hangs_is_ended(
    board: Board, versions: list[bundles.Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.flash(versions[0])
    board.flash(versions[1])
    board.hook("pause", "#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(hooks, "TIMEOUT_S", 0.5)
    with pytest.raises(RemoteError, match=r"hooks/pause did not end within 0\.5 s") as caught:
        releases.rollback(jobs.Context(str(board.root), str(tmp_path)))
    assert caught.value.kind == "hook"
    assert board.current() == (versions[1].release, versions[0].release)


@pytest.fixture
def doubtful(bundle_file: Path, tmp_path: Path) -> Callable[[float], bundles.Bundle]:
    """A release that the application must confirm."""

    def make(seconds: float) -> bundles.Bundle:
        return variant(bundle_file, tmp_path / f"confirm-{seconds}.edgeopt", policy={"confirm_within_s": seconds})

    return make


def test_a_release_that_nobody_confirms_is_left(
    board: Board, versions: list[bundles.Bundle], doubtful: Callable[[float], bundles.Bundle]
) -> None:
    board.flash(versions[0])
    board.flash(versions[1])
    board.hook("resume", NOTE)
    failed = board.flash(doubtful(0.5), code=4)
    assert "nobody confirmed" in failed.stderr
    assert f"({versions[1].release[:12]}) is current there" in failed.stderr
    assert board.current() == (versions[1].release, versions[0].release)
    assert [line[2] for line in noted(board)] == ["activations/3", "activations/4"]


def test_the_first_release_stays_unconfirmed(board: Board, doubtful: Callable[[float], bundles.Bundle]) -> None:
    bundle = doubtful(0.5)
    failed = board.flash(bundle, code=4)
    assert "no whole older one" in failed.stderr
    assert board.status()["current"]["confirmed"] is False
    assert "not confirmed yet" in board.run("status").stdout
    assert board.current() == (bundle.release, None)


def test_a_confirmed_release_stays(
    board: Board, versions: list[bundles.Bundle], doubtful: Callable[[float], bundles.Bundle]
) -> None:
    board.flash(versions[0])
    board.hook("resume", '#!/bin/sh\nexec "$EDGEOPT_ROOT/bin/edgeopt-agent" confirm\n')
    bundle = doubtful(3600.0)
    board.flash(bundle)
    assert board.status()["current"]["confirmed"] is True
    assert json.loads(board.agent("recover").stdout)["recovered"] is None
    assert board.current() == (bundle.release, versions[0].release)


@pytest.fixture
def unconfirmed(
    board: Board, versions: list[bundles.Bundle], doubtful: Callable[[float], bundles.Bundle]
) -> bundles.Bundle:
    """The board lost its power while it waited for a confirmation; an activation was begun when it did so again."""
    board.flash(versions[0])
    bundle = doubtful(3600.0)
    flashing = subprocess.Popen([str(EDGEOPT), "flash", str(bundle.path), *board.where], stderr=subprocess.DEVNULL)
    record = board.root / "current" / "record.json"
    deadline = time.monotonic() + 60
    while json.loads(record.read_text())["release"] != bundle.release:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    newest = max((board.root / "jobs").iterdir(), key=lambda path: path.stat().st_mtime)
    flashing.kill()
    flashing.wait()
    os.killpg(json.loads((newest / "process.json").read_text())["pid"], signal.SIGKILL)
    (board.root / "activations" / "3").mkdir()
    return bundle


@pytest.mark.usefixtures("unconfirmed")
def test_an_unconfirmed_release_is_left_after_a_reboot(board: Board, versions: list[bundles.Bundle]) -> None:
    path = board.root / "current" / "record.json"
    record = json.loads(path.read_text())
    record["confirm_by"]["boot_id"] = "of the boot before"
    path.write_text(json.dumps(record))
    board.hook("pause", "#!/bin/sh\nexit 1\n")  # the application is broken: that is why it did not confirm
    back = json.loads(board.agent("recover").stdout)
    assert back["recovered"]["release"] == versions[0].release
    assert back["recovered"]["number"] == 3
    assert board.current() == (versions[0].release, None)


def test_an_unconfirmed_release_has_its_time(
    board: Board, versions: list[bundles.Bundle], unconfirmed: bundles.Bundle
) -> None:
    assert json.loads(board.agent("recover").stdout)["recovered"] is None
    assert board.agent("confirm").returncode == 0
    assert board.status()["current"]["confirmed"] is True
    assert board.current() == (unconfirmed.release, versions[0].release)


def test_an_overdue_return_is_the_rollback_that_was_asked_for(
    board: Board, versions: list[bundles.Bundle], doubtful: Callable[[float], bundles.Bundle]
) -> None:
    """One step back, not two."""
    board.flash(versions[0])
    board.flash(versions[1])
    board.hook("resume", '#!/bin/sh\nexec "$EDGEOPT_ROOT/bin/edgeopt-agent" confirm\n')
    board.flash(doubtful(0.1))
    (board.root / "hooks" / "resume").unlink()
    (board.root / "current" / "confirmed.json").unlink()
    time.sleep(0.2)
    done = json.loads(board.run("rollback", "--json").stdout)
    assert done["activation"]["release"] == versions[1].release
    told = versions[1].manifest
    assert (done["name"], done["verdict"], done["previous"]["release"]) == (
        told.name,
        told.verdict,
        versions[0].release,
    )
    assert board.current() == (versions[1].release, versions[0].release)


class Killed(Exception):
    """The job ends here without a word, as when it is killed."""


class KilledWhenItWaits(jobs.Context):
    def emit(self, event: dict[str, Any]) -> None:
        if event["event"] == "waiting":
            raise Killed


def left_unconfirmed(root: Path, number: int) -> fakes.Release:
    """It is current, nobody confirmed it, and nobody waits for that any more."""
    made = fakes.release(number, policy={"confirm_within_s": 3600.0})
    for name, data in made.blobs.items():
        store.put(str(root), made.hashes[name], len(data), 0, data)
    with pytest.raises(Killed):
        releases.activate(
            KilledWhenItWaits(str(root), fakes.context(root).folder), {"release": made.id, "manifest": made.text}
        )
    return made


def test_nothing_returns_to_what_was_never_confirmed(tmp_path: Path) -> None:
    root, good = tmp_path, fakes.release(1)
    fakes.activate(root, good)
    for number in (2, 3):
        doubt = left_unconfirmed(root, number)
        assert fakes.current(root) == (doubt.id, good.id)
    last = fakes.release(4)
    fakes.activate(root, last)
    assert fakes.current(root) == (last.id, good.id)


def test_a_board_whose_first_release_was_never_confirmed_has_no_way_back(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    left_unconfirmed(tmp_path, 1)
    last = fakes.release(2)
    fakes.activate(tmp_path, last)
    assert fakes.current(tmp_path) == (last.id, None)


def test_confirm_says_which_release_and_can_be_told_which(tmp_path: Path) -> None:
    fakes.activate(tmp_path, fakes.release(1))
    doubt = left_unconfirmed(tmp_path, 2)

    def agent(*more: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "bin" / "edgeopt-agent"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    for wrong in ("f" * 64, doubt.id[:7], ""):
        refused = agent("confirm", "--release", wrong)
        assert refused.returncode == 4
        assert doubt.id in refused.stderr
    assert agent("status", "--release", doubt.id).returncode == 2
    assert json.loads(agent("status").stdout)["current"]["confirmed"] is False
    for right in ([], ["--release", doubt.id], ["--release", doubt.id[:12]]):
        assert json.loads(agent("confirm", *right).stdout)["release"] == doubt.id
    assert json.loads(agent("status").stdout)["current"]["confirmed"] is True


def test_sleep_counts_as_time_to_confirm(tmp_path: Path) -> None:
    """By the clock that goes on while the board is suspended; records of older agents have the other one."""
    fakes.activate(tmp_path, fakes.release(1))
    left_unconfirmed(tmp_path, 2)
    limit = activations.current_record(str(tmp_path))["confirm_by"]  # type: ignore[index]
    assert limit["boottime_s"] - time.clock_gettime(time.CLOCK_BOOTTIME) == pytest.approx(3600.0, abs=60.0)
    assert not activations.is_over(limit)
    assert activations.is_over({**limit, "boottime_s": time.clock_gettime(time.CLOCK_BOOTTIME) - 1.0})
    assert not activations.is_over({"boot_id": limit["boot_id"], "monotonic_s": time.monotonic() + 60.0})
    assert activations.is_over({**limit, "boot_id": "of the boot before"})


def not_executable(hook: Path) -> None:
    hook.chmod(0o644)


def of_others(hook: Path) -> None:
    hook.chmod(0o757)


def a_folder(hook: Path) -> None:
    hook.unlink()
    hook.mkdir()


@pytest.mark.parametrize("name", hooks.NAMES)
@pytest.mark.parametrize(
    ("spoil", "said"), [(not_executable, "cannot be run; chmod"), (of_others, "other users"), (a_folder, "is no file")]
)
def test_a_hook_that_is_there_and_cannot_be_run_is_no_hook_left_out(
    tmp_path: Path, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    one, two = fakes.release(1), fakes.release(2)
    fakes.activate(tmp_path, one)
    board = Board(tmp_path)
    board.hook(name, NOTE)
    spoil(tmp_path / "hooks" / name)
    with pytest.raises(RemoteError, match=said) as caught:
        fakes.activate(tmp_path, two)
    assert caught.value.kind == "hook"
    assert str(tmp_path / "hooks" / name) in str(caught.value)
    assert fakes.current(tmp_path) == (one.id, None)


def test_hooks_on_a_file_system_without_programs_are_no_hooks_left_out(tmp_path: Path) -> None:
    root = tmp_path / "board"
    one = fakes.release(1)
    fakes.activate(root, one)
    Board(root).hook("pause", NOTE)
    for command in (["mount", "--bind", root, root], ["mount", "-o", "remount,bind,noexec", root]):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(RemoteError, match="noexec"):
            fakes.activate(root, fakes.release(2))
    finally:
        subprocess.run(["umount", "-l", root], check=True)
    assert fakes.current(root) == (one.id, None)
