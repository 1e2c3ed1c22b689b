"""Jobs that wait for the board's lock, met through it alone; test_turn.py runs each test in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edgeopt_agent import turn
from edgeopt_agent.wire import RemoteError
from test_turn import busy


class Waiting:
    """A job's context without a job: what the board's lock asks of it."""

    def __init__(self, root: Path, followed: bool) -> None:
        self.folder = str(root / "jobs" / "one")
        os.makedirs(self.folder)
        Path(self.folder, "alive").touch()
        turn.note_asked(self.folder, "bench", "somebody@somewhere", followed)
        turn.follow(self.folder)
        self.said: list[str] = []

    def emit(self, event: dict[str, Any]) -> None:
        self.said.append(event["what"])


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root whose lock is held for a moment; nobody is waited for long."""
    for name, seconds in (("ANSWER_S", 0.4), ("PATIENCE_S", 1.5), ("LOOK_S", 0.2)):
        monkeypatch.setattr(turn, name, seconds)
    with contextlib.ExitStack() as stack:
        stack.enter_context(busy(tmp_path))
        timer = threading.Timer(0.5, stack.close)
        timer.start()
        yield tmp_path
        timer.join()


def test_a_job_that_nobody_follows_leaves_its_turn_to_others_and_ends(held: Path) -> None:
    context = Waiting(held, followed=True)
    with (
        pytest.raises(RemoteError, match="nobody asked for the waiting job") as caught,
        turn.BoardLock(str(held), context),
    ):  # type: ignore[arg-type]
        pass
    assert caught.value.kind == "cancelled"
    assert context.said == ["another job is running on this board", "its turn has come"]
    with turn.BoardLock(str(held)) as free:
        assert free


def test_who_gives_up_waiting_is_told_once(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine so busy that the next alarm comes before the first one is handled."""
    slow = [0.03]

    def setitimer(which: int, seconds: float, interval: float = 0.0) -> None:
        if slow and not seconds:
            time.sleep(slow.pop())
        signal.setitimer(which, seconds, interval)

    busy_signal = types.SimpleNamespace(**{**vars(signal), "setitimer": setitimer})
    for name, value in (("LOOK_S", 0.01), ("PATIENCE_S", 0.2), ("signal", busy_signal)):
        monkeypatch.setattr(turn, name, value)
    with busy(held), pytest.raises(RemoteError, match="nobody asked for the waiting job"):  # noqa: SIM117
        with turn.BoardLock(str(held), Waiting(held, followed=True)):  # type: ignore[arg-type]
            pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert not slow


def test_a_follower_that_is_back_finds_its_job_waiting(held: Path) -> None:
    context = Waiting(held, followed=True)
    back = threading.Timer(1.3, turn.follow, [context.folder])  # after its first turn, and before patience ends
    back.start()
    again = threading.Timer(1.6, turn.follow, [context.folder])
    again.start()
    with turn.BoardLock(str(held), context) as began:  # type: ignore[arg-type]
        assert began
    assert context.said.count("its turn has come") == 2


def test_a_kept_job_begins_though_nobody_follows(held: Path) -> None:
    with turn.BoardLock(str(held), Waiting(held, followed=False)) as began:  # type: ignore[arg-type]
        assert began
